"""What makes a healing fast changes nothing: experts, attention without masks, the cache of written text, the recorded step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pico_models import FAMILIES, pico_model

from spectral_convert import healing
from spectral_convert.heal import sample
from spectral_convert.heal.attention import maskless
from spectral_convert.heal.experts import NAME, gathered
from spectral_convert.heal.sample import rows_that_fit, write_on
from spectral_convert.heal.settings import HealSettings
from spectral_runtime.errors import ConfigError

IDS = torch.arange(2 * 40).reshape(2, 40) * 7 % 160


def answer(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradient of every parameter that has one."""
    model.zero_grad()
    output = model(input_ids=IDS, labels=IDS, use_cache=False)
    output.loss.backward()
    return output.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_gathered_experts_have_the_same_logits_and_gradients(family: str) -> None:
    model = pico_model(family, initializer_range=0.2)
    before = model.config._experts_implementation
    logits, gradients = answer(model)
    with gathered([model]):
        assert before != "grouped_mm" or model.config._experts_implementation == NAME
        found, moved = answer(model)
    assert model.config._experts_implementation == before
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-6)
    assert moved.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(moved[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_experts_with_a_bias_are_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import moe

    called = []
    plain = moe.grouped_mm_experts_forward
    monkeypatch.setattr(moe, "grouped_mm_experts_forward", lambda *given: called.append(1) or plain(*given))
    model = pico_model("gpt_oss")
    with gathered([model]), torch.no_grad():
        model(IDS)
    assert len(called) == model.config.num_hidden_layers


@pytest.mark.parametrize("kind", ["has_bias", "has_gate", "has_post_expert_norm"])
def test_other_kinds_of_experts_are_left_to_transformers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import moe

    given: list[Any] = []
    monkeypatch.setattr(moe, "grouped_mm_experts_forward", lambda *said: given.append(said) or said[1])
    model = pico_model("olmoe")
    experts = [module for module in model.modules() if hasattr(module, "is_transposed")]
    for module in experts:
        setattr(module, kind, kind != "has_gate")
    with gathered([model]), torch.no_grad():
        model(IDS)
    assert [said[0] for said in given] == experts


@pytest.mark.parametrize(
    ("family", "window", "changed"),
    [
        ("olmoe", {}, True),
        ("deepseek_v3", {}, True),
        ("mixtral", {"sliding_window": 16}, False),
        ("gpt_oss", {}, False),
    ],
)
def test_models_without_windows_need_no_mask(family: str, window: dict[str, Any], changed: bool) -> None:
    from transformers import masking_utils

    model = pico_model(family, initializer_range=0.2, **window)
    before = model.config._attn_implementation
    logits, gradients = answer(model)
    with maskless([model]), pytest.MonkeyPatch.context() as patch:
        assert (model.config._attn_implementation != before) is changed
        if changed:  # it would wait for the device
            patch.setattr(masking_utils, "find_packed_sequence_indices", None)
        found, moved = answer(model)
    assert model.config._attn_implementation == before
    assert torch.equal(found, logits)
    assert all(torch.equal(moved[name], gradient) for name, gradient in gradients.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_alike_without_masks(family: str) -> None:
    config = pico_model(family).config.get_text_config()
    narrow = {name: 16 for name in ("sliding_window", "attention_chunk_size") if getattr(config, name, None)}
    model = pico_model(family, initializer_range=0.2, **narrow)
    with torch.no_grad():
        expected = model(IDS, use_cache=False).logits
        with maskless([model]):
            assert torch.equal(model(IDS, use_cache=False).logits, expected)


# With larger weights a state-space layer's two forms differ enough to draw another token.
@pytest.mark.parametrize(
    ("family", "spread"),
    [("olmoe", 0.5), ("deepseek_v3", 0.5), ("gpt_oss", 0.5), *((f, 0.2) for f in FAMILIES)],
)
def test_text_is_written_as_without_a_cache(family: str, spread: float) -> None:
    model = pico_model(family, initializer_range=spread)
    prompt, length = IDS[:, :5], 30
    found = write_on(model, prompt, length, torch.Generator().manual_seed(4))
    generator, text = torch.Generator().manual_seed(4), prompt
    with torch.no_grad():
        while text.shape[1] < length:
            shares = model(text, use_cache=False).logits[:, -1].float().softmax(dim=-1)
            noise = torch.empty_like(shares).exponential_(generator=generator)
            text = torch.cat([text, (shares / noise).argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(found, text)


def test_a_cache_with_room_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    room = sample._make_room
    monkeypatch.setattr(sample, "_make_room", lambda cache, length: kept.append(cache) or room(cache, length))
    write_on(pico_model("olmoe"), IDS[:, :5], 30, torch.Generator().manual_seed(4))
    (cache,) = kept
    for layer in cache.layers:
        assert layer.get_seq_length() == 29  # the last token is not read
        assert layer.keys.data_ptr() == layer.spectral_room[0].data_ptr()
        assert layer.spectral_room[1].shape[2] == 30


def test_texts_at_one_time_are_as_many_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pico_model("olmoe")
    assert rows_that_fit(model, IDS[0], 64) == sample.ROWS["cpu"]
    config = model.config
    size = 2 * 4 * config.num_hidden_layers * config.hidden_size * 64
    monkeypatch.setattr(sample, "free_memory", lambda _: 10 * size / sample.CACHE_SHARE)
    assert rows_that_fit(model, IDS[0], 64) == 10
    monkeypatch.setattr(sample, "free_memory", lambda _: 0)
    assert rows_that_fit(model, IDS[0], 64) == 1


@pytest.mark.parametrize(("family", "records"), [("olmoe", True), ("gpt_oss", False)])
def test_a_step_with_masks_is_not_recorded(family: str, records: bool) -> None:
    settings = HealSettings(minutes=10, device="cuda")
    assert healing._fitting(settings, pico_model(family)).as_json()["recorded"] is records


def test_asking_for_it_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ConfigError, match=r"heal\.recorded: expected attention to all tokens before, found .* masks"
    ):
        healing._fitting(HealSettings(steps=9, device="cuda", recorded=True), pico_model("gpt_oss"))
    with pytest.raises(
        ConfigError, match=r"heal\.recorded: expected a CUDA device to record a step on, found cpu"
    ):
        HealSettings(steps=9, recorded=True)
