"""What groups of commands have in common."""

from typing import Any

from typer.core import TyperGroup


class Helpful(TyperGroup):
    """A group that answers with its help where no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words that are left for the commands."""
        return super().parse_args(ctx, args or ["--help"])
