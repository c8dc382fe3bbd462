"""Fills the tables of the pages from evidence files: `python docs/tables.py`, or `--check` to see whether they agree."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
EVIDENCE = DOCS.parent / "tests" / "benchmarks" / "evidence"
REGION = re.compile(r"(<!-- evidence: ([\w.-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def short(path: str) -> str:
    """The layer's number of a router's path."""
    return next((part for part in path.split(".") if part.isdigit()), path)


def interval(pair: Sequence[float], digits: int = 2) -> str:
    """Low to high."""
    return f"{pair[0]:+.{digits}f} to {pair[1]:+.{digits}f}"


def evaluation(record: dict[str, Any]) -> Iterator[str]:
    """Perplexity, minimal pairs and long context of one evaluation."""
    row = [
        str(record["tokens"]),
        f"{record['ppl_base']:.3f}",
        f"{record['ppl']:.3f}",
        f"{record['delta_pct']:+.2f} %",
    ]
    row += [
        f"{interval(record['ci95'])} %",
        f"{100 * record['recall']:.2f} %",
        f"{100 * record['kept_mass']:.2f} %",
    ]
    yield table(["tokens", "untouched", "converted", "difference", "95 %", "recall", "weight kept"], [row])
    if "pairs" in record:
        yield pairs(record["pairs"])
    if "long_context" in record:
        yield positions(record["long_context"])
        yield probes(record["long_context"])


def pairs(record: dict[str, Any]) -> str:
    """Minimal pairs."""
    rows = [
        [row["name"].replace("_", " "), str(row["pairs"]), f"{100 * row['accuracy_base']:.1f} %",
         f"{100 * row['accuracy']:.1f} %", f"{100 * row['delta']:+.2f}", f"{row['mcnemar_p']:.3f}"]
        for row in (*record["phenomena"], {"name": "overall", **record["overall"]})
    ]  # fmt: skip
    return table(["minimal pairs", "pairs", "untouched", "converted", "points", "McNemar p"], rows)


def positions(record: dict[str, Any]) -> str:
    """Perplexity by position."""
    rows = [
        [f"{row['from']} to {row['to']}", str(row["tokens"]), f"{row['ppl_base']:.2f}", f"{row['ppl']:.2f}",
         f"{row['delta_pct']:+.2f} %", f"{interval(row['ci95'])} %"]
        for row in record["positions"]
    ]  # fmt: skip
    return table(["tokens of context", "tokens", "untouched", "converted", "difference", "95 %"], rows)


def probes(record: dict[str, Any]) -> str:
    """Pass key and copying."""
    rows = [
        [row["kind"], str(row["length"]), f"{100 * row['token_accuracy_base']:.0f} %",
         f"{100 * row['token_accuracy']:.0f} %", f"{row['nll_base']:.2f}", f"{row['nll']:.2f}", interval(row["ci95"])]
        for row in record["probes"]
    ]  # fmt: skip
    return table(["probe", "length", "right", "converted", "nats", "converted", "95 % of the gap"], rows)


def polysemy(record: dict[str, Any]) -> Iterator[str]:
    """Sense separation by layer and router."""
    rows = [
        [short(row["path"]), row["router"], f"{row['auc']:.3f}", f"{row['auc_ci95'][0]:.3f} to {row['auc_ci95'][1]:.3f}",
         f"{100 * row['sense_accuracy']:.1f} %", f"{100 * row['majority']:.1f} %",
         "" if row["recall"] is None else f"{100 * row['recall']:.1f} %"]
        for row in record["layers"]
    ]  # fmt: skip
    yield f"{record['lemmas']} words, {record['sentences']} sentences, {record['skipped']} skipped.\n"
    yield table(["layer", "router", "AUC", "95 %", "sense right", "by majority", "recall on targets"], rows)


def experts(record: dict[str, Any]) -> Iterator[str]:
    """Expert analysis: one row a layer, then the conclusions that are not about one layer."""
    rows = [
        [short(layer["path"]), f"{layer['load']['effective']:.1f} of {layer['experts']}", bits(layer["class"]),
         bits(layer["topic"]), "" if layer["topic_given_token"] is None else f"{layer['topic_given_token']['bits']:.3f}",
         f"{layer['selectivity']['margin']:.2f}",
         f"{len(layer['clusters']['members'])} ({layer['clusters']['stability']:.2f})" if layer["clusters"] else ""]
        for layer in record["layers"]
    ]  # fmt: skip
    head = [
        "layer",
        "effective experts",
        "class, bits",
        "topic, bits",
        "topic beyond token",
        "margin",
        "groups (stability)",
    ]
    yield f"{record['protocol']['tokens']} tokens, {record['protocol']['class_source']}.\n"
    yield table(head, rows)
    yield "\n".join(f"- {line}" for line in record["conclusions"] if not line.startswith("model.")) + "\n"


def bits(value: dict[str, Any] | None) -> str:
    """Bits with their interval."""
    return "" if value is None else f"{value['bits']:.3f} ({value['ci95'][0]:.3f} to {value['ci95'][1]:.3f})"


def timings(record: dict[str, Any]) -> Iterator[str]:
    """Any benchmark: a row a measurement, the columns that its rows have."""
    keys = list(dict.fromkeys(key for row in record["rows"] for key in row))
    yield f"`{record.get('command', '')}`: {record.get('protocol') or record.get('machine', '')}.\n"
    yield table(
        [key.replace("_", " ") for key in keys],
        [[str(row.get(key, "")) for key in keys] for row in record["rows"]],
    )


def routing(record: dict[str, Any]) -> Iterator[str]:
    """CPU routing: microseconds of processor time a token, and how many times longer the others take."""
    machine = record["machine"]
    clock = f"{record['threads']} thread, D = {record['hidden']}, k = {record['k']}"
    yield f"{machine['cpu']}, {clock}, load {machine['load_average'][0]}.\n"
    rows = []
    for case in record["cases"]:
        arms = {name: arm["thread_us"] for name, arm in case["arms"].items()}
        ours = arms["ours"]
        trees = [time for name, time in arms.items() if "KD" in name.upper()]
        rows.append(
            [case["experts"], case["rank"], case["batch"], case["data"], f"{ours:.2f}", f"{arms['dense gate'] / ours:.1f}x",
             f"{arms['rank-R dense'] / ours:.1f}x", f"{min(trees) / ours:.1f}x" if trees else "",
             f"{case['arms']['ours']['recall']:.3f}"]
        )  # fmt: skip
    yield table(
        [
            "E",
            "R",
            "batch",
            "data",
            "ours, us",
            "dense gate",
            "rank-R dense",
            "best kd-tree",
            "recall of the R-score",
        ],
        rows,
    )


def sweep(record: dict[str, Any]) -> Iterator[str]:
    """GPU kernels: what runs at each size, in microseconds, beside the library's product and a fused top-k."""
    yield f"{record['machine']['gpu']}; {record['protocol']}\n"
    gates = [row for row in record["rows"] if row["kernel"] == "gate" and row.get("runs") in row["us"]]
    peer = "cuBLAS + Triton"
    yield table(
        ["E", "B", "exact gate runs as", "us", peer, "ratio"],
        [[row["experts"], row["batch"], row["runs"], f"{row['us'][row['runs']]:.1f}", f"{row['us'][peer]:.1f}",
          f"{row['us'][peer] / row['us'][row['runs']]:.2f}x"] for row in gates],
    )  # fmt: skip
    routers = [row for row in record["rows"] if row["kernel"] == "route" and row.get("runs") in row["us"]]
    yield table(
        ["E", "levels", "B", "geometric router runs as", "us"],
        [[row["experts"], row["levels"], row["batch"], row["runs"], f"{row['us'][row['runs']]:.1f}"]
         for row in routers],
    )  # fmt: skip


def quality(record: dict[str, Any]) -> Iterator[str]:
    """Closed-form conversions of one checkpoint on held-out text."""
    yield f"`{record['model']}`, {record['calibration_tokens']} calibration tokens; {record['protocol']}.\n"
    rows = [
        [row["mode"], row["levels"], row["colour"], f"{row['mean_candidates']:.1f}", f"{row['delta_pct']:+.3f} %",
         f"{interval(row['ci95'], 3)} %", f"{100 * row['recall']:.2f} %", f"{100 * row['kept_mass']:.2f} %"]
        for row in record["rows"]
    ]  # fmt: skip
    tokens = record["rows"][0]["tokens"]
    yield f"{tokens} tokens, perplexity untouched {record['rows'][0]['ppl_base']:.4f}.\n"
    yield table(
        ["mode", "levels", "colour", "mean candidates", "perplexity", "95 %", "recall", "weight kept"], rows
    )


def measured(record: dict[str, Any]) -> str:
    """The line above a part of `bench_routing_quality.py`."""
    command = f"tests/benchmarks/bench_routing_quality.py --part {record['part']}"
    return (
        f"`{record['model']}`, {record['calibration_tokens']} calibration tokens, {record['device']}; "
        f"{record['protocol']}, {record['tokens']} tokens (`{command}`).\n"
    )


def perplexity(row: dict[str, Any]) -> list[str]:
    """Two cells of a row with a paired perplexity."""
    return [f"{row['delta_pct']:+.3f} %", f"{interval(row['ci95'], 3)} %"]


def sizes(record: dict[str, Any]) -> Iterator[str]:
    """Closed form, refined and adaptive at the same number of candidates."""
    yield measured(record)
    rows = [
        [
            row["levels"],
            row["colour"],
            row["candidates"],
            row["kind"],
            f"{row['mean_size']:.1f}",
            *perplexity(row),
        ]
        for row in record["rows"]
    ]
    yield table(["levels", "colour", "candidates", "fit", "mean size", "perplexity", "95 %"], rows)


def share(row: dict[str, Any], key: str) -> str:
    """A cell in percent, empty where it was not measured."""
    return f"{100 * row[key]:.2f} %" if key in row else ""


def colours(record: dict[str, Any]) -> Iterator[str]:
    """Further dimensions, by what they are."""
    yield measured(record)
    rows = [
        [row["colour"], row["kind"], share(row, "recall"), share(row, "missed"), *perplexity(row)]
        for row in record["rows"]
    ]
    yield table(["S", "what they are", "recall", "weight missed", "perplexity", "95 %"], rows)


def nesting(record: dict[str, Any]) -> Iterator[str]:
    """Levels, shared or local."""
    yield measured(record)
    rows = [
        [row["levels"], f"{row['rows']:.0f}", row["kind"], share({"share": row["explained"][-1]}, "share")
         if "explained" in row else "", share(row, "recall"), share(row, "missed")]
        for row in record["rows"]
    ]  # fmt: skip
    yield table(["L", "rows projected", "levels", "variance explained", "recall", "weight missed"], rows)


def healings(record: dict[str, Any]) -> Iterator[str]:
    """Geometric routers before and after a healing."""
    yield f"`{record['model']}`: {record['protocol']} (`tests/benchmarks/gpu_heal.py`).\n"
    rows = []
    for row in record["rows"]:
        job, heal, after = row["job"], row["heal"], row["healed"]
        rows.append(
            [job["levels"], job["colour"], 3 * job["levels"] + job["colour"], f"{heal['settings']['minutes']:g}",
             heal["device"].removeprefix("NVIDIA "), f"{heal['tokens'] / 1e6:.0f} M", *divergences(heal),
             *perplexity(after), share(after, "recall"), row["run"]]
        )  # fmt: skip
    head = ["levels", "colour", "R", "minutes", "GPU", "tokens", "nats before", "after", "perplexity", "95 %"]
    yield table([*head, "recall", "run"], rows)


def divergences(heal: dict[str, Any]) -> list[str]:
    """Cells of the held-back divergence before and after."""
    return [f"{heal[f'held_back_{when}']['divergence']:.3f}" for when in ("before", "after")]


def promises(record: dict[str, Any]) -> Iterator[str]:
    """Certificates on unseen documents."""
    first = record["rows"][0]
    yield (
        f"`{record['model']}`, fitted on {record['calibration_tokens']} calibration tokens less these {first['documents']} "
        f"documents ({first['tokens']} tokens), {first['splits']} random halves "
        "(`tests/benchmarks/bench_routing_quality.py --part coverage`).\n"
    )
    rows = [
        [short(row["path"]), row["kind"], row["alpha"], f"{row['mean_risk']:.4f}", f"{row['largest_risk']:.4f}",
         f"{row['standard_error']:.4f}", f"{100 * row['within']:.0f} %", f"{100 * row['within_two_errors']:.0f} %"]
        for row in record["rows"]
    ]  # fmt: skip
    yield table(
        ["layer", "sets", "alpha", "mean risk", "largest", "error", "within alpha", "within two errors"], rows
    )


PARTS = {"targets": sizes, "colour": colours, "levels": nesting, "coverage": promises}


def tables_of(record: dict[str, Any]) -> str:
    """The Markdown of an evidence record."""
    kinds = {"evaluate": evaluation, "polysemy": polysemy, "experts": experts}
    kind = kinds.get(str(record.get("kind")))
    if kind is None and "cases" in record and "threads" in record:
        kind = routing
    if kind is None and "kernels" in record:
        kind = sweep
    if kind is None and "heal" in record.get("rows", [{}])[0]:
        kind = healings
    if kind is None and "part" in record:
        kind = PARTS[record["part"]]
    if kind is None and "calibration_tokens" in record:
        kind = quality
    return "\n".join((kind or timings)(record))


def filled(page: str) -> str:
    """A page with every region made from its evidence file; a region without a file is left as it is."""

    def fill(match: re.Match[str]) -> str:
        file = EVIDENCE / f"{match[2]}.json"
        if not file.is_file():
            return match[0]
        return f"{match[1]}\n{tables_of(json.loads(file.read_text(encoding='utf-8')))}\n{match[4]}"

    return REGION.sub(fill, page)


def main() -> int:
    """Rewrites the pages; with `--check` only tells which would change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for file in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))):
        page = file.read_text(encoding="utf-8")
        if filled(page) != page:
            stale.append(file.name)
            if not check:
                file.write_text(filled(page), encoding="utf-8")
    sys.stdout.write("".join(f"{name} {'differs' if check else 'written'}\n" for name in stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
