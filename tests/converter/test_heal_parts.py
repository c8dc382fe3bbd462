"""The parts of a healing against plain formulas: loss, routers, shared tensors, windows, sampled text, load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico_models import pico_documents, pico_model, write_checkpoint, write_text
from torch.nn import functional

from spectral_convert.convert import convert_checkpoint
from spectral_convert.heal import loss as losses
from spectral_convert.heal import sample
from spectral_convert.heal.balance import LoadKeeper, balance
from spectral_convert.heal.loss import Distillation
from spectral_convert.heal.optimise import Optimiser, rate_at
from spectral_convert.heal.progress import HealingDiverged, Progress
from spectral_convert.heal.router import listwise
from spectral_convert.heal.sample import USES, SampledText
from spectral_convert.heal.settings import HealSettings
from spectral_convert.heal.student import make_student, teacher_sites
from spectral_convert.heal.windows import FitText, fit_text
from spectral_convert.text import calibration_splits, read_documents, tokenise, training_documents
from spectral_runtime import attach
from spectral_runtime.attaching.load import load_base
from spectral_runtime.gate import GateRule

FAMILIES = ["olmoe", "deepseek_v3", "qwen3_moe", "gpt_oss", "phimoe", "dbrx"]


def ids_of(count: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 160, (count, length), generator=torch.Generator().manual_seed(seed))


def text_of(tokens: int = 4000, length: int = 32) -> FitText:
    stream = ids_of(1, tokens)[0].tolist()
    return fit_text([stream], separator=None, length=length, validation_tokens=256, seed=0, device="cpu")


def converted(folder: Path, family: str, mode: str) -> tuple[Any, Any]:
    model = write_checkpoint(folder / "model", family, initializer_range=0.2)
    text = write_text(folder / "text.txt")
    chosen: dict[str, Any] = {} if mode == "geometric" else {"candidates": 4}
    if mode == "adaptive":
        mode, chosen = "prefilter", {"candidates": 4, "adaptive": True}
    bundle = convert_checkpoint(
        str(model), out=folder / "bundle", calibration=str(text), tokens=2000, sequence_length=64, alpha=0.3,
        levels=1, colour=2, mode=mode, **chosen,
    ).bundle  # fmt: skip
    return bundle, load_base(model, dtype="float32")[0]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("lm_weight", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, plain: bool, lm_weight: float
) -> None:
    monkeypatch.setitem(losses.CHUNK, "cpu", 10)
    teacher, student, ids = pico_model("olmoe"), pico_model("olmoe", seed=1), ids_of(3, 9)
    distillation = Distillation(teacher, student, lm_weight=lm_weight)
    assert distillation.plain_head
    distillation.plain_head = plain
    loss, parts = distillation(ids)
    loss.backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    ours = functional.log_softmax(student(ids).logits, -1)
    with torch.no_grad():
        theirs = functional.log_softmax(teacher(ids).logits, -1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    nll = functional.nll_loss(ours[:, :-1].reshape(-1, 160), ids[:, 1:].reshape(-1), reduction="sum") / 27
    (divergence + lm_weight * nll).backward()
    torch.testing.assert_close(parts, torch.stack([divergence, nll]).detach())
    torch.testing.assert_close(loss.detach(), (divergence + lm_weight * nll).detach())
    assert "lm_head.weight" in found
    for name, parameter in student.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_head_that_bends_logits_is_not_taken_for_plain() -> None:
    assert losses.has_plain_head(pico_model("olmoe"))
    assert not losses.has_plain_head(pico_model("granitemoe", logits_scaling=3.0))


@pytest.mark.parametrize("mode", ["geometric", "prefilter", "adaptive"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_router_routes_as_the_attached_one(tmp_path: Path, family: str, mode: Any) -> None:
    bundle, teacher = converted(tmp_path, family, mode)
    student = make_student(teacher, bundle, scope="geometry", mode=None)
    ids = ids_of(2, 20)
    with torch.no_grad():
        trained = student.model(ids).logits
        with attach(teacher, bundle):
            torch.testing.assert_close(trained, teacher(ids).logits, rtol=0, atol=0)
    student.detach()
    with torch.no_grad():
        assert torch.equal(student.model(ids).logits, teacher(ids).logits)


@pytest.mark.parametrize("scope", ["geometry", "geometry+norms", "all"])
def test_frozen_tensors_are_shared_and_only_the_scope_is_trained(tmp_path: Path, scope: Any) -> None:
    bundle, teacher = converted(tmp_path, "deepseek_v3", "geometric")
    student = make_student(teacher, bundle, scope=scope, mode=None)
    own = dict(student.model.named_parameters())
    copied = {name for name, p in teacher.named_parameters() if own[name] is not p}
    kept = {name for name in copied if not own[name].requires_grad}
    if scope == "geometry":
        assert not copied
    elif scope == "geometry+norms":
        assert copied
        assert all("norm" in name for name in copied)
    else:
        assert copied == {name for name, _ in teacher.named_parameters()}
    assert kept == {name for name in copied if name.endswith("gate.weight")}
    assert not any(p.requires_grad for p in teacher.parameters())
    distillation = Distillation(teacher, student.model, lm_weight=0.0)
    distillation(ids_of(2, 16))[0].backward()
    assert all(p.grad is not None for p in student.geometry())


def test_an_optimiser_step_moves_masters_and_parameters_alike() -> None:
    geometry = [torch.nn.Parameter(torch.full((4,), 100.0)), torch.nn.Parameter(torch.full((4,), 0.01))]
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimiser = Optimiser(geometry, [weight], lr=0.1, weights_lr=1e-3, clip=1e9)
    for parameter in (*geometry, weight):
        parameter.grad = torch.ones_like(parameter)
    optimiser.step(1.0)
    torch.testing.assert_close(geometry[0].detach(), torch.full((4,), 90.0))
    torch.testing.assert_close(geometry[1].detach(), torch.full((4,), 0.009))
    torch.testing.assert_close(optimiser.masters[2], torch.full((4,), 0.999))
    assert torch.equal(weight.detach(), torch.full((4,), 0.999).bfloat16())
    assert weight.grad is None


def test_the_rate_rises_then_falls() -> None:
    rates = [rate_at(x / 1000, x, 9) for x in range(1001)]
    assert rates.index(max(rates)) == 9
    assert rates[9] == pytest.approx(1.0, abs=1e-3)
    assert rates[0] == pytest.approx(0.1)
    assert rates[1000] == pytest.approx(0.01)
    assert rate_at(1.5, 2000, 9) == pytest.approx(0.01)
    assert rate_at(0.0, 0, 0) == 1.0


def test_a_first_step_that_takes_long_does_not_use_up_the_rise() -> None:
    settings = HealSettings(minutes=1.0)
    assert rate_at(0.3, 1, settings.rise) < 0.05
    assert [HealSettings(steps=steps).rise for steps in (5, 100, 5000)] == [0, 10, 50]
    assert HealSettings(steps=100, warmup=70).rise == 70


def test_defaults_by_device_are_in_the_record() -> None:
    found = [HealSettings(minutes=10, device=device).as_json() for device in ("cpu", "cuda:1")]
    names = ("weights_lr", "batch_tokens", "compiled", "recorded")
    assert [[record[name] for name in names] for record in found] == [
        [5e-4, 2048, False, False],
        [1e-3, 16384, True, True],
    ]
    assert not HealSettings(minutes=1, device="cuda").records  # compilation would take half of it
    assert HealSettings(steps=1, weights_lr=2e-3).as_json()["weights_lr"] == 2e-3


def test_training_windows_never_touch_the_held_back_ones() -> None:
    text = fit_text(
        [list(range(3000)), list(range(3000, 5000))], separator=9999, length=32, validation_tokens=400, seed=4,
        device="cpu",
    )  # fmt: skip
    assert text.held_back.shape == (12, 32)
    held = set(text.held_back.flatten().tolist()) - {9999}
    drawn = text.draw(32, 3000, (0, 1))
    assert not held & set(drawn.flatten().tolist())
    assert len(set(drawn.flatten().tolist())) > 4500
    assert torch.equal(drawn, text.draw(32, 3000, (0, 1)))
    assert not torch.equal(drawn, text.draw(32, 3000, (0, 2)))


def test_training_documents_are_those_that_do_not_certify_or_evaluate(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = write_checkpoint(tmp_path / "model", "olmoe")
    tokenizer = AutoTokenizer.from_pretrained(model)
    source = write_text(tmp_path / "text.txt")
    options: dict[str, Any] = {"tokens": 1200, "length": 32, "seed": 3}
    splits = calibration_splits(tokenizer, source, **options)
    found = [tuple(ids) for ids in training_documents(tokenizer, source, **options)]
    every = [tuple(tokenise(tokenizer, document)) for document in read_documents(source)]
    used = {name: {w.ids[:4] for w in part.windows} for name, part in splits.items()}
    assert len(found) == len(every) - splits["certify"].split.documents - splits["evaluate"].split.documents
    joined = {ids[i : i + 4] for ids in found for i in range(0, len(ids), 32)}
    assert used["fit"] <= joined
    assert not joined & (used["certify"] | used["evaluate"])


def test_sampled_text_begins_with_real_text_and_is_a_function_of_seed_and_number() -> None:
    teacher, text = pico_model("olmoe"), text_of()
    settings: dict[str, Any] = {"length": 16, "window": 32, "batch": 2}
    first, second = (SampledText(teacher, text, seed=5, **settings) for _ in range(2))
    batches = [first.take(number) for number in range(2 * USES * first.batches)]
    assert batches[0].shape == (2, 32)
    assert torch.equal(second.take(len(batches) - 1), batches[-1])
    prompts = {tuple(row[:8]) for row in text.tokens.unfold(0, 8, 1).tolist()}
    rows = [row for batch in batches for row in batch.tolist()]
    assert all(tuple(row[:8]) in prompts and tuple(row[16:24]) in prompts for row in rows)


def test_sampled_windows_are_drawn_from_the_newest_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "KEPT", 2)
    made = SampledText(pico_model("olmoe"), text_of(), length=16, window=16, batch=4, seed=5)
    steps = USES * made.batches
    windows = [
        {tuple(row) for n in range(steps) for row in made.take(k * steps + n).tolist()} for k in range(3)
    ]
    assert len(windows[0]) == 4 * made.batches
    assert windows[0] < windows[1]  # the first round goes on
    assert not windows[0] & windows[2]  # until it is too old
    assert len(windows[2]) == 8 * made.batches


def test_sampled_tokens_follow_the_model() -> None:
    from spectral_convert.heal.sample import write_on

    teacher = pico_model("olmoe", initializer_range=0.5)
    prompt = ids_of(1, 6).expand(4000, 6)
    drawn = write_on(teacher, prompt, 7, torch.Generator().manual_seed(2))[:, 6]
    with torch.no_grad():
        wanted = teacher(prompt[:1]).logits[0, -1].softmax(-1)
    found = torch.bincount(drawn, minlength=160) / 4000
    assert float((found - wanted).abs().max()) < 0.03
    assert float(wanted.max()) > 0.05


def test_the_load_term_is_zero_where_loads_agree_and_pulls_down_what_is_too_busy(tmp_path: Path) -> None:
    bundle, teacher = converted(tmp_path, "olmoe", "geometric")
    student = make_student(teacher, bundle, scope="geometry", mode=None)
    keeper = LoadKeeper(teacher_sites(teacher, student), list(student.routers.values()))
    ids = ids_of(4, 32)
    with keeper.watching():
        teacher(ids)
        student.model(ids)
    term = keeper.excess()
    term.backward()
    for site, router in zip(keeper.sites, keeper.routers, strict=True):
        assert router.beta.grad is not None
        over: Any = router.load - site.module.spectral_load
        assert float(router.beta.grad[over.argmax()]) > 0
        site.module.spectral_load = router.load
    assert float(keeper.excess().detach()) == 0.0
    assert type(keeper.sites[0].module).__name__ == "OlmoeTopKRouter"
    assert balance(torch.tensor([0.5, 0.5, 0.0, 0.0])) == {
        "busiest": 2.0,
        "effective_experts": 2.0,
        "unused": 2,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_routers_term_is_the_divergence_of_scores_and_moves_every_layers_geometry(
    tmp_path: Path, family: str
) -> None:
    bundle, teacher = converted(tmp_path, family, "geometric")
    student = make_student(teacher, bundle, scope="geometry", mode=None)
    sites = teacher_sites(teacher, student)
    keeper = LoadKeeper(sites, list(student.routers.values()))
    with keeper.watching():
        teacher(ids_of(4, 32))
        student.model(ids_of(4, 32))
    term, wanted = keeper.unlike(), []
    for site, router in zip(sites, keeper.routers, strict=True):
        ours, theirs = router.scored.detach().double(), site.module.spectral_scores.double()
        if router.rule.score == "logits":
            ours, theirs = ours.softmax(dim=1), theirs.softmax(dim=1)
        apart = theirs * (theirs / ours).log()
        if router.rule.score == "sigmoid":  # chances of every expert by itself, not shares of one
            apart = apart + (1 - theirs) * ((1 - theirs) / (1 - ours)).log()
        else:
            torch.testing.assert_close(
                theirs.sum(dim=1), torch.ones(128, dtype=torch.float64), rtol=0, atol=1e-6
            )
        wanted.append(apart.sum(dim=1).mean())
    torch.testing.assert_close(term.detach().double(), torch.stack(wanted).mean(), rtol=1e-4, atol=1e-6)
    assert float(term.detach()) > 1e-4
    term.backward()
    assert all(float(router.projection.grad.abs().max()) > 0 for router in keeper.routers)
    for site, router in zip(sites, keeper.routers, strict=True):
        site.module.spectral_scores = router.scored.detach()
    assert abs(float(keeper.unlike().detach())) < 1e-6


def test_the_listwise_loss_pulls_the_gates_choice_into_the_candidates() -> None:
    rule = GateRule(experts=6, top_k=2)
    exact = torch.tensor([[5.0, 4.0, 0.0, 0.0, 0.0, 0.0]])
    order = torch.tensor([[0.0, 3.0, 2.0, 2.5, 0.1, 0.2]], requires_grad=True)
    three = torch.tensor([[3]])
    listwise(rule, order, exact, None, three).backward()
    assert order.grad is not None
    assert order.grad[0].argmin() == 0
    inside = listwise(rule, exact, exact, None, three)
    assert float(inside) < float(listwise(rule, order.detach(), exact, None, three))


def test_progress_calls_a_rising_or_broken_loss_a_divergence() -> None:
    progress = Progress()
    progress.observe([1.0] * 30, 3.0)
    progress.observe([2.9] * 10, 3.0)
    assert progress.lowest == 1.0
    with pytest.raises(HealingDiverged, match="expected a falling loss, found 3"):
        progress.observe([9.0] * 30, 3.0)
    with pytest.raises(HealingDiverged, match="expected a finite loss, found inf"):
        Progress().observe([1.0, float("inf")], 3.0)
    assert Progress.from_json(progress.as_json()) == progress
    assert np.isinf(Progress.from_json(Progress().as_json()).best)


def test_documents_are_joined_by_the_separator() -> None:
    documents = [[ord(letter) for letter in text[:40]] for text in pico_documents()]
    text = fit_text(documents, separator=2, length=8, validation_tokens=8, seed=0, device="cpu")
    assert text.tokens.tolist()[40] == 2
    assert len(text.tokens) == sum(len(document) + 1 for document in documents)
