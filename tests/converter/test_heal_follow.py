"""Hidden states of a healing: the term against its formula, nothing left behind, one graph for layers that are alike."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_models import write_checkpoint, write_text

from spectral_convert.convert import convert_checkpoint
from spectral_convert.heal.balance import LoadKeeper
from spectral_convert.heal.experts import gathered
from spectral_convert.heal.follow import Follower, compiled
from spectral_convert.heal.loss import Distillation
from spectral_convert.heal.student import Student, make_student, teacher_sites
from spectral_runtime.attaching.load import load_base

FAMILIES = ["olmoe", "deepseek_v3", "gpt_oss", "jetmoe"]
IDS = torch.arange(48).reshape(2, 24) * 7 % 160


def pair(folder: Path, family: str) -> tuple[Any, Student]:
    model = write_checkpoint(folder / "model", family, initializer_range=0.2)
    bundle = convert_checkpoint(
        str(model), out=folder / "bundle", calibration=str(write_text(folder / "text.txt")), tokens=2000,
        sequence_length=64, alpha=0.3, levels=1, mode="geometric",
    ).bundle  # fmt: skip
    teacher = load_base(model, dtype="float32")[0]
    return teacher, make_student(teacher, bundle, scope="all", mode=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_term_is_the_relative_distance_after_every_layer(tmp_path: Path, family: str) -> None:
    teacher, student = pair(tmp_path, family)
    follower = Follower(teacher, student.model)
    kinds = [type(layer) for layer in follower.layers]
    with follower.watching():
        with torch.no_grad():
            teacher(IDS)
        student.model(IDS)
        term = follower.apart()
        wanted = [
            float(
                (b.spectral_states.detach() - a.spectral_states).square().sum()
                / a.spectral_states.square().sum()
            )
            for a, b in follower.pairs
        ]
    assert float(term.detach()) == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)
    assert wanted[-1] > 0  # a first layer without experts is the same in both
    term.backward()
    assert all(float(router.projection.grad.abs().max()) > 0 for router in student.routers.values())
    assert [type(layer) for layer in follower.layers] == kinds
    assert not any(hasattr(layer, "spectral_states") for layer in follower.layers)


def test_scores_that_no_term_uses_are_not_kept(tmp_path: Path) -> None:
    teacher, student = pair(tmp_path, "olmoe")
    for scores in (False, True):
        keeper = LoadKeeper(teacher_sites(teacher, student), list(student.routers.values()), scores=scores)
        with keeper.watching(), torch.no_grad():
            teacher(IDS)
        assert [hasattr(site.module, "spectral_scores") for site in keeper.sites] == [scores] * len(
            keeper.sites
        )


def test_it_is_zero_for_the_same_model(tmp_path: Path) -> None:
    teacher, _ = pair(tmp_path, "olmoe")
    follower = Follower(teacher, teacher)
    with follower.watching(), torch.no_grad():
        teacher(IDS)
        assert float(follower.apart()) == 0.0


# Both are torch's own, when it loads its compiler and when it traces.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe"])
def test_compiled_layers_are_one_graph_a_model_with_the_same_gradients(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    # The tracing is what is tested; making code for this processor takes minutes.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    teacher, student = pair(tmp_path, family)
    keeper = LoadKeeper(teacher_sites(teacher, student), list(student.routers.values()))
    follower, loss = Follower(teacher, student.model), Distillation(teacher, student.model, lm_weight=0.0)
    with keeper.watching(), follower.watching():
        plain = gradients(keeper, follower, loss, student)
        torch._dynamo.reset()
        counters.clear()
        with gathered([teacher, student.model]), compiled(follower.layers):
            assert all(layer._compiled_call_impl is not None for layer in follower.layers)
            for _ in range(2):
                found = gradients(keeper, follower, loss, student)
    assert all(layer._compiled_call_impl is None for layer in follower.layers)
    assert counters["stats"]["unique_graphs"] == 2
    assert len(follower.layers) == 4
    for one, other in zip(plain, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


# Both are torch's own, as above.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_fused_terms_are_the_plain_ones_in_one_graph_each(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    teacher, student = pair(tmp_path, family)
    loss, found = Distillation(teacher, student.model, lm_weight=0.0), []
    for fused in (False, True):
        torch._dynamo.reset()
        counters.clear()
        routers = list(student.routers.values())
        keeper = LoadKeeper(teacher_sites(teacher, student), routers, fused=fused)
        follower = Follower(teacher, student.model, fused=fused)
        with keeper.watching(), follower.watching():
            found.append(gradients(keeper, follower, loss, student))
    assert counters["stats"]["unique_graphs"] == 2
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def gradients(
    keeper: LoadKeeper, follower: Follower, loss: Distillation, student: Student
) -> list[torch.Tensor]:
    parameters = [p for p in student.model.parameters() if p.requires_grad]
    whole = loss(IDS)[0] + keeper.excess() + keeper.unlike() + follower.apart()
    return [g for g in torch.autograd.grad(whole, parameters, allow_unused=True) if g is not None]
