"""The conformance suite on a tiny random checkpoint of every family, and the table that it writes."""

from functools import cache
from pathlib import Path

import pytest

from rmuse_interp.studies.families.checks import CHECKS
from rmuse_interp.studies.families.recipes import RECIPES
from rmuse_interp.studies.families.table import COLUMNS, cell, conform, refusals, rows_in, versions

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
END_TO_END = "fit, steer, eval"
# One of each kind of placeholder: repeated, tiles, rows and columns, breaks, framed, and grids with M-RoPE.
FITTED = ("LLaVA-1.5", "InternVL", "Idefics3", "Mistral 3", "Gemma 3", "Qwen2.5-VL", "PaliGemma")


@cache
def rows() -> dict[str, list[str]]:
    return rows_in(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_family_does_what_the_table_says(recipe):
    names = [name for name in CHECKS if name != END_TO_END or recipe.name in FITTED]
    ((_, findings),) = conform([recipe], names)
    assert [f"{one.check}: {one.note}" for one in findings if one.state == "fault"] == []
    written = dict(zip(COLUMNS, rows()[recipe.name][1:], strict=True))
    found = {heading: cell(findings, checks) for heading, checks in COLUMNS.items()}
    assert {heading: text for heading, text in found.items() if text} == {
        heading: text for heading, text in written.items() if found[heading]
    }


def test_the_table_is_of_these_families_and_these_libraries():
    assert list(rows()) == [recipe.name for recipe in RECIPES]
    assert versions() in " ".join(PAGE.read_text(encoding="utf-8").split()), (
        "the libraries have moved on: rmuse models check --all --write docs/families.md"
    )


def test_the_table_gives_the_reasons_that_a_user_reads():
    said = [
        line for line in PAGE.read_text(encoding="utf-8").split("## What is refused")[1].splitlines() if line
    ]
    assert said == refusals(RECIPES)


def test_most_families_pass_everything_that_exists_for_them():
    assert not [name for name, row in rows().items() if "**fault**" in row]
    assert [name for name, row in rows().items() if "no" in row] == ["PaliGemma"]
