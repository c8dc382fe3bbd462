"""The distillation loss: divergence of two models' next-token distributions, the vocabulary in chunks of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CHUNK = {"cpu": 512, "cuda": 8192}
"""Tokens whose logits exist at one time."""
IGNORED = -100
"""Target of a token that has none."""

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def divergence_rows(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor, lm_weight: float
) -> Rows:
    """Sums over rows [n, V] of KL(teacher || student) and of the LM loss, and the gradient of both by `student`.

    Args:
        student: logits, any floating dtype.
        teacher: logits.
        targets: int64 [n], IGNORED where there is none.
        lm_weight: of the LM loss in the gradient.
    """
    ours, theirs = functional.log_softmax(student.float(), -1), functional.log_softmax(teacher.float(), -1)
    wanted = theirs.exp()
    divergence = (wanted * (theirs - ours)).sum(dim=-1).sum()  # by rows: one pass with the gradient
    known, places = targets != IGNORED, targets.clamp(min=0)[:, None]
    loss = -(ours.gather(1, places).squeeze(1) * known).sum()
    gradient = ours.exp() - wanted
    if lm_weight:
        hit = places == torch.arange(student.shape[1], device=student.device)
        gradient = gradient + lm_weight * known[:, None] * (ours.exp() - hit.float())
    return divergence, loss, gradient.to(student.dtype)


class _HeadDivergence(torch.autograd.Function):
    """Head and loss in one: the logits of a chunk are made, compared and dropped (as in Hsu et al. 2024, Liger)."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, job: _Job) -> Any:
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        sums = torch.zeros(2, device=hidden.device)
        for piece in job.pieces(len(hidden)):
            rows = job.rows(hidden[piece] @ weight.T, job.teacher(piece), job.targets[piece], job.lm_weight)
            sums += torch.stack(rows[:2])
            torch.mm(rows[2], weight, out=by_hidden[piece])
            if by_weight is not None:
                by_weight += (rows[2].T @ hidden[piece]).float()
        ctx.save_for_backward(by_hidden, by_weight)
        means = sums / len(hidden)
        ctx.share, ctx.kind = 1.0 / len(hidden), weight.dtype
        ctx.mark_non_differentiable(means)
        return means[0] + job.lm_weight * means[1], means

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        by_hidden, by_weight = ctx.saved_tensors
        scale = gradients[0] * ctx.share
        weight = None if by_weight is None else (by_weight * scale).to(ctx.kind)
        return by_hidden * scale.to(by_hidden.dtype), weight, None


class _LogitsDivergence(torch.autograd.Function):
    """The same from finished logits, for models whose head is not one matrix."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, job: _Job) -> Any:
        gradient, sums = torch.empty_like(logits), torch.zeros(2, device=logits.device)
        for piece in job.pieces(len(logits)):
            rows = job.rows(logits[piece], job.teacher(piece), job.targets[piece], job.lm_weight)
            sums += torch.stack(rows[:2])
            gradient[piece] = rows[2]
        ctx.save_for_backward(gradient)
        ctx.share, means = 1.0 / len(logits), sums / len(logits)
        ctx.mark_non_differentiable(means)
        return means[0] + job.lm_weight * means[1], means

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * (gradients[0] * ctx.share).to(gradient.dtype), None


@dataclass(frozen=True, slots=True)
class _Job:
    """What both forms need beside the tensors with gradients."""

    teacher: Callable[[slice], torch.Tensor]
    """Logits of a slice of tokens."""
    targets: torch.Tensor
    lm_weight: float
    rows: Callable[..., Rows]

    def pieces(self, count: int) -> list[slice]:
        step = CHUNK.get(self.targets.device.type, CHUNK["cpu"])
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]


class Distillation:
    """Compares a student with its teacher on the same windows.

    Args:
        teacher: the untouched model.
        student: the one in training, of the same architecture.
        lm_weight: weight of the language-model loss.
        compiled: fuse the loss of a chunk with torch.compile.
    """

    def __init__(self, teacher: Any, student: Any, *, lm_weight: float, compiled: bool = False) -> None:
        self.teacher, self.student, self.lm_weight = teacher, student, lm_weight
        self.compiled = compiled
        self.rows: Callable[..., Rows] = torch.compile(divergence_rows) if compiled else divergence_rows
        self.plain_head = has_plain_head(teacher)

    def __call__(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and [2] mean divergence and LM loss per token in nats, of windows int64 [B, N]."""
        blank = torch.full_like(ids[:, :1], IGNORED)
        targets = torch.cat([ids[:, 1:], blank], dim=1).reshape(-1)
        if not self.plain_head:
            with torch.no_grad():
                wanted = _logits(self.teacher, ids)
            job = _Job(wanted.__getitem__, targets, self.lm_weight, self.rows)
            return _LogitsDivergence.apply(_logits(self.student, ids), job)  # type: ignore[no-untyped-call,no-any-return]
        with torch.no_grad():
            states, head = _hidden(self.teacher, ids), self.teacher.get_output_embeddings().weight
        job = _Job(lambda piece: states[piece] @ head.T, targets, self.lm_weight, self.rows)
        weight = self.student.get_output_embeddings().weight
        return _HeadDivergence.apply(_hidden(self.student, ids), weight, job)  # type: ignore[no-untyped-call,no-any-return]

    def measure(self, windows: torch.Tensor, batch: int) -> tuple[float, float]:
        """Mean divergence and LM loss per token of windows int64 [V, N], `batch` at a time, without gradients."""
        total = torch.zeros(2, device=windows.device, dtype=torch.float64)
        # Compiled layers have one graph with and one without gradients: the second is not worth its making here.
        with torch.set_grad_enabled(self.compiled):
            for rows in torch.split(windows, batch):
                total += self(rows)[1].double() * len(rows)
        divergence, loss = (total / len(windows)).tolist()
        return divergence, loss


def _hidden(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states [T, D], as the head receives them."""
    states: torch.Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return states.reshape(-1, states.shape[-1])


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.reshape(-1, logits.shape[-1])


def has_plain_head(model: Any) -> bool:
    """Whether the logits are the last hidden states times the head's matrix and nothing else: tried, not assumed."""
    head, base = model.get_output_embeddings(), getattr(model, "base_model", None)
    if not isinstance(head, nn.Linear) or head.bias is not None or base is None or base is model:
        return False
    ids = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]
    with torch.no_grad():
        states, logits = _hidden(model, ids), _logits(model, ids)
    return torch.equal(states @ head.weight.T, logits) or torch.allclose(
        (states @ head.weight.T).float(), logits.float(), rtol=2e-2, atol=1e-3 * float(logits.abs().max())
    )
