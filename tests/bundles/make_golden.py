"""Writes tests/bundles/golden again: run it only when the format version moves, and say so in the changelog.

PYTHONPATH=runtime:tests python tests/bundles/make_golden.py
"""

from pathlib import Path

from pico_bundles import GOLDEN_CARD, GOLDEN_EVIDENCE, golden_bundle

from spectral_runtime.bundle import write_bundle


def main() -> None:
    manifest, layers = golden_bundle()
    target = Path(__file__).parent / "golden"
    write_bundle(target, manifest, layers, evidence=GOLDEN_EVIDENCE, card=GOLDEN_CARD, overwrite=True)


if __name__ == "__main__":
    main()
