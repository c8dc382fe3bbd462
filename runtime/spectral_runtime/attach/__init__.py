"""Puts a bundle's routers into a transformers model, and takes them out again."""

from spectral_runtime.attach.attachment import Attachment, attach
from spectral_runtime.attach.discovery import RouterSite, find_routers
from spectral_runtime.attach.load import load_model

__all__ = ["Attachment", "RouterSite", "attach", "find_routers", "load_model"]
