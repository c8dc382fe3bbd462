"""Finds the folder of a bundle: a local one always wins, anything else is a Hub id."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from spectral_runtime.errors import BundleError

MANIFEST_FILE = "spectral_config.json"
FOLDER = "spectral"

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_HUB_FILES = [f"{FOLDER}/*", MANIFEST_FILE, "spectral.safetensors", "evidence/*.json"]
_log = logging.getLogger(__name__)


def locate_bundle(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder that holds `spectral_config.json`.

    Args:
        source: that folder, one that contains it as `spectral/`, or a Hub id.
        revision: branch, tag or commit on the Hub.
        token: Hub token; None uses the one of the login.
        cache_dir: where the Hub keeps downloads; None is its own default.
        local_files_only: never go to the network.

    Raises:
        BundleError: there is neither such a folder nor such a repository.
    """
    path = Path(source).expanduser()
    if os.path.lexists(path):
        return _bundle_folder(path)
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        remedy = "give the folder of a bundle or a Hub id such as 'owner/name'"
        raise BundleError(
            str(source), expected="a bundle", found="neither a folder nor a Hub id", remedy=remedy
        )
    options: dict[str, object] = {"revision": revision, "token": token, "cache_dir": cache_dir}
    return _bundle_folder(_download(source, local_files_only, options))


def _bundle_folder(path: Path) -> Path:
    for folder in (path, path / FOLDER):
        if (folder / MANIFEST_FILE).is_file():
            return folder.absolute()
    found = "a folder without it" if path.is_dir() else "a file" if path.exists() else "nothing"
    raise BundleError(
        str(path),
        expected=f"{MANIFEST_FILE} or {FOLDER}/{MANIFEST_FILE}",
        found=found,
        remedy="convert a model first with spectral-convert, or give another folder or Hub id",
    )


def _download(source: str, local_files_only: bool, options: dict[str, object]) -> Path:
    # Imported late: a local bundle needs neither the library nor its second of start-up.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    _log.info("downloading bundle %s", source)
    try:
        folder = snapshot_download(
            source, allow_patterns=_HUB_FILES, local_files_only=local_files_only, **options
        )
    except (OSError, ValueError, HfHubHTTPError) as fault:
        reason = str(fault).strip().split("\n")[0][:300]
        remedy = "check the id and the revision, log in, or download it and give the folder"
        raise BundleError(
            source, expected="a local folder or a Hub repository", found=reason, remedy=remedy
        ) from fault
    return Path(str(folder))
