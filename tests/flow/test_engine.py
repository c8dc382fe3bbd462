"""The engines give the same bytes: layers fitted here, and layers fitted as tasks of a local Ray cluster."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pico_models import write_checkpoint, write_text

from spectral_convert import engine
from spectral_convert.cli import spectral
from spectral_convert.convert import convert_checkpoint
from spectral_runtime.errors import ConfigError, ModelError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A gate with a choice bias, so that every tensor of a site travels."""
    folder = tmp_path_factory.mktemp("world")
    model = write_checkpoint(folder / "model", "deepseek_v3", num_hidden_layers=3)
    text = write_text(folder / "text.txt")
    return {
        "model": str(model), "calibration": str(text), "tokens": 600, "sequence_length": 32,
        "levels": 2, "alpha": 0.2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two processors of this machine as a Ray cluster."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token is written into the home folder
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options = {
            "include_dashboard": False,
            "logging_level": "ERROR",
            "log_to_driver": False,
            "_node_ip_address": "127.0.0.1",
        }
        try:
            ray.init(num_cpus=2, object_store_memory=2**27, **options)
        except Exception as fault:  # a sandbox without shared memory or loopback
            pytest.skip(f"a local Ray does not start here: {str(fault).splitlines()[0]}")
        yield ray
        ray.shutdown()


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.filterwarnings("default::ResourceWarning", "default::DeprecationWarning")
def test_ray_gives_the_bytes_of_local(world: dict[str, Any], cluster: Any, tmp_path: Path) -> None:
    convert_checkpoint(**world, out=tmp_path / "local")
    convert_checkpoint(**world, out=tmp_path / "ray", work=tmp_path / "work", engine="ray")
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "local")
    assert len(list((tmp_path / "work").glob("fit-*"))) == 2
    assert cluster.is_initialized(), "a connection of the caller is left alone"


def test_a_refusal_on_a_node_is_told_as_here(cluster: Any) -> None:
    with engine.open_engine("ray") as fits:
        with pytest.raises(ConfigError, match=r"^engine: expected local or ray, found dask$"):
            fits.call(engine.require_engine, "dask")
        with pytest.raises(ConfigError, match=r"--engine ray: expected a task that ends.*invalid literal"):
            fits.call(int, "not a number")


def test_other_versions_on_a_node_are_refused() -> None:
    job = pickle.dumps(({"spectral": "0"}, 1, int, []))
    with pytest.raises(
        ConfigError, match=r"--engine ray: expected .*install the same versions on every node"
    ):
        engine._on_node(job)


def test_absent_package_and_unknown_engine(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="engine: expected local or ray, found dask"):
        convert_checkpoint(**world, out=tmp_path / "a", engine="dask")  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    arguments = ["convert", world["model"], "--calibration", "x", "--out", str(tmp_path / "b")]
    done = CliRunner().invoke(spectral, [*arguments, "--engine", "ray"])
    assert isinstance(done.exception, ConfigError)
    assert 'pip install "spectral-moe[ray]"' in str(done.exception)


def test_absent_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def nowhere(**options: Any) -> None:
        raise ConnectionError(f"Could not find any running Ray instance at {options['address']}.")

    monkeypatch.setattr(ray, "init", nowhere)
    expected = "expected a cluster at head:6379, found Could not find.*ray start --head.*--ray-address"
    with pytest.raises(ConfigError, match=expected), engine.open_engine("ray", address="head:6379"):
        pass


def test_no_gpu_in_the_cluster(cluster: Any) -> None:
    expected = "expected a GPU for --device cuda, found a cluster without one"
    with pytest.raises(ConfigError, match=expected), engine.open_engine("ray", device="cuda"):
        pass


def test_errors_keep_their_parts_through_a_pickle() -> None:
    error = ModelError("there", expected="one", found="two", remedy="choose")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ModelError
    assert (str(again), again.found) == (str(error), "two")
