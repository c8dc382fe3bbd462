"""Licence: what the base model's card states, for the card of its bundle."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from spectral_runtime.bundle.manifest import BaseModel

LICENCE_KEYS = ("license", "license_name", "license_link")
logger = logging.getLogger(__name__)


def base_licence(base: BaseModel, *, token: str | None = None) -> dict[str, str]:
    """What the base model's card says of its licence: a local folder's README, or the Hub's; empty when unknown."""
    from huggingface_hub import HfApi, ModelCard

    folder = Path(base.id)
    if folder.is_dir() and not (folder / "README.md").is_file():
        return {}
    try:
        if folder.is_dir():
            card = ModelCard.load(folder / "README.md")
        else:
            with tempfile.TemporaryDirectory() as place:
                api = HfApi(token=token, library_name="spectral")
                file = api.hf_hub_download(base.id, "README.md", revision=base.revision, cache_dir=place)
                card = ModelCard.load(file)
    except Exception as fault:  # a base without a readable card is common, and no reason to stop
        reason = str(fault).split("\n")[0]
        logger.warning("no licence is copied, the card of %s cannot be read: %s", base.id, reason)
        return {}
    stated = card.data.to_dict()
    return {key: str(stated[key]) for key in LICENCE_KEYS if stated.get(key)}
