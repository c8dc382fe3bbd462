"""The map of the command line: verbs in the order of the work, each on one line of at most 80 columns."""

from __future__ import annotations

import click

SECTIONS = {
    "From checkpoint to bundle": ("families", "plan", "convert", "heal"),
    "What is in it, what it costs": ("inspect", "evaluate", "compare", "bench", "bench-route", "generate"),
    "What the experts do, shown to people": ("analyse", "report"),
    "Take it elsewhere": ("export", "build-engine", "push"),
}
MAP = {
    "families": "which architectures convert, and by which gate rule",
    "plan": "what a conversion will need, before it is started",
    "convert": "checkpoint -> bundle of geometric routers",
    "heal": "train the geometry against the untouched model",
    "inspect": "what a bundle holds, layer by layer",
    "evaluate": "converted against untouched: text, pairs, tasks, long context",
    "compare": "two evaluations side by side, when their protocols agree",
    "bench": "routing time, gate against geometry",
    "bench-route": "routing on a GPU over planted gates, every peer in one run",
    "generate": "continue a prompt, both ways",
    "analyse": "what experts serve; which senses of a word routing tells apart",
    "report": "one page with plots and the room of spheres in 3-D",
    "export": "bundle -> ONNX",
    "build-engine": "exported model -> TensorRT engine",
    "push": "bundle -> Hub",
}


class VerbMap(click.Group):
    """A group whose help lists its verbs by section; a verb without a place comes last."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections."""
        placed = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in placed)
        for title, names in (*SECTIONS.items(), ("More", others)):
            rows = [(name, self._line(name)) for name in names if name in self.commands]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _line(self, name: str) -> str:
        return MAP.get(name) or self.commands[name].get_short_help_str(limit=60)
