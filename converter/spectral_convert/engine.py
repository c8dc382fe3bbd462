"""Engines: where the fits of a conversion's layers run: here, one after the other, or as Ray tasks on a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import nn

from spectral_convert.assemble import tool_versions
from spectral_convert.captured import LayerCapture
from spectral_runtime.attaching.contract import STANDARD
from spectral_runtime.attaching.discovery import Place, RouterSite
from spectral_runtime.errors import ConfigError, UserError

T = TypeVar("T")
EngineName = Literal["local", "ray"]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What the numerical libraries read when they are loaded; the last bits of a sum depend on it."""
PROTOCOL = 4
"""Of pickle: arrays are copied into memory of their own."""


class Engine(Protocol):
    """Runs the fits of a conversion."""

    def map(self, prepare: Callable[..., T], *columns: Iterable[Any]) -> Iterator[T]:
        """Results of `prepare` for every row of the columns, in order; it runs in this process."""
        ...

    def call(self, make: Callable[..., T], *args: Any) -> T:
        """What `make` returns; called by `prepare`, runs wherever the engine runs things."""
        ...


class Local:
    """One layer after the other, in this process."""

    def map(self, prepare: Callable[..., T], *columns: Iterable[Any]) -> Iterator[T]:
        """See `Engine`."""
        yield from map(prepare, *columns)

    def call(self, make: Callable[..., T], *args: Any) -> T:
        """See `Engine`."""
        return make(*args)


class Ray:
    """Each call is a task of a Ray cluster, as many at a time as it has processors."""

    def __init__(self, client: Any, gpus: int) -> None:
        self.client = client
        self.at_once = max(1, int(client.cluster_resources().get("CPU", 1)))
        threads = {name: os.environ.get(name, str(_processors())) for name in THREADS}
        self.settings = {"num_cpus": 1, "num_gpus": gpus, "runtime_env": {"env_vars": threads}}

    def map(self, prepare: Callable[..., T], *columns: Iterable[Any]) -> Iterator[T]:
        """See `Engine`."""
        with ThreadPoolExecutor(self.at_once) as waiting:
            yield from waiting.map(prepare, *columns)

    def call(self, make: Callable[..., T], *args: Any) -> T:
        """See `Engine`.

        Raises:
            ConfigError: the node has other versions, which could give other bits.
        """
        from ray.exceptions import RayError, RayTaskError

        plain = [_alone(value) if isinstance(value, LayerCapture) else value for value in args]
        # As bytes: arrays that lie in Ray's own memory are read-only.
        job = pickle.dumps((tool_versions(), torch.get_num_threads(), make, plain), PROTOCOL)
        task = self.client.remote(**self.settings)(_on_node)
        try:
            found: T = pickle.loads(self.client.get(task.remote(job)))
        except RayTaskError as fault:
            cause = fault.cause
            raise cause if isinstance(cause, UserError) else _refusal(str(cause)) from fault
        except RayError as fault:
            raise _refusal(str(fault)) from fault
        return found


def _on_node(job: bytes) -> bytes:
    """The body of a task: as many threads as the driver has, and its versions."""
    versions, threads, make, args = pickle.loads(job)
    if tool_versions() != versions:
        remedy = "install the same versions on every node: others may give other bits"
        raise ConfigError("--engine ray", expected=str(versions), found=str(tool_versions()), remedy=remedy)
    torch.set_num_threads(threads)
    return pickle.dumps(make(*args), PROTOCOL)


def _alone(capture: LayerCapture) -> LayerCapture:
    """A capture whose site holds the gate's tensors and not the model around them."""
    site, holder = capture.site, nn.Module()
    places = {name: _kept(holder, name, getattr(site, name)) for name in ("weight", "bias", "choice_bias")}
    alone = RouterSite(
        path=site.path, module=holder, block=holder, contract=STANDARD, logits_index=site.logits_index,
        weight_at=(holder, "weight"), bias_at=places["bias"], choice_bias_at=places["choice_bias"],
    )  # fmt: skip
    return dataclasses.replace(capture, site=alone)


def _kept(holder: nn.Module, name: str, tensor: torch.Tensor | None) -> Place | None:
    if tensor is None:
        return None
    holder.register_buffer(name, tensor.detach())
    return holder, name


def _processors() -> int:
    """Processors this process may use: what OpenBLAS takes unless told otherwise."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_engine(name: str) -> None:
    """Raises ConfigError for an unknown engine, or one whose package is absent; before any work is done."""
    if name not in ("local", "ray"):
        raise ConfigError("engine", expected="local or ray", found=name)
    if name == "ray" and importlib.util.find_spec("ray") is None:
        remedy = 'pip install "spectral-moe[ray]", here and on every node'
        raise ConfigError("--engine ray", expected="the package ray", found="none", remedy=remedy)


@contextlib.contextmanager
def open_engine(name: EngineName, *, address: str | None = None, device: str = "cpu") -> Iterator[Engine]:
    """The engine of that name; a connection to a cluster that is made here ends here.

    Args:
        name: `local`, or `ray`, whose nodes need the same installation and processors of the same kind.
        address: of the cluster's head; None takes RAY_ADDRESS, or the cluster of this machine.
        device: of the conversion; other than `cpu`, each task takes a GPU of the cluster.

    Raises:
        ConfigError: no package, no cluster, or no GPU in it.
    """
    require_engine(name)
    if name == "local":
        yield Local()
        return
    import ray

    joined = not ray.is_initialized()
    if joined:
        _join(ray, address)
    try:
        gpus = int(not device.startswith("cpu"))
        if ray.cluster_resources().get("GPU", 0) < gpus:
            raise _refusal("a cluster without one", expected=f"a GPU for --device {device}")
        yield Ray(ray, gpus)
    finally:
        if joined:
            ray.shutdown()


def _join(ray: Any, address: str | None) -> None:
    place = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        ray.init(address=place, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, OSError, RuntimeError, ValueError) as fault:
        raise _refusal(str(fault), expected=f"a cluster at {place}") from fault


def _refusal(found: str, *, expected: str = "a task that ends") -> ConfigError:
    reason = found.strip().split("\n")[0][:300]
    remedy = "start one with `ray start --head`, or name it with --ray-address or RAY_ADDRESS"
    if "cluster" not in expected:
        remedy = "see the log of that node"
    return ConfigError("--engine ray", expected=expected, found=reason, remedy=remedy)
