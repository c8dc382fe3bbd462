"""Push: uploads a bundle to the Hub, model card first written anew, and checks what arrived."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from spectral_convert.card import model_card
from spectral_convert.licence import base_licence
from spectral_runtime.bundle import BaseModel, Bundle, load_bundle
from spectral_runtime.bundle.manifest import CARRIED
from spectral_runtime.bundle.writer import CARD_FILE
from spectral_runtime.errors import BundleError

AGAIN = "run the same command again: what has arrived is not sent twice"


def push_bundle(
    bundle: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> dict[str, Any]:
    """Uploads `spectral/` and a model card to a model repository of the Hub, which is created when absent.

    A healed checkpoint goes with the bundle that it carries.

    Args:
        bundle: folder of the bundle; a damaged one is refused before anything is sent.
        repo: `owner/name`.
        private: of a repository that is created now.
        revision: branch to commit to; created when absent.
        create_pr: open a pull request instead of committing.
        token: Hub token; None uses the one of the login.

    Returns:
        `repo`, `url`, `commit`, `files` and, with `create_pr`, `pull_request`.

    Raises:
        BundleError: the bundle is damaged, or the Hub refused or broke off.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    loaded = load_bundle(bundle)
    api = HfApi(token=token, library_name="spectral")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision and not create_pr:
            api.create_branch(repo, branch=revision, exist_ok=True)
        info = _upload(api, loaded, repo, revision, create_pr)
        files = _verify(api, loaded, repo, info)
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as fault:
        raise _refusal(repo, fault) from fault
    result = {"repo": repo, "url": info.repo_url.url, "commit": info.oid, "files": files}
    return result | ({"pull_request": info.pr_url} if create_pr else {})


def _upload(api: Any, bundle: Bundle, repo: str, revision: str | None, create_pr: bool) -> Any:
    from huggingface_hub import CommitOperationAdd

    licence = base_licence(_licensed(bundle), token=api.token)
    card = model_card(
        bundle.manifest, _record(bundle, "evaluate"), licence=licence, place=repo,
        healing=_record(bundle, "heal"),
    )  # fmt: skip
    operations = [CommitOperationAdd("README.md", card.encode())]
    for name in sorted([*bundle.manifest.files, "spectral_config.json"]):
        operations.append(CommitOperationAdd(f"spectral/{name}", str(bundle.path / name)))
    operations += [CommitOperationAdd(name, str(path)) for name, path in _carried(bundle).items()]
    return api.create_commit(
        repo,
        operations,
        commit_message=f"Spectral bundle for {bundle.manifest.base_model.id}",
        revision=revision,
        create_pr=create_pr,
    )


def _carried(bundle: Bundle) -> dict[str, Path]:
    """The files of the checkpoint around a bundle that carries one, by their names."""
    if bundle.manifest.base_model.id != CARRIED:
        return {}
    around = bundle.path.parent
    files = {p.relative_to(around).as_posix(): p for p in sorted(around.rglob("*")) if p.is_file()}
    return {
        name: path for name, path in files.items() if name != CARD_FILE and bundle.path not in path.parents
    }


def _licensed(bundle: Bundle) -> BaseModel:
    """The model whose licence holds: the base, or what a healed one was made from."""
    base, recipe = bundle.manifest.base_model, bundle.manifest.recipe
    if base.id != CARRIED:
        return base
    return dataclasses.replace(base, id=str(recipe.get("model") or base.id), revision=recipe.get("revision"))


def _record(bundle: Bundle, name: str) -> dict[str, Any]:
    file = bundle.path / "evidence" / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _verify(api: Any, bundle: Bundle, repo: str, info: Any) -> int:
    """Counts the files of the commit; raises when one of the manifest is not there with its size."""
    listed = {
        item.path: getattr(item, "size", None)
        for item in api.list_repo_tree(repo, recursive=True, revision=info.oid)
    }
    for name, entry in bundle.manifest.files.items():
        found = listed.get(f"spectral/{name}")
        if found != entry.bytes:
            expected = f"spectral/{name} of {entry.bytes} bytes"
            raise BundleError(repo, expected=expected, found=f"{found} on the Hub", remedy=AGAIN)
    missing = [name for name in _carried(bundle) if name not in listed]
    if missing:
        raise BundleError(repo, expected=missing[0], found="nothing on the Hub", remedy=AGAIN)
    return len(listed)


def _refusal(repo: str, fault: Exception) -> BundleError:
    status = getattr(getattr(fault, "response", None), "status_code", None)
    remedies = {
        401: "log in with `hf auth login`, or give --token",
        403: "the token may not write there: give one that may, or another repository",
        404: "check owner and name, and that the token may see the repository",
    }
    reason = str(fault).strip().split("\n")[0][:300]
    remedy = remedies.get(status, AGAIN) if status else AGAIN
    return BundleError(f"push to {repo}", expected="an upload", found=reason, remedy=remedy)
