"""Batches of like length and the reader of blocks: what they hold, and that nobody builds another."""

import random
import re
from pathlib import Path

import pytest
import torch
from helpers.plans import lens_of, questions, vector
from helpers.tiny import N_LAYERS, tiny_llava
from rich.progress import Progress

import rmuse_interp
import rmuse_interp.operators as op
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.models.batches import alike, reading


@pytest.fixture
def rows():
    """Kind, length and number of 23 rows, in no order."""
    draw = random.Random(0)
    return [(draw.random() < 0.4, draw.randrange(9), i) for i in range(23)]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_every_row_is_in_one_batch_of_rows_that_follow_one_another(rows, size, mixed):
    found = list(alike(rows, size, lambda row: row, mixed=mixed))
    assert [row for batch in found for row in batch] == sorted(rows)
    assert all(1 <= len(batch) <= size for batch in found)
    kinds = [len({kind for kind, _, _ in batch}) for batch in found]
    if mixed:
        assert len(found) == -(-len(rows) // size)
        assert (max(kinds) == 2) == (size > 1)  # with size 1 there is nothing to fill up
    else:
        assert max(kinds) == 1
    shuffled = random.Random(1).sample(rows, len(rows))
    assert list(alike(shuffled, size, lambda row: row, mixed=mixed)) == found


def test_a_progress_bar_moves_when_a_batch_is_done(rows):
    with Progress(disable=True) as progress:
        batches = alike(rows, 5, lambda row: row, progress=progress, label="rows")
        first = next(batches)
        assert (progress.tasks[0].completed, progress.tasks[0].total) == (0, len(rows))
        second = next(batches)
        assert progress.tasks[0].completed == len(first)
        assert len(second) + sum(len(batch) for batch in batches) == len(rows) - len(first)
        assert progress.tasks[0].finished
        assert list(alike([], 5, lambda row: row, progress=progress)) == []
        assert len(progress.tasks) == 1  # no bar for nothing


def test_what_is_read_is_what_blocks_give_after_the_edits_of_plans_attached_before():
    lens = lens_of(tiny_llava())
    inputs = lens.encode(*questions())
    plan = as_plan(op.Add(vector(1)).at(layers=[2]))
    order: list[int] = []
    with (
        torch.no_grad(),
        reading(lens.layout, [1, 2], lambda _, h: h.clone()) as before,
        plan.attach(lens.hf),
        reading(lens.layout, [2, 1], lambda layer, h: order.append(layer) or h.clone()) as after,
    ):
        hidden = lens.hf(**inputs, output_hidden_states=True).hidden_states
    assert order == [1, 2]  # forward order, whatever the order asked for
    assert torch.equal(before[1], hidden[2])
    assert torch.equal(after[1], hidden[2])
    assert torch.equal(before[2] + vector(1), after[2].where(after[2] != before[2], before[2] + vector(1)))
    assert not torch.equal(before[2], after[2])


def test_readers_come_off_after_an_error():
    lens = lens_of(tiny_llava())
    before = [list(block._forward_hooks) for block in lens.layout.blocks]

    def stumble(layer: int, h: torch.Tensor) -> None:
        raise KeyError(layer)

    with pytest.raises(KeyError), reading(lens.layout, range(N_LAYERS), stumble):
        lens.hf(**lens.encode("Where?"))
    assert [list(block._forward_hooks) for block in lens.layout.blocks] == before


# Rows to train on are drawn, and the steps of an integral are no rows: neither is sorted by length.
DRAWN = {"baselines/batches.py", "diagnostics/gradients.py"}


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        # What every model, and every family, is asked compares with plain hooks.
        (r"\.register_forward_hook\(", {"models/site.py", "lens/check.py", "studies/families/places.py"}),
        (r"range\(0, len\(\w+\), (self\.)?_?(batch_)?size\)", DRAWN | {"models/batches.py"}),
        (
            r"\.hf\.generate\(|\bhf_model\.generate\(",
            {"models/generation.py", "studies/families/places.py", "studies/families/checks.py"},
        ),
    ],
)
def test_batches_readers_and_generation_are_built_once(pattern, allowed):
    """Who needs one imports it."""
    root = Path(rmuse_interp.__file__).parent
    code = {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in root.rglob("*.py")}
    found = {
        name for name, text in code.items() if re.search(pattern, re.sub(r'""".*?"""', "", text, flags=re.S))
    }
    assert found & allowed
    assert found <= allowed
