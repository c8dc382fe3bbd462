"""Ways to break the manifest: its JSON, its keys, what it says about files, rules and certificates."""

from __future__ import annotations

import json
from typing import Any

from bundles.damage import Draft, refused


@refused("expected format 1, found format 2 — upgrade the package")
def newer_version(draft: Draft) -> None:
    draft.manifest["format_version"] = 2
    draft.manifest["key_of_the_future"] = True


@refused("expected format 1, found format 0")
def version_zero(draft: Draft) -> None:
    draft.manifest["format_version"] = 0


@refused("format_version: expected int, found bool True")
def version_true(draft: Draft) -> None:
    draft.manifest["format_version"] = True


@refused("expected UTF-8 JSON, found Expecting value")
def manifest_not_json(draft: Draft) -> None:
    draft.config = b"format_version: 1\n"


@refused("expected a mapping, found list")
def manifest_a_list(draft: Draft) -> None:
    draft.config = b"[]\n"


@refused("JSON number: expected a finite number, found NaN")
def manifest_with_nan(draft: Draft) -> None:
    draft.layer["explained"] = [float("nan")]


@refused("JSON number: expected a finite number, found 1e999")
def manifest_with_infinity(draft: Draft) -> None:
    draft.config = b'{"recipe": {"alpha": 1e999}, ' + json.dumps(draft.manifest).encode()[1:]


@refused("JSON object: expected every key once, found 'format_version' twice")
def manifest_key_twice(draft: Draft) -> None:
    draft.config = b'{"format_version": 1, ' + json.dumps(draft.manifest).encode()[1:]


@refused(r"layers\[0\]\.canditates: expected a known key.*did you mean 'candidates'")
def unknown_manifest_key(draft: Draft) -> None:
    draft.layer["canditates"] = 4


@refused(r"layers\[0\]\.hidden: expected this key, found nothing")
def missing_manifest_key(draft: Draft) -> None:
    del draft.layer["hidden"]


@refused(r"layers\[0\]\.levels: expected int, found str '2'")
def mistyped_manifest_key(draft: Draft) -> None:
    draft.layer["levels"] = "2"


@refused("scale: expected a number within the range of float")
def integer_beyond_float(draft: Draft) -> None:
    draft.layer["rule"]["scale"] = 10**400


@refused("layers: expected at least one layer, found none")
def no_layers(draft: Draft) -> None:
    draft.manifest["layers"] = []


@refused("layers: expected every path once, found 'model.layers.0.mlp.gate' twice")
def same_path_twice(draft: Draft) -> None:
    draft.manifest["layers"] *= 2


@refused(r"layers\[0\]\.path: expected printable text")
def control_characters(draft: Draft) -> None:
    draft.layer["path"] = "model\x1b[2J"


@refused(r"base_model\.id: expected printable text, found 'a\\nb'")
def control_characters_in_the_base_model(draft: Draft) -> None:
    draft.manifest["base_model"]["id"] = "a\nb"


@refused(r"tools\.spectral: expected printable text, found ''")
def empty_tool_version(draft: Draft) -> None:
    draft.manifest["tools"]["spectral"] = ""


@refused("expected UTF-8 JSON, found 'utf-8' codec can't encode")
def unpaired_surrogate(draft: Draft) -> None:
    draft.layer["path"] = "model\ud800"


@refused("expected sha256 [0-9a-f]{64}, found [0-9a-f]{64} — it is damaged or altered")
def digest_mismatch(draft: Draft) -> None:
    draft.honest = False
    draft.array("beta")[0] += 1


@refused(r"expected \d+ bytes, found \d+ — it is truncated or altered")
def size_mismatch(draft: Draft) -> None:
    draft.honest = False
    draft.data += b"more"


@refused("files: expected a relative path of letters.*found '../../golden/README.md'")
def path_escape(draft: Draft) -> None:
    draft.manifest["files"]["../../golden/README.md"] = {"bytes": 1, "sha256": "0" * 64}


@refused("files: expected a relative path of letters.*found '/etc/hostname'")
def absolute_path(draft: Draft) -> None:
    draft.manifest["files"]["/etc/hostname"] = {"bytes": 1, "sha256": "0" * 64}


@refused(r"files: expected a relative path of letters.*found 'a\\x00b'")
def nul_in_path(draft: Draft) -> None:
    draft.manifest["files"]["a\0b"] = {"bytes": 1, "sha256": "0" * 64}


@refused("none.json: expected the file that the manifest lists, found no regular file")
def listed_file_missing(draft: Draft) -> None:
    draft.manifest["files"]["evidence/none.json"] = {"bytes": 1, "sha256": "0" * 64}


@refused("files: expected an entry for spectral.safetensors")
def tensors_not_listed(draft: Draft) -> None:
    draft.manifest["files"] = {}


@refused(r"layers\[0\]\.router_sha256: expected 64 lower-case hex digits, found 'md5:0'")
def not_a_digest(draft: Draft) -> None:
    draft.layer["router_sha256"] = "md5:0"


@refused(r"splits\.fit\.sha256: expected 64 lower-case hex digits, found 'FF")
def digest_in_upper_case(draft: Draft) -> None:
    draft.manifest["splits"]["fit"]["sha256"] = "F" * 64


@refused(r"splits\.fit\.documents: expected at least 0, found -1")
def negative_documents(draft: Draft) -> None:
    draft.manifest["splits"]["fit"]["documents"] = -1


@refused(r"splits\.fit\.tokens: expected at least 0, found -1")
def negative_tokens(draft: Draft) -> None:
    draft.manifest["splits"]["fit"]["tokens"] = -1


@refused(r"layers\[0\]\.hidden: expected 1 to 1048576, found 0")
def no_hidden_size(draft: Draft) -> None:
    draft.layer["hidden"] = 0


@refused(r"layers\[0\]\.rule\.experts: expected 1 to 16777216, found 16777217")
def too_many_experts(draft: Draft) -> None:
    draft.layer["rule"]["experts"] = 2**24 + 1


@refused(r"layers\[0\]\.explained: expected at most 65 shares, found 66")
def too_many_shares(draft: Draft) -> None:
    draft.layer["explained"] = [0.5] * 66


@refused(r"layers\[0\]\.colour: expected 0 to 1048576, found -1")
def negative_colour(draft: Draft) -> None:
    draft.layer["colour"] = -1


@refused(r"layers\[0\]\.centred: expected false in the mode dense, found true")
def centred_dense(draft: Draft) -> None:
    draft.layer.update({"mode": "dense", "levels": 0, "colour": 0, "nodes": 0, "centred": True})


@refused(r"routers_sha256: expected [0-9a-f]{64} \(from the layers\), found 0{64}")
def routers_digest_differs(draft: Draft) -> None:
    draft.manifest["base_model"]["routers_sha256"] = "0" * 64


@refused(r"layers\[0\]\.candidates \(mode prefilter\): expected 2 to 8, found 9")
def candidates_above_experts(draft: Draft) -> None:
    draft.layer["candidates"] = 9


@refused(r"layers\[0\]\.candidates \(mode prefilter\): expected 2 to 8, found 1")
def candidates_below_top_k(draft: Draft) -> None:
    draft.layer["candidates"] = 1


@refused(r"layers\[0\]\.candidates \(mode geometric\): expected 0 to 0, found 4")
def candidates_without_prefilter(draft: Draft) -> None:
    draft.layer["mode"] = "geometric"


@refused(r"layers\[0\]\.levels: expected 0 to 0, found 1")
def levels_in_dense_mode(draft: Draft) -> None:
    draft.layer["mode"] = "dense"


@refused(r"layers\[0\]\.rule: rule\.top_k: expected 1 to 8")
def top_k_above_experts(draft: Draft) -> None:
    draft.layer["rule"]["top_k"] = 9


@refused(r"rule\.groups_kept: expected room for top_k 2, found 1 experts in 1 of 8 groups")
def groups_too_small_for_top_k(draft: Draft) -> None:
    draft.layer["rule"] |= {"groups": 8, "groups_kept": 1}


@refused(r"layers\[0\]\.levels: expected 1 to 64, found 0")
def no_levels(draft: Draft) -> None:
    draft.layer["levels"] = 0


@refused(r"layers\[0\]\.nodes: expected 1 to 15, found 16")
def too_many_nodes(draft: Draft) -> None:
    draft.layer["nodes"] = 16


@refused(r"bvh\.lower: expected F32 \[9, 5\], found F32 \[7, 5\]")
def more_nodes_than_stored(draft: Draft) -> None:
    draft.layer["nodes"] = 9


@refused(r"projection: expected F32 \[7, 4\], found F32 \[5, 4\]")
def more_colours_than_stored(draft: Draft) -> None:
    draft.layer["colour"] = 4


@refused(r"layers\.0\.gate\.weight: expected F32 \[8, 4\], found no such tensor")
def gate_rows_missing(draft: Draft) -> None:
    draft.layer["gate_rows"] = True


@refused(r"layers\[0\]\.gate_bias: expected gate_rows beside it")
def gate_bias_without_rows(draft: Draft) -> None:
    draft.layer["gate_bias"] = True


def _certificate(**changes: Any) -> dict[str, Any]:
    sound = {"alpha": 0.05, "candidates": 4, "risk": 0.01, "bound": 0.02, "tokens": 99, "documents": 3}
    return {**sound, "split_sha256": "0" * 64, **changes}


@refused("certificate: expected 0 <= risk <= bound <= alpha, found risk 0.01, bound 0.06, alpha 0.05")
def certificate_above_alpha(draft: Draft) -> None:
    draft.layer["certificate"] = _certificate(bound=0.06)


@refused("certificate.candidates: expected 2 to 8, found 9")
def certificate_beyond_experts(draft: Draft) -> None:
    draft.layer["certificate"] = _certificate(candidates=9)


@refused("certificate.alpha: expected more than 0 and less than 1, found 1.0")
def certificate_of_nothing(draft: Draft) -> None:
    draft.layer["certificate"] = _certificate(alpha=1)


@refused("certificate.tokens: expected at least 1, found 0")
def certificate_without_tokens(draft: Draft) -> None:
    draft.layer["certificate"] = _certificate(tokens=0)


@refused("certificate.documents: expected at least 1, found 0")
def certificate_without_documents(draft: Draft) -> None:
    draft.layer["certificate"] = _certificate(documents=0)


@refused("certificate.split_sha256: expected 64 lower-case hex digits, found 'x'")
def certificate_without_a_digest(draft: Draft) -> None:
    draft.layer["certificate"] = _certificate(split_sha256="x")


@refused("certificate.split_sha256: expected a split that was not fitted on")
def certificate_on_the_fitted_split(draft: Draft) -> None:
    draft.layer["certificate"] = _certificate(split_sha256=draft.manifest["splits"]["fit"]["sha256"])


@refused(r"layers\[0\]\.margin: expected the mode prefilter")
def margin_without_prefilter(draft: Draft) -> None:
    draft.layer.update(mode="geometric", candidates=0, margin=0.5)


@refused(r"layers\[0\]\.candidates \(with a margin\): expected at least")
def margin_with_too_low_a_cap(draft: Draft) -> None:
    draft.layer.update(mode="prefilter", candidates=draft.layer["rule"]["top_k"], margin=0.5)
