"""Healing: trains the geometry of a bundle, or the model around it, to predict like the original model."""

from spectral_convert.heal.settings import HealSettings

__all__ = ["HealSettings"]
