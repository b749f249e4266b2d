"""Groups of commands, and the headings that `rmuse --help` lists commands under."""

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

LOOK = "Look"
FORGET = "Make a model forget"
MEASURE = "Measure"
MATERIAL = "Material: data, judges, baselines, the shipped model"


def group(purpose: str) -> typer.Typer:
    """A group of commands with this help."""
    return typer.Typer(cls=Helpful, help=purpose, rich_markup_mode=None, pretty_exceptions_enable=False)


class Helpful(TyperGroup):
    """A group that prints its help if no command is named, and lists its commands by purpose."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The remaining arguments, for the commands."""
        return super().parse_args(ctx, args or ["--help"])

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each heading (`rich_help_panel` of the commands) with its commands and their first sentences."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            assert isinstance(command, TyperCommand | TyperGroup)
            heading = command.rich_help_panel
            row = (name, command.get_short_help_str(limit=200))
            sections.setdefault(heading if isinstance(heading, str) else "Commands", []).append(row)
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
