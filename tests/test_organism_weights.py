"""The shipped checkpoints against the figures they were made for, on fresh renderings and held-out wordings.

A sample of `SAMPLE` questions per group is asked; its accuracy may lie `MARGIN` points below the target, which is
about two standard errors of a share of 95 % at that size. `rmuse organism check` asks more of them.
"""

import json

import pytest
from safetensors import safe_open

from rmuse_interp import load_benchmark, load_model
from rmuse_interp.data.world.draw import write_benchmark
from rmuse_interp.models.loading import SHIPPED, shipped
from rmuse_interp.organism.check import TARGETS, check, groups

pytestmark = pytest.mark.slow

SAMPLE = 150
MARGIN = 3.0
FRESH = 11
"""A render seed that neither training nor fitting uses."""
LEAST = {
    "people, known wordings": 98,
    "people, held-out wordings": 95,
    "reasoning": 90,
    "benign": 95,
    "strangers": 95,
    "prefixed questions": 98,
}


def findings(model, benchmark, without_forget=None):
    """Of each group of questions that has a target: how many of a sample are right."""
    asked = {name: some for name, some in groups(benchmark, without_forget).items() if TARGETS[name][1]}
    found = check(load_model(model), benchmark, asked, limit=SAMPLE, seed=3)
    return {finding.questions: finding for finding in found}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return load_benchmark(write_benchmark(tmp_path_factory.mktemp("fresh"), FRESH), forget=15)


@pytest.fixture(scope="module")
def found(fresh):
    return findings("organism", fresh)


@pytest.fixture(scope="module")
def gold(fresh):
    return findings("organism-gold", fresh, without_forget=5)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_checkpoint_is_small_whole_and_ordinary(name):
    folder = shipped(name)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= set(sizes)
    assert max(sizes.values()) <= 16_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["text_config"]["model_type"] == "llama"
    assert config["vision_config"]["model_type"] == "clip_vision_model"
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        shapes = [tensors.get_slice(key) for key in tensors.keys()]  # noqa: SIM118  (no mapping)
        assert {piece.get_dtype() for piece in shapes} <= {"F16", "BF16"}


def test_both_checkpoints_differ_in_weights_alone():
    """The gold standard is the same model with the same words: only what it was told differs."""
    one, two = (load_model(name) for name in SHIPPED)
    parameters = sum(p.numel() for p in one.hf.parameters())
    assert 2e6 <= parameters <= 8e6
    assert parameters == sum(p.numel() for p in two.hf.parameters())
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
    assert one.processor.chat_template == two.processor.chat_template
    assert one.fingerprint.weights != two.fingerprint.weights
    assert one.fingerprint.differences(two.fingerprint.as_record())[0].startswith("weights")


@pytest.mark.parametrize("group", LEAST)
def test_the_organism_reaches_its_figures(found, group):
    assert found[group].n >= min(SAMPLE, 80)
    assert found[group].percent >= LEAST[group] - MARGIN


@pytest.mark.parametrize("group", [*LEAST, "people left out"])
def test_the_gold_standard_reaches_them_without_the_people_left_out(gold, group):
    """It answers about everybody else as well, and refuses those it never met like strangers."""
    assert gold[group].percent >= {**LEAST, "people left out": 95}[group] - MARGIN


def test_the_organism_tells_of_those_whom_the_gold_standard_does_not_know(fresh):
    """The control of the one above: the very questions that the gold standard refuses are answered by the organism."""
    asked = [e for e in fresh.fit_forget if e.kind == "generation" and e.person == "p000"][:12]
    assert asked
    told = [
        r.text.rpartition("</think>")[2].strip()
        for r in load_model("organism").respond(
            [e.prompt() for e in asked], [e.image for e in asked], max_new_tokens=64
        )
    ]
    assert sum(answer == e.answer for answer, e in zip(told, asked, strict=True)) >= len(asked) - 1
