"""The report: facts, verdict and page without a browser, then the page in a real headless Chromium."""

from __future__ import annotations

import html.parser
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Page, find_browser, open_browser
from click.testing import CliRunner
from pico_bundles import Arithmetic, digest, make_bundle

from spectral_convert.analyse.experts import analyse_experts
from spectral_convert.cli import spectral
from spectral_convert.convert import convert_checkpoint
from spectral_convert.report.page import embed
from spectral_convert.report.room import node_depths
from spectral_convert.report.write import write_report
from spectral_runtime.bundle import Certificate, load_bundle, write_bundle
from spectral_runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "demo"
PICTURES = ROOT / ".artefacts"
HOSTILE = 'He wrote </script><script>alert("x")</script> & <b>bold</b> <img src=x onerror=alert(1)> in it. '


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    (folder / "books.txt").write_text(
        (DEMO / "books.txt").read_text(encoding="utf-8")[:6000], encoding="utf-8"
    )
    (folder / "<i>odd.txt").write_text(HOSTILE * 30, encoding="utf-8")
    return folder


def bench_record() -> dict[str, Any]:
    rows = [
        {"path": "model.layers.0.mlp.gate", "arm": arm, "batch": batch, "median_us": base * batch, "p90_us": 9.0,
         "recall": 1.0}
        for arm, base in (("gate", 2.0), ("prefilter torch", 3.0))
        for batch in (1, 32)
    ]  # fmt: skip
    return {"machine": {"processor": "test"}, "repeats": 1, "rows": rows}


@pytest.fixture(scope="module")
def written(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a quick demo conversion with every kind of evidence."""
    folder = tmp_path_factory.mktemp("report")
    settings: dict[str, Any] = {"tokens": 6000, "sequence_length": 128, "alpha": 0.05, "levels": 2}
    convert_checkpoint(recipe=DEMO / "demo.yaml", out=folder / "demo", **settings)
    experts = analyse_experts(DEMO / "checkpoint", text=[text], max_tokens=3000, permutations=3)
    (folder / "experts.json").write_text(json.dumps({"kind": "experts", **experts}))
    (folder / "bench.json").write_text(json.dumps(bench_record()))
    evidence = [folder / "experts.json", folder / "bench.json"]
    out = folder / "report.html"
    return write_report(folder / "demo", out=out, text=text, evidence=evidence) | {"folder": folder}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 layers of 64 experts, random spheres, no text: what the first paint is judged on."""
    folder = tmp_path_factory.mktemp("wide")
    certificate = Certificate(
        alpha=0.01,
        candidates=16,
        risk=0.008,
        bound=0.009,
        tokens=999,
        documents=3,
        split_sha256=digest("certify"),
    )
    manifest, layers = make_bundle(
        Arithmetic(), layers=16, hidden=64, levels=4, experts=64, top_k=8, certificate=certificate
    )
    write_bundle(folder / "wide", manifest, layers)
    write_report(folder / "wide", out=folder / "report.html")
    return folder / "report.html"


class Reader(html.parser.HTMLParser):
    """What a browser would fetch, and the text outside scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if tag in {"script", "img", "iframe"} and given.get("src"):
            self.fetched.append(str(given["src"]))
        if tag == "link" and not str(given.get("href")).startswith("data:"):
            self.fetched.append(str(given.get("href")))


def test_page_is_one_file_under_12_mb(written: dict[str, Any]) -> None:
    page = Path(written["path"]).read_text(encoding="utf-8")
    assert written["bytes"] == len(page.encode()) < 12e6
    reader = Reader()
    reader.feed(page)
    assert reader.fetched == []
    assert reader.tags.count("script") == 3
    assert "img" not in reader.tags
    assert not list(written["folder"].glob(".report*"))


def test_verdict_says_both_sides(written: dict[str, Any]) -> None:
    lines = " ".join(written["verdict"])
    assert "perplexity" in lines
    assert "95 % interval" in lines
    assert "slower: the dense gate wins" in lines
    assert "Other text was not measured" in lines


def test_without_timings_nothing_is_claimed(wide: Path) -> None:
    page = wide.read_text(encoding="utf-8")
    assert "No timings were given, so nothing is claimed about speed" in page
    assert "No evaluation is in the bundle" in page


def test_embedded_text_cannot_leave_its_script() -> None:
    text = embed({"a": "</script><!--", "b": "&"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--", "b": "&"}


def test_depths_follow_the_tree(wide: Path) -> None:
    bvh = load_bundle(wide.parent / "wide").layers[0].bvh
    assert bvh is not None
    depths = node_depths(bvh)
    for node in range(bvh.nodes):
        if bvh.count[node] == 0:
            child = bvh.first[node]
            assert (depths[child : child + 2] == depths[node] + 1).all()
    assert depths[0] == 0
    assert np.bincount(depths).max() <= 2 ** depths.max()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{", "expected an evidence file in JSON"),
        ('{"kind": "poem"}', "evidence of a known kind, found poem"),
        ('{"kind": "evaluate", "protocol": {"base_routers": "0"}}', "about another one"),
    ],
)
def test_bad_evidence(wide: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        write_report(wide.parent / "wide", out=tmp_path / "r.html", evidence=[tmp_path / "e.json"])
    assert not (tmp_path / "r.html").exists()


def test_command(wide: Path, tmp_path: Path) -> None:
    arguments = ["report", str(wide.parent / "wide"), "--out", str(tmp_path / "a" / "r.html"), "--json"]
    result = CliRunner().invoke(spectral, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["bytes"] == (tmp_path / "a" / "r.html").stat().st_size


# ---- in the browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if find_browser() is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    pytest.importorskip("websocket", reason="websocket-client is not installed")
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


SHOWN = "document.getElementById('canvas').dataset.shown"
CHOOSE = """(() => { const node = document.getElementById('%s'); node.value = '%s';
node.dispatchEvent(new Event(node.type === 'range' ? 'input' : 'change')); })()"""
PIXELS = """(async () => { const url = await Plotly.toImage('canvas', {format: 'png', width: 300, height: 200});
const image = new Image(); image.src = url; await image.decode(); const canvas = document.createElement('canvas');
canvas.width = 300; canvas.height = 200; const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0);
return new Set(new Uint32Array(pen.getImageData(0, 0, 300, 200).data.buffer)).size; })()"""


def open_room(page: Page, file: Path, **screen: Any) -> None:
    page.size(screen.pop("width", 1280), screen.pop("height", 900), **screen)
    page.open(file)
    page.wait(f"{SHOWN} !== undefined")


@pytest.mark.parametrize(
    ("name", "screen"),
    [
        ("light", {}),
        ("dark", {"dark": True}),
        ("phone", {"width": 390, "height": 844, "phone": True}),
    ],
)
def test_page_opens_clean(page: Page, written: dict[str, Any], name: str, screen: dict[str, Any]) -> None:
    open_room(page, Path(written["path"]), **screen)
    page.run("document.getElementById('plots').scrollIntoView()")
    page.wait("document.querySelectorAll('[data-drawn]').length > 1")
    page.picture(PICTURES / f"report-{name}.png", whole=name != "phone")
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run(PIXELS) > 200


def test_layer_level_boxes_and_slider(page: Page, written: dict[str, Any]) -> None:
    open_room(page, Path(written["path"]))
    assert page.run(SHOWN) == "0/0"
    page.run(CHOOSE % ("layer", "2"))
    page.wait(f"{SHOWN} === '2/0'")
    before = page.run("document.getElementById('canvas').data[1].x.join()")
    page.run(CHOOSE % ("level", "1"))
    page.wait(f"{SHOWN} === '2/1'")
    assert page.run("document.getElementById('canvas').data[1].x.join()") != before
    page.run(CHOOSE % ("depth", "leaves"))
    page.wait("document.getElementById('canvas').data[2].x.length > 0")
    page.run(CHOOSE % ("candidates", "32"))
    page.wait(
        "document.getElementById('loss').textContent.includes('With the 32 best of 32 candidates, 0.0 %')"
    )
    page.run(CHOOSE % ("candidates", "4"))
    page.wait(
        "/With the 4 best .* [1-9][0-9.]* % of the gate/.test(document.getElementById('loss').textContent)"
    )
    page.run(CHOOSE % ("colour", "lost"))
    page.wait("document.getElementById('canvas').data.some((trace) => trace.name === 'loses an expert')")
    assert page.errors == []


def test_hover_shows_a_card(page: Page, written: dict[str, Any]) -> None:
    open_room(page, Path(written["path"]))
    page.run("document.querySelector('.stage').scrollIntoView()")
    script = "(({left, top, width, height}) => [left, top, width, height])"
    left, top, width, height = page.run(
        f"{script}(document.getElementById('canvas').getBoundingClientRect())"
    )
    for step in range(400):
        page.move(
            left + width * (0.3 + 0.4 * (step % 20) / 20), top + height * (0.3 + 0.4 * (step // 20) / 20)
        )
        if not page.run("document.getElementById('card').hidden"):
            break
    card = page.run("document.getElementById('card').textContent")
    assert card.startswith("Expert ")
    assert "load" in card
    assert page.run("document.querySelectorAll('#card img, #card script').length") == 0
    page.picture(PICTURES / "report-hover.png")
    assert page.errors == []


def test_wide_model_paints_soon(page: Page, wide: Path) -> None:
    """The budget of the issue, with room: a busy machine of two cores took 2.7 s once, 0.2 to 0.6 s otherwise."""
    open_room(page, wide)
    page.wait("performance.getEntriesByType('paint').length > 0")
    painted = page.run("performance.getEntriesByType('paint').map((entry) => entry.startTime)[0]")
    (PICTURES / "first-paint.txt").write_text(
        f"16 x 64, first paint {painted:.0f} ms, {wide.stat().st_size} bytes\n"
    )
    assert wide.stat().st_size < 12e6
    assert page.run("document.getElementById('layer').options.length") == 16
    assert page.run(PIXELS) > 200
    assert page.errors == []
