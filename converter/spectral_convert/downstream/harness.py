"""Tasks of EleutherAI's lm-evaluation-harness, when it is installed: the model as it now routes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral_runtime.errors import ConfigError

COUNTS = ("sample_len", "sample_count")
"""What the harness lists among the metrics but is none."""


def require_harness() -> None:
    """Raises ConfigError with the way to install it, before any model is run."""
    _harness()


def _harness() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
    except ImportError as error:
        raise ConfigError(
            "evaluate.tasks", expected="lm-eval", found=str(error), remedy="pip install 'lm-eval[hf]'"
        ) from error
    return lm_eval


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None,
    folder: str | Path | None,
    seed: int,
) -> dict[str, Any]:
    """Results by task: every metric with its standard error, sample count and task version.

    Args:
        model: as it now routes.
        tokenizer: of the model.
        tasks: names the harness knows.
        limit: examples a task.
        folder: of further task definitions.
        seed: of the harness.

    Raises:
        ConfigError: an unknown task, or data that cannot be had.
    """
    harness = _harness()
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if folder is None else str(folder))
    unknown = sorted(set(tasks) - set(manager.match_tasks(list(tasks))))
    if unknown:
        remedy = "`lm-eval ls tasks` lists those it knows; --task-folder adds others"
        raise ConfigError("evaluate.tasks", expected="known tasks", found=", ".join(unknown), remedy=remedy)
    try:
        results = harness.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer), tasks=list(tasks), limit=limit,
            task_manager=manager, bootstrap_iters=1000, log_samples=False,
            random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
    except (OSError, ConnectionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        remedy = "task data comes from the Hub: load it once, or point HF_HOME at a copy"
        raise ConfigError("evaluate.tasks", expected="task data", found=reason, remedy=remedy) from error
    return {name: _task(name, results) for name in results["results"]}


def _task(name: str, found: dict[str, Any]) -> dict[str, Any]:
    metrics = {
        key.removesuffix(",none"): float(value)
        for key, value in found["results"][name].items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in COUNTS
    }
    samples = found.get("n-samples", {}).get(name, {}).get("effective")
    return {"metrics": metrics, "samples": samples, "version": found.get("versions", {}).get(name)}


def compare_tasks(base: dict[str, Any], converted: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a task and metric: base, converted, difference and the harness' own standard errors."""
    return [
        {
            "task": name, "metric": metric, "base": value, "converted": converted[name]["metrics"][metric],
            "delta": converted[name]["metrics"][metric] - value,
            "stderr_base": task["metrics"].get(f"{metric}_stderr"),
            "stderr": converted[name]["metrics"].get(f"{metric}_stderr"),
            "samples": task["samples"], "version": task["version"],
        }
        for name, task in base.items()
        for metric, value in task["metrics"].items()
        if not metric.endswith("_stderr") and metric in converted[name]["metrics"]
    ]  # fmt: skip
