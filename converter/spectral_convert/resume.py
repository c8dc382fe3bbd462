"""Resume: the stages of a conversion through its work folder; what is there under the right digest is not made again."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spectral_convert.assemble import tool_versions
from spectral_convert.captured import LayerCapture, Moments
from spectral_convert.recipe import Recipe
from spectral_convert.risk import MarginCurve, RiskCurve
from spectral_convert.text import TextSet
from spectral_convert.workdir import WorkDir, digest_of, pack, unpack
from spectral_runtime.attaching.discovery import RouterSite, router_sha256
from spectral_runtime.errors import InternalError
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Bvh, Geometry

NOT_FITTED = frozenset(
    {"model", "revision", "calibration", "text_field", "chat_template", "tokens", "sequence_length", "seed"}
    | {
        "mode",
        "candidates",
        "adaptive",
        "refine",
        "max_ppl_increase",
        "min_recall",
        "target",
        "alpha",
        "gate_rows",
        "device",
        "dtype",
    }
)
"""Settings that no closed form sees: they act before it, and are in the capture's digest, or after it."""
Fitted = tuple[Geometry, tuple[float, ...], Bvh, RiskCurve, MarginCurve]


class Pieces:
    """The stages of one conversion, each keyed by what it depends on."""

    def __init__(self, work: WorkDir, recipe: Recipe, base: str, texts: dict[str, TextSet]) -> None:
        self.work, self.recipe, self.base = work, recipe, base
        windows = {name: [window.ids for window in text.windows] for name, text in texts.items()}
        split = windows["fit"], windows["certify"]
        self.seen = digest_of(tool_versions(), base, recipe.device, *split)
        self.held_out = digest_of(windows["evaluate"], recipe.sequence_length)

    def with_shape(self, levels: int, colour: int) -> Pieces:
        """These pieces for fits of another shape; captures and evaluations stay the same."""
        other = copy.copy(self)
        other.recipe = dataclasses.replace(self.recipe, levels=levels, colour=colour)
        return other

    def capture(
        self, sites: Sequence[RouterSite], make: Callable[[], Sequence[LayerCapture]]
    ) -> list[LayerCapture]:
        """Every layer's capture; the model runs only when one of them is not there."""
        found = [self._captured(site) for site in sites]
        if any(capture is None for capture in found):
            found = list(make())
            for capture in found:
                assert capture is not None
                tensors, facts = pack("moments", capture.moments)
                tensors |= {"certify": capture.certify, "sample": capture.sample}
                self.work.save("capture", self._key(capture.site), tensors, facts)
        return [capture for capture in found if capture is not None]

    def _captured(self, site: RouterSite) -> LayerCapture | None:
        stored = self.work.load("capture", self._key(site))
        if stored is None or (self.recipe.trains and not len(stored[0]["sample"])):
            return None
        inputs = stored[0]["certify"], stored[0]["sample"]
        return LayerCapture(site, unpack(Moments, "moments", *stored), *inputs)

    def _key(self, site: RouterSite) -> str:
        return digest_of(self.seen, site.path, router_sha256(site))

    def fit(self, site: RouterSite, rule: GateRule, make: Callable[[], Fitted]) -> Fitted:
        """One layer's geometry, explained shares, tree and risk curves."""
        settings = {k: v for k, v in dataclasses.asdict(self.recipe).items() if k not in NOT_FITTED}
        trained = (
            (self.recipe.candidates, self.recipe.adaptive, self.recipe.seed) if self.recipe.trains else None
        )
        key = digest_of(self._key(site), rule, settings, trained)
        stored = self.work.load("fit", key)
        if stored is None:
            fitted = make()
            tensors: dict[str, Any] = {}
            facts: dict[str, Any] = {"explained": list(fitted[1])}
            curves = (("curve", fitted[3]), ("margins", fitted[4]))
            for name, value in (("geometry", fitted[0]), ("bvh", fitted[2]), *curves):
                more_tensors, more_facts = pack(name, value)
                tensors |= more_tensors
                facts |= more_facts
            self.work.save("fit", key, tensors, facts)
            stored = self.work.load("fit", key)
            if stored is None:
                raise InternalError("work folder", expected="the piece just written", found="none")
        tensors, facts = stored
        geometry, bvh = unpack(Geometry, "geometry", tensors, facts), unpack(Bvh, "bvh", tensors, facts)
        curve = unpack(RiskCurve, "curve", tensors, facts)
        return geometry, tuple(facts["explained"]), bvh, curve, unpack(MarginCurve, "margins", tensors, facts)

    def evaluate(self, layers: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The evaluation record of a bundle whose layers are these."""
        key = digest_of(self.seen, self.held_out, layers)
        stored = self.work.load("evaluate", key)
        if stored is None:
            self.work.save("evaluate", key, {}, make())
            stored = self.work.load("evaluate", key)
        assert stored is not None
        record: dict[str, Any] = stored[1]
        return record


def base_digest(model: Any, source: str) -> str:
    """Tells base models apart: configuration, dtype, commit, or the shards' headers, sizes and times."""
    settings = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    commit = getattr(model.config, "_commit_hash", None)
    files = []
    if commit is None and Path(source).is_dir():
        for file in sorted(Path(source).glob("*.safetensors")):
            status = file.stat()
            files.append((file.name, status.st_size, status.st_mtime_ns, _head(file)))
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return digest_of(settings, str(dtype), commit, files)


def _head(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read(1 << 20)).hexdigest()
