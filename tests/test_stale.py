"""Nothing stale is served: every input of every mechanism that keeps results is changed in turn.

`TABLE` says, for each input (row) and mechanism (column), whether the kept result must be made anew (x) or is taken up
(-). Each mechanism keeps its results on the base case; then one input changes, and any work that is done is counted.
What a model says and what a fit gives is replaced by a word each: only what is kept and found again is under test.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import parquet_fixture
from helpers.stale import MECHANISMS, WORK, Case, plan_of, words
from helpers.tiny import tiny_llava
from safetensors.torch import load_file, save_file

from rmuse_interp import load_model
from rmuse_interp.evaluate.judges import Consultation, Unreadable
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.quantised import quantised
from rmuse_interp.runs.judging import LocalModel

pytestmark = pytest.mark.slow

TABLE = """
                       elicited answers attacks nats fits cell tuning training demo table judge bundle
model: place               -       -       -     -    -    -     -       -      -     -     -     -
model: weights file        x       x       x     x    x    x     x       x      x     x     x     x
model: weights in memory   x       x       x     x    x    x     x       x      x     x     x     x
model: weights as data     x       x       x     x    x    x     x       x      x     x     x     x
model: adapter             x       x       x     x    x    x     x       x      x     x     x     x
model: adapter off         x       x       x     x    x    x     x       x      x     x     x     x
model: dtype               x       x       x     x    x    x     x       x      x     x     x     -
model: quantised           x       x       x     x    x    x     x       x      x     x     x     -
model: config              x       x       x     x    x    x     x       x      x     x     x     -
model: rope                x       x       x     x    x    x     x       x      x     x     x     -
model: attention           x       x       x     x    x    x     x       x      x     x     x     -
model: generation config   x       x       x     x    x    x     x       x      x     x     x     -
model: processor           x       x       x     x    x    x     x       x      x     x     x     -
model: processor backend   x       x       x     x    x    x     x       x      x     x     x     -
model: tokenizer           x       x       x     x    x    x     x       x      x     x     x     -
model: template            x       x       x     x    x    x     x       x      x     x     x     -
data: place                -       -       -     -    -    -     -       -      -     -     -     -
data: questions            x       x       x     x    x    x     x       x      x     x     -     -
data: test questions       -       x       -     -    -    x     -       -      -     -     -     -
data: answers              -       -       -     x    x    x     x       x      x     x     -     -
data: pictures             x       x       x     x    x    x     x       x      x     x     -     -
data: attributes           -       -       -     -    x    x     x       x      x     x     -     -
data: refusals             -       -       -     -    x    x     x       x      x     x     -     -
data: delimiters           -       -       x     -    x    x     x       x      x     x     -     -
data: prefixes             -       -       -     -    x    x     x       x      x     x     -     -
data: aliases              -       -       -     -    x    x     x       x      x     x     -     -
data: forget rate          -       x       x     x    x    x     x       x      x     x     -     -
plan: tensors              -       x       x     x    -    -     -       -      -     -     -     -
plan: expression           -       x       x     x    -    -     -       -      -     -     -     -
settings: seed             -       -       -     -    x    x     x       x      x     x     -     -
settings: limit            -       x       -     -    x    x     x       x      -     x     -     -
settings: batch size       -       x       x     x    x    x     x       x      x     x     -     -
settings: tokens           x       x       x     -    -    x     -       -      -     x     x     -
judge: model               -       -       -     -    -    -     -       -      -     -     x     -
judge: prompt              -       -       -     -    -    -     -       -      -     -     x     -
package: version           x       x       x     x    x    x     x       x      x     x     x     -
"""
HEADING, *LINES = [line for line in TABLE.splitlines() if line.strip()]
COLUMNS = HEADING.split()
ROWS = {line[:26].strip(): line[26:].split() for line in LINES}


def benchmark_in(folder: Path, change: Callable[[dict], dict] = lambda row: row) -> Path:
    """The tiny benchmark, also at 15 %: three people to forget."""
    root = parquet_fixture.write_benchmark(folder / "tiny", change)
    for name, people in (("forget_15", ("p0", "p1", "p2")), ("retain_85", ("p3",))):
        parquet_fixture.write_split(root, name, [change(parquet_fixture.person_row(p)) for p in people])
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    lens = load_model(tiny_llava())
    data = benchmark_in(tmp_path_factory.mktemp("data"))
    return Case(lens, data, plan_of(), lens)


@pytest.fixture(scope="module", autouse=True)
def _words():
    with words():
        yield


@pytest.fixture(scope="module")
def kept(base, tmp_path_factory):
    """A folder per mechanism with what it keeps of the base case."""
    root = tmp_path_factory.mktemp("kept")
    for name, mechanism in MECHANISMS.items():
        for fresh in (True, False):
            WORK.clear()
            mechanism(base, root / name)
            assert bool(WORK) == fresh, f"{name}: the same case twice"
    return root


# The inputs: each returns the base case with one thing changed.


def copied(tmp_path) -> Path:
    return shutil.copytree(tiny_llava(), tmp_path / "model")


def of_file(name: str, change: Callable[[dict], object]):
    """The model with one of its JSON files changed."""

    def input_(case, tmp_path):
        file = copied(tmp_path) / name
        record = json.loads(file.read_text())
        change(record)
        file.write_text(json.dumps(record))
        return of_model(case, load_model(file.parent))

    return input_


def in_memory(change: Callable[[LensModel], object]):
    """The model with something changed after it was loaded."""

    def input_(case, _tmp_path):
        lens = load_model(tiny_llava())
        change(lens)
        return of_model(case, lens)

    return input_


def of_model(case, lens):
    return replace(case, lens=lens, judge=lens)


def weights_file(case, tmp_path):
    file = copied(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight" if "lm_head.weight" in tensors else min(tensors)][3, 4] += 1
    save_file(tensors, file, {"format": "pt"})
    return of_model(case, load_model(file.parent))


def one_weight(lens):
    with torch.no_grad():
        lens.hf.lm_head.weight[3, 4] += 1


def adapted(lens):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(lens.hf, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))


def other_backend(lens):
    old = lens.processor.image_processor
    lens.processor.image_processor = type("Torchvision", (type(old),), {})(**old.to_dict())


def of_rows(change: Callable[[dict], dict]):
    """The benchmark with every person's row changed."""
    return lambda case, tmp_path: replace(case, data=benchmark_in(tmp_path, change))


def of_task(**entries):
    def change(row):
        first, *rest = row["Generation_Task"]
        return {**row, "Generation_Task": [first | entries, *rest]}

    return of_rows(change)


def other_picture(row):
    new = parquet_fixture.picture(120)
    return {**row, "images": [new, new]} if "images" in row else {**row, "image": new}


def test_questions(case, tmp_path):
    folder = benchmark_in(tmp_path)
    rows = [parquet_fixture.person_row(p, several=True) for p in ("p0", "p1", "p2", "p3")]
    rows[0]["Generation_Task"][0]["Question"] = "Where is this person's home?"
    parquet_fixture.write_split(folder, "Test_Set", rows)
    return replace(case, data=folder)


test_questions.__test__ = False


def of_settings(**entries):
    def input_(case, tmp_path):
        folder = benchmark_in(tmp_path)
        (folder / "benchmark.json").write_text(json.dumps(parquet_fixture.SETTINGS | entries))
        return replace(case, data=folder)

    return input_


def other(**entries):
    return lambda case, _tmp_path: replace(case, **entries)


INPUTS = {
    "model: place": lambda case, tmp_path: of_model(case, load_model(copied(tmp_path))),
    "model: weights file": weights_file,
    "model: weights in memory": in_memory(one_weight),
    "model: weights as data": in_memory(lambda lens: lens.hf.lm_head.weight.data.add_(1)),
    "model: adapter": in_memory(adapted),
    "model: adapter off": in_memory(lambda lens: adapted(lens).base_model.disable_adapter_layers()),
    "model: dtype": lambda case, _: of_model(case, load_model(tiny_llava(), dtype="bfloat16")),
    "model: quantised": lambda case, _: of_model(case, quantised(case.lens, 8)),
    "model: config": of_file("config.json", lambda c: c["text_config"].update(rms_norm_eps=1e-5)),
    "model: rope": of_file(
        "config.json", lambda c: c["text_config"]["rope_parameters"].update(rope_theta=5e3)
    ),
    "model: attention": in_memory(lambda lens: lens.hf.set_attn_implementation("eager")),
    "model: generation config": of_file("generation_config.json", lambda c: c.update(repetition_penalty=1.2)),
    "model: processor": in_memory(
        lambda lens: setattr(lens.processor.image_processor, "image_mean", (0, 0, 0))
    ),
    "model: processor backend": in_memory(other_backend),
    "model: tokenizer": in_memory(lambda lens: lens.tokenizer.add_tokens(["Oslo"])),
    "model: template": in_memory(
        lambda lens: setattr(lens.processor, "chat_template", f"{lens.processor.chat_template} ")
    ),
    "data: place": lambda case, tmp_path: replace(case, data=shutil.copytree(case.data, tmp_path / "else")),
    "data: questions": of_task(Question="Where is this person's home?", Direct_Question="Where is it?"),
    "data: test questions": test_questions,
    "data: answers": of_task(Ground_Truth="Bergen"),
    "data: pictures": of_rows(other_picture),
    "data: attributes": of_task(Forget_Attributes=json.dumps({"residence": "Bergen"})),
    "data: refusals": of_settings(refusals_direct=["No."]),
    "data: delimiters": of_settings(
        delimiters=["<r>", "</r>"], refusals_cot=["<r> I do not know. </r> I cannot help."]
    ),
    "data: prefixes": of_settings(prefixes=["Say nothing."]),
    "data: aliases": of_settings(aliases={"Oslo": ["Christiania"]}),
    "data: forget rate": other(forget=15),
    "plan: tensors": other(plan=plan_of(seed=2)),
    "plan: expression": other(plan=plan_of(layers=(1,))),
    "settings: seed": other(seed=1),
    "settings: limit": other(limit=3),
    "settings: batch size": other(batch_size=3),
    "settings: tokens": other(tokens=98),
    "judge: model": lambda case, _: replace(case, judge=load_model(tiny_llava(seed=1))),
    "judge: prompt": other(prompt="Does it leak at all?"),
    "package: version": other(),
}


def test_the_table_has_every_input_and_mechanism():
    assert list(ROWS) == list(INPUTS)
    assert all(len(row) == len(COLUMNS) for row in ROWS.values())


@pytest.mark.parametrize("name", INPUTS)
def test_what_depends_on_an_input_is_made_anew_when_it_changes(name, base, kept, tmp_path, monkeypatch):
    case = INPUTS[name](base, tmp_path)
    if name == "package: version":
        monkeypatch.setattr("rmuse_interp.lens.identity.sources", lambda: "another version")
    found = []
    for column, mechanism in MECHANISMS.items():
        folder = shutil.copytree(kept / column, tmp_path / column)
        WORK.clear()
        mechanism(case, folder)
        found.append("x" if WORK else "-")
    assert dict(zip(COLUMNS, found, strict=True)) == dict(zip(COLUMNS, ROWS[name], strict=True))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\xff" * len(data)])
@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "bundle"])
def test_a_damaged_result_is_made_anew(column, damage, base, kept, tmp_path):
    folder = shutil.copytree(kept / column, tmp_path / column)
    for file in (one for one in folder.rglob("*") if one.is_file()):
        file.write_bytes(damage(file.read_bytes()))
    for fresh in (True, False):
        WORK.clear()
        MECHANISMS[column](base, folder)
        assert bool(WORK) == fresh


def test_a_kept_reply_that_can_no_longer_be_read_is_asked_for_again(base, tmp_path):
    """And one that can is put on disk once, however often it is read."""
    Consultation(LocalModel(base.judge, 9), tmp_path).ask(["Leaks?"], str)
    for _ in range(2):
        Consultation(LocalModel(base.judge, 9), tmp_path).ask(["Leaks?"], str)
    (file,) = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 1
    WORK.clear()
    seen = []

    def strict(text):
        seen.append(text)
        if len(seen) == 1:
            raise Unreadable(text)
        return "read"

    assert Consultation(LocalModel(base.judge, 9), tmp_path).ask(["Leaks?"], strict) == ["read"]
    assert WORK == ["asked"]
