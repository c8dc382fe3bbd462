"""Writes tests/bundles/hostile: one folder per rule of the format, each breaking that rule and no other.

PYTHONPATH=runtime:tests python tests/bundles/make_hostile.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import bundles.container_damage
import bundles.layer_damage
import bundles.manifest_damage  # noqa: F401  (the three register their rules)
from bundles.damage import RULES, sound_draft

HOSTILE = Path(__file__).parent / "hostile"


def write_hostile(root: Path) -> None:
    for name, (_, damage) in RULES.items():
        draft = sound_draft()
        damage(draft)
        draft.write(root / name)


def main() -> None:
    shutil.rmtree(HOSTILE, ignore_errors=True)
    write_hostile(HOSTILE)


if __name__ == "__main__":
    main()
