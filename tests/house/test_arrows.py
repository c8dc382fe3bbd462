"""The arrows: recipes -> converter -> runtime -> native, never backwards; no stage imports a stage."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNTIME, CONVERTER, PLUGINS = (
    ROOT / "runtime/spectral_runtime",
    ROOT / "converter/spectral_convert",
    ROOT / "plugins",
)

HEAVY = {"torch", "transformers", "safetensors", "accelerate"}
STAGES = {
    *("plan", "capture", "fit", "tree", "certify", "choose", "heal", "assemble"),
    *("evaluate", "analyse", "bench", "report", "push", "export"),
}
LAYERS = (
    {"errors"},
    {"strict"},
    {"gate", "geometry"},
    {"_native"},
    {"reference"},
    {"bundle", "bvh", "cpu", "cuda"},
    {"optix"},
    {"backends"},
    {"router"},
    {"attaching"},
    {"onnxruntime", "tensorrt"},
)
"""The rooms of the runtime from the ground up; a room imports only rooms below it."""
NATIVE_ROOMS = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "optix": {"core", "cuda", "optix"},
    "bindings": {"core", "cpu", "cuda", "optix", "bindings"},
    "tensorrt": {"core", "cpu", "cuda", "optix", "tensorrt"},
    "onnxruntime": {"core", "cpu", "cuda", "optix", "onnxruntime"},
}
VENDORS = {
    r"pybind11/|Python\.h": {"bindings"},
    r"cuda(_runtime)?(_api)?\.h|driver_types\.h|cuda_fp16\.h": {"cuda", "optix", "tensorrt", "onnxruntime"},
    r"optix.*\.h": {"optix"},
    r"NvInfer.*\.h": {"tensorrt"},
    r"onnxruntime.*\.h": {"onnxruntime"},
}
"""Headers to the rooms that may include them in angle brackets."""


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, inside functions too, but not those for type checkers alone."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    checked = {id(child) for node in nodes if _for_checkers(node) for child in ast.walk(node)}
    for node in nodes:
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def room_of(path: Path, package: Path) -> str:
    """The file or folder directly below the package that this file is in."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def python_files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def test_there_is_something_to_read() -> None:
    assert len(python_files(RUNTIME)) > 10
    assert any(name.startswith("spectral_runtime.errors") for name in imports(RUNTIME / "strict.py"))


def test_runtime_does_not_know_the_converter_or_the_tests() -> None:
    forbidden = {"spectral_convert", "tests", "pico_bundles", "pytest"}
    for path in python_files(RUNTIME):
        assert not {name.split(".")[0] for name in imports(path)} & forbidden, path


def test_heavy_libraries_stay_in_attach() -> None:
    for path in python_files(RUNTIME):
        found = {name.split(".")[0] for name in imports(path)} & HEAVY
        assert not found or room_of(path, RUNTIME) == "attaching", (path, found)


def test_rooms_of_the_runtime_are_listed() -> None:
    rooms = {room_of(path, RUNTIME) for path in python_files(RUNTIME)} - {"__init__"}
    assert rooms <= set().union(*LAYERS), "give the new room its place in LAYERS"


def test_rooms_of_the_runtime_import_downwards() -> None:
    rank = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
    for path in python_files(RUNTIME):
        room = room_of(path, RUNTIME)
        for name in imports(path):
            package, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if room != "__init__" and package == "spectral_runtime" and other in rank and other != room:
                assert rank[other] < rank[room], f"{path.name} imports {name}"


def test_only_the_runtime_touches_the_native_module() -> None:
    for path in python_files(CONVERTER):
        assert not any(name.startswith("spectral_runtime._native") for name in imports(path)), path


def test_a_stage_never_imports_a_stage() -> None:
    for path in python_files(CONVERTER):
        room = room_of(path, CONVERTER)
        if room not in STAGES:
            continue
        for name in imports(path):
            package, _, rest = name.partition(".")
            other = rest.split(".")[0]
            assert package != "spectral_convert" or other == room or other not in STAGES, (
                f"{path} imports {name}"
            )


def test_stages_do_not_know_the_story() -> None:
    for path in python_files(CONVERTER):
        if room_of(path, CONVERTER) in {"cli", "convert", "__init__", "__main__"}:
            continue
        above = {"spectral_convert.cli", "spectral_convert.convert"}
        assert not any(
            name.startswith(tuple(f"{a}." for a in above)) or name in above for name in imports(path)
        ), path


def test_nothing_imports_the_tests() -> None:
    for path in (*python_files(RUNTIME), *python_files(CONVERTER)):
        assert not any(name.split(".")[0] in {"tests", "conftest", "pytest"} for name in imports(path)), path


def native_files() -> list[Path]:
    return sorted(p for p in PLUGINS.rglob("*") if p.suffix in {".h", ".inl", ".cpp", ".cu", ".cuh"})


@pytest.mark.parametrize("path", native_files(), ids=lambda path: path.relative_to(PLUGINS).as_posix())
def test_native_includes(path: Path) -> None:
    room = path.relative_to(PLUGINS).parts[0]
    assert room in NATIVE_ROOMS, "give the new room its place in NATIVE_ROOMS"
    allowed = NATIVE_ROOMS[room]
    for bracket, name in re.findall(
        r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE
    ):
        if bracket == '"':
            assert _room_of_header(path, name) in allowed, f"{path.name} includes {name}"
        for pattern, rooms in VENDORS.items():
            assert bracket == '"' or not re.match(pattern, name) or room in rooms, (
                f"{path.name} includes {name}"
            )


def _room_of_header(path: Path, name: str) -> str:
    """Which room a quoted header lies in: beside the file, in its include folder, or below another room."""
    places = [path.parent, PLUGINS, *(PLUGINS / room for room in NATIVE_ROOMS)]
    places += [PLUGINS / room / "include" for room in NATIVE_ROOMS]
    for place in places:
        found = (place / name).resolve()
        if found.is_file():
            return found.relative_to(PLUGINS.resolve()).parts[0]
    return path.relative_to(PLUGINS).parts[0]  # generated beside its user
