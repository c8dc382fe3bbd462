"""The student: a copy of the original that shares its frozen weights and routes by trained geometries."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spectral_convert.heal.mixed import mixed_kind
from spectral_convert.heal.router import TrainedRouter
from spectral_convert.heal.settings import Scope
from spectral_runtime.attaching.attachment import plan_layers
from spectral_runtime.attaching.discovery import RouterSite, find_routers
from spectral_runtime.attaching.layer import AttachedLayer
from spectral_runtime.bundle import Bundle, Mode
from spectral_runtime.errors import ConfigError


class _Trained:
    """Mixed in front of the family's router class."""

    spectral_trained: TrainedRouter

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        trained = self.spectral_trained
        site = trained.place[0]
        return site.contract.form(self, trained(site.gate_input(hidden_states)))  # type: ignore[arg-type]


@dataclass(slots=True)
class Student:
    """The model in training."""

    model: Any
    sites: tuple[RouterSite, ...]
    """All routers, trained or not, in layer order."""
    routers: dict[str, TrainedRouter]
    """By path."""
    _undo: list[tuple[nn.Module, type[nn.Module]]] = field(default_factory=list)

    def geometry(self) -> list[nn.Parameter]:
        """The trained parameters of the routers, float32."""
        return [p for router in self.routers.values() for p in router.parameters() if p.requires_grad]

    def weights(self) -> list[nn.Parameter]:
        """The trained parameters of the model itself, in the forward's dtype."""
        routers = {id(p) for router in self.routers.values() for p in router.parameters()}
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in routers]

    def candidates(self) -> dict[str, int]:
        """C of every trained router by path; 0 in the mode `geometric`."""
        return {path: router.candidates for path, router in self.routers.items()}

    def detach(self) -> None:
        """Gives the routers their own class back; the trained geometries stay in `routers`."""
        while self._undo:
            module, original = self._undo.pop()
            module.__class__ = original
            del module.spectral_trained


def make_student(teacher: Any, bundle: Bundle, *, scope: Scope, mode: Mode | None) -> Student:
    """Copies the teacher's structure, not its frozen tensors, and puts trained routers in.

    Args:
        teacher: the untouched model; its parameters stop requiring gradients.
        bundle: made for it.
        scope: decides which weights are copied and trained.
        mode: of all layers that have a geometry; None is each layer's own.

    Raises:
        ConfigError: no layer routes by its geometry.
        BundleError: the bundle was made for another model.
    """
    teacher.requires_grad_(False)
    plan_layers(teacher, bundle, mode)  # refuses bundles of other models before anything is copied
    model = _copy(teacher, scope)
    layers = plan_layers(model, bundle, mode)
    student = Student(model, tuple(layer.site for layer in layers), {})
    for layer, stored in zip(layers, bundle.layers, strict=True):
        if layer.scorer is None or layer.mode not in ("geometric", "prefilter"):
            continue
        _put(student, layer, stored.geometry)
    if not student.routers:
        remedy = "give --mode geometric or prefilter, or convert with one of them"
        found = "every layer routes by its gate"
        raise ConfigError("heal", expected="a layer that routes by its geometry", found=found, remedy=remedy)
    _freeze_unused(student, [layer.site for layer in layers if layer.scorer is not None])
    return student


def share(model: Any, copied: Iterable[torch.Tensor] = ()) -> Any:
    """A second model over the same tensors, but for those in `copied`."""
    own = {id(tensor) for tensor in copied}
    tensors = (*model.buffers(), *model.parameters())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors if id(tensor) not in own})


def _copy(teacher: Any, scope: Scope) -> Any:
    model = share(teacher, trainable(teacher, scope))
    for parameter in trainable(model, scope):
        parameter.requires_grad_(True)
    return model


def trainable(model: Any, scope: Scope) -> Iterator[nn.Parameter]:
    """The weights that a scope trains beside the geometry."""
    if scope == "all":
        yield from (p for p in model.parameters() if p.is_floating_point())
    elif scope == "geometry+norms":
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                yield from (p for p in module.parameters(recurse=False) if p.dim() == 1)


def _put(student: Student, layer: AttachedLayer, geometry: Any) -> None:
    site, module = layer.site, layer.site.module
    if layer.dense:
        return  # with C = E the gate decides: nothing of the geometry is seen
    count = layer.candidates if layer.mode == "prefilter" else 0
    trained = TrainedRouter(site, layer.rule, geometry, count, layer.margin if count else None)
    student._undo.append((module, type(module)))
    kind: Any = type(module)
    module.__class__ = mixed_kind(_Trained, kind)
    module.spectral_trained = trained
    student.routers[site.path] = trained


def _freeze_unused(student: Student, sites: Sequence[RouterSite]) -> None:
    """A gate that does not decide, or whose geometry is not trained with it, stays what it was."""
    for site in sites:
        router = student.routers.get(site.path)
        trained = router is not None and router.candidates > 0
        for tensor in (site.choice_bias,) if trained else (site.weight, site.bias, site.choice_bias):
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(False)


def teacher_sites(teacher: Any, student: Student) -> Sequence[RouterSite]:
    """The teacher's routers that face trained ones."""
    return [site for site in find_routers(teacher) if site.path in student.routers]
