"""The table of what each model family can do, written by the checks themselves: `docs/families.md`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rmuse_interp.models.families import LIMITS
from rmuse_interp.studies.families.checks import CHECKS, Finding, Subject, examine
from rmuse_interp.studies.families.making import make
from rmuse_interp.studies.families.places import MODES
from rmuse_interp.studies.families.recipe import Recipe
from rmuse_interp.studies.families.recipes import RECIPES

LIBRARIES: Final = ("torch", "torchvision", "transformers", "tokenizers", "nnsight", "transformer-lens")
"""The libraries whose versions the table names."""

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "loads": ("loads",),
    "tokens": ("prompt", "image tokens", "prompt end", "spans"),
    "batches": ("batches",),
    "sites inside blocks": ("sites",),
    "hooks": (*(f"hooks: {mode}" for mode in MODES), "hooks: bfloat16"),
    "trace": tuple(f"trace: {mode}" for mode in MODES),
    "stored edit": tuple(f"stored: {mode}" for mode in MODES),
    "bridge": ("bridge",),
    "decide": ("decide",),
    "fit, steer, eval": ("fit, steer, eval",),
}
"""Heading → the checks that its cells sum up."""

assert {check for checks in COLUMNS.values() for check in checks} == {*CHECKS}

HEAD: Final = """\
# Model families

Written by `rmuse models check --all --write docs/families.md`, with {versions}.
Each row is a tiny random checkpoint of the family's own configuration and processor classes; `rmuse models check PATH`
asks the same of a checkpoint of yours.

A cell says *yes* if every check in it passed, *–* if the family has no such thing, *no* if the family refuses in one line
(below the table).

- **tokens**: prompts as in transformers' own `apply_chat_template`; image tokens counted and located by the processor's
  record; the prompt's end; question, reasoning and answer found in their tokens.
- **batches**: rows read alike alone and in a batch, without a picture, with one and with two, of different lengths.
- **sites inside blocks**: those that `run_with_cache` offers and edits may act at; they add up,
  `resid_pre + attn_out + mlp_out = resid_post`.
- **hooks** (`plan.attach`), **trace** (nnsight), **stored edit** (`plan.install`): at every step the logits of plain
  forward hooks, in a batch of several lengths, with beams, prompts in chunks, a static cache, and for hooks in bfloat16.
- **bridge**: the same under given responses on a TransformerLens bridge, where TransformerLens has an adapter; *whole
  blocks* where the bridge shows what attention and MLP return before the family's own norm.
- **decide**: every read-out scores a row alone as in a batch.

"""


def conform(
    recipes: Iterable[Recipe] = RECIPES, checks: Iterable[str] = CHECKS
) -> Iterator[tuple[Recipe, list[Finding]]]:
    """Build each family's checkpoint, run the checks on it, and yield the findings."""
    names = list(checks)
    for recipe in recipes:
        with TemporaryDirectory(prefix="rmuse-family-") as folder:
            yield recipe, examine(Subject(make(recipe, Path(folder))), names)


def cell(findings: Sequence[Finding], checks: Sequence[str]) -> str:
    """One cell of the table; "" if none of its checks ran."""
    own = [finding for finding in findings if finding.check in checks]
    states = {finding.state for finding in own}
    if "fault" in states:
        return "**fault**"
    if "refused" in states:
        return "no"
    if states <= {"none"}:
        return "–" if states else ""
    return next((finding.note for finding in own if finding.state == "yes" and finding.note), "yes")


def row_of(recipe: Recipe, findings: Sequence[Finding]) -> list[str]:
    """The cells of one family, its name first."""
    return [recipe.name, *(cell(findings, checks) for checks in COLUMNS.values())]


def versions() -> str:
    """The libraries' versions, without the local part of a build."""
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in LIBRARIES)


def page(found: Mapping[Recipe, Sequence[Finding]]) -> str:
    """The page with the table, the reasons for what is refused, and the versions."""
    lines = [
        HEAD.format(versions=versions()) + _line(["family", *COLUMNS]),
        _line(["---"] * (len(COLUMNS) + 1)),
        *(_line(row_of(recipe, findings)) for recipe, findings in found.items()),
        "\n## What is refused\n",
        *refusals(found),
    ]
    return "\n".join(lines) + "\n"


def refusals(recipes: Iterable[Recipe]) -> list[str]:
    """A line for each thing that one of the families cannot do."""
    return [
        f"- {recipe.name}, {limit.need}: {limit.why}."
        for recipe in recipes
        for limit in LIMITS.get(recipe.config, ())
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rows_in(text: str) -> dict[str, list[str]]:
    """The table's rows in a page, by family: what `page` wrote."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return {row[0]: row for row in rows[2:]}
