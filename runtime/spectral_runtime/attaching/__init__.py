"""Puts a bundle's routers into a transformers model, and takes them out again."""

from spectral_runtime.attaching.attachment import Attachment, attach
from spectral_runtime.attaching.discovery import RouterSite, find_routers
from spectral_runtime.attaching.load import load_model

__all__ = ["Attachment", "RouterSite", "attach", "find_routers", "load_model"]
