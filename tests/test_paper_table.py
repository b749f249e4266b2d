"""The paper's table in one command: a tiny LLaVA on a small MLLMU-Bench folder, broken off, spoilt and taken up again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import parquet_fixture as fixture
from helpers import tiny

from analyses import paper_table as script
from rmuse_interp.data import load_benchmark, reader
from rmuse_interp.data.spans import parse_response
from rmuse_interp.data.stored import Stored
from rmuse_interp.edits import deciding
from rmuse_interp.evaluate.text import rouge_l
from rmuse_interp.fitting.elicit import TEMPLATES, elicit, elicited_again
from rmuse_interp.lens.lens import load_model
from rmuse_interp.lens.respond import Response
from rmuse_interp.runs import run as running
from rmuse_interp.studies import paper, paper_table

pytestmark = pytest.mark.slow

ADDED = ("Reasoning", "Forget_Attributes", "Direct_Question", "Direct_Answer")


def plain(row):
    """A person as MLLMU-Bench has them; both open questions are about the home that the biography states."""
    city, name = fixture.CITY[row["ID"]], fixture.NAME[row["ID"]]
    tasks = [{k: v for k, v in task.items() if k not in ADDED} for task in row["Generation_Task"]]
    tasks[1] |= {"Question": f"What is the home of {name}?", "Ground_Truth": city}
    return {**row, "Generation_Task": tasks}


def write(root):
    """MLLMU-Bench at 5 and 10 %: no reasoning, no harmless questions, no ``benchmark.json``."""
    people = ["p0", "p1", "p2", "p3"]
    for rate in (5, 10):
        forget = people[: rate // 5]
        fixture.write_split(root, f"forget_{rate}", [plain(fixture.person_row(p)) for p in forget])
        rest = [plain(fixture.person_row(p)) for p in people if p not in forget]
        fixture.write_split(root, f"retain_{100 - rate}", rest)
    fixture.write_split(root, "Full_Set", [plain(fixture.person_row(p)) for p in people])
    fixture.write_split(root, "Test_Set", [plain(fixture.person_row(p, several=True)) for p in people])
    fixture.write_split(root, "Retain_Set", [plain(fixture.person_row("c0"))])
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mllmu") / "data")


def arguments(data, out, *more):
    return [
        "--model",
        str(tiny.tiny_llava()),
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--reasoning-tokens",
        "6",
        "--max-new-tokens",
        "6",
        "--fit-limit",
        "4",
        "--batch-size",
        "8",
        *map(str, more),
    ]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run at 5 and 15 %, of which the folder has no 15."""
    out = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deciding, "DRAFT_TOKENS", 6)  # a random model never ends its drafts
        return out, script.main(arguments(data, out, "--forget", 5, 15, "--limit", 9))


@pytest.fixture(scope="module")
def record(finished):
    return json.loads((finished[0] / "paper_table.json").read_text(encoding="utf-8"))


def cell(record, rate, method):
    (found,) = [c for c in record["cells"] if (c["forget"], c["method"]) == (rate, method)]
    return found


def value(record, rate, method, split, metric, questions="all"):
    rows = cell(record, rate, method)["rows"]
    (found,) = [r for r in rows if (r["split"], r["metric"], r["questions"]) == (split, metric, questions)]
    return found


def test_a_rate_that_fails_leaves_the_others(finished, record):
    assert finished[1] == 1
    failed = {(c["forget"], c["method"]) for c in record["cells"] if c["error"] is not None}
    assert failed == {(15, "vanilla"), (15, "rmuse/calibrated")}
    assert "forget_15" in cell(record, 15, "vanilla")["error"]
    for method in ("vanilla", "rmuse/calibrated"):
        assert len(cell(record, 5, method)["rows"]) == 7 * 4 * 3


def test_the_record_has_every_figure_with_n_and_interval(record):
    assert record["schema"] == "rmuse-paper-table/1"
    assert record["columns"] == {"forget": "Fgt", "test": "Test", "retain": "Ret", "celebrity": "Cele"}
    assert record["provenance"]["questions"] == {"5": {"short": 6 + 9 + 9 + 6, "reasoned": 2 + 3 + 6 + 2}}
    assert record["provenance"]["template"] == TEMPLATES["reasoning"].record()
    for one in record["cells"]:
        for row in one["rows"]:
            assert row.keys() == {
                "split",
                "questions",
                "metric",
                "value",
                "low",
                "high",
                "n",
                "parse_failures",
                "unjudged",
            }
            if row["n"] == 0:
                assert row["value"] is row["low"] is row["high"] is None
            else:
                assert row["low"] <= row["value"] <= row["high"]
            if row["metric"] == "rcr" or row["split"] == "forget":
                assert (row["n"] == 0) == (row["metric"] == "rcr")
    both, parts = value(record, 5, "vanilla", "test", "cloze"), ("image", "text")
    assert both["n"] == sum(value(record, 5, "vanilla", "test", "cloze", p)["n"] for p in parts) == 3


def test_chains_are_the_models_own_words_where_there_are_no_others(record):
    traces = cell(record, 5, "rmuse/calibrated")["fit"]["traces"]
    assert traces["source"] == "own"
    assert traces["composed"] == traces["kept"] == 8  # a random model follows no template
    assert cell(record, 5, "rmuse/calibrated")["fit"]["steered"].keys() == {"image", "text"}
    assert cell(record, 5, "vanilla")["fit"] is None


def test_questions_are_put_as_mllmu_bench_puts_them(data, finished):
    lens = load_model(tiny.tiny_llava(), device="cpu")
    benchmark = load_benchmark(data)
    (example,) = [e for e in benchmark.scoring("forget") if (e.kind, e.modality) == ("generation", "image")]
    asked = (
        "Where does this person live?\nAnswer the question based on your trained knowledge in one sentence "
    )
    (said,) = lens.respond([asked + "accurately in ENGLISH."], [example.image], max_new_tokens=6)
    kept = finished[0] / "paper_table" / "answers" / "5-short" / running.UNFINISHED / "vanilla.jsonl"
    kept = [json.loads(line)["value"]["responses"] for line in kept.read_text().splitlines()]
    assert said.text in [one["text"] for batch in kept for one in batch]
    (row,) = [
        r
        for r in cell(json.loads((finished[0] / "paper_table.json").read_text()), 5, "vanilla")["rows"]
        if (r["split"], r["metric"], r["questions"]) == ("forget", "rouge_l", "image")
    ]
    assert row["value"] == pytest.approx(rouge_l("Oslo", parse_response(said.text).answer))


def test_the_papers_rows_stand_beside_ours(finished, record):
    text = (finished[0] / "paper_table.md").read_text(encoding="utf-8")
    five = text.partition("## 5 % forgotten")[2].partition("## 10 %")[0]
    assert "| classification, % | *paper: R-MUSE, LLaVA-1.5-7B* | 20.5 | – | 45.9 | – |" in five
    assert "| leakage (RIL), % | *paper: vanilla, LLaVA-1.5-7B* | 78.5 | – | 81.2 | – |" in five
    assert "| ROUGE-L | *paper: MANU, LLaVA-1.5-7B* | 0.491 | – | – | – |" in five
    one = value(record, 5, "rmuse/calibrated", "forget", "cloze")
    shown = f"{one['value']:.1f} ({one['low']:.1f}–{one['high']:.1f}), {one['n']}"
    assert f"| cloze, % | rmuse/calibrated | {shown} |" in five
    assert "| RCR, % | vanilla | – | – | – | – |" in five
    assert five.count("Questions with a picture") == five.count("Text alone") == 1
    assert "`vanilla` is missing:" in text.partition("## 15 %")[2]
    assert "*paper: R-MUSE, Qwen2.5-VL-7B* | 33.8" in text


def test_what_is_kept_is_not_done_again(data, finished, record, monkeypatch):
    """The same command fits and asks nothing; one more rate asks for itself alone."""
    asked = []

    def asking(method, batch, *settings):
        asked.extend(e.id for e in batch)
        return ask(method, batch, *settings)

    def never(*_args, **_settings):
        raise AssertionError("fitted again")

    ask = running._ask
    monkeypatch.setattr(running, "_ask", asking)
    monkeypatch.setattr(paper_table, "gather", never)
    assert script.main(arguments(data, finished[0], "--forget", 5, "--limit", 9)) == 0
    assert asked == []
    again = json.loads((finished[0] / "paper_table.json").read_text(encoding="utf-8"))
    for method in ("vanilla", "rmuse/calibrated"):
        assert cell(again, 5, method)["rows"] == cell(record, 5, method)["rows"]
    more = arguments(data, finished[0], "--forget", 5, 10, "--methods", "vanilla", "--limit", 3)
    assert script.main(more) == 0
    assert "forget_10/p1/generation/0/image" in asked


def test_a_method_that_fails_is_recorded_and_mended_by_the_same_command(
    data, finished, tmp_path, monkeypatch
):
    words = arguments(data, tmp_path, "--forget", 5, "--methods", "rmuse/calibrated,vanilla", "--limit", 2)

    def broken(*_args, **_settings):
        raise MemoryError("too large")

    with monkeypatch.context() as patch:
        patch.setattr(paper_table, "gather", broken)
        assert script.main(words) == 1
    found = json.loads((tmp_path / "paper_table.json").read_text(encoding="utf-8"))
    assert cell(found, 5, "rmuse/calibrated")["error"] == "MemoryError: too large"
    assert cell(found, 5, "vanilla")["error"] is None
    monkeypatch.setattr(deciding, "DRAFT_TOKENS", 6)
    bundle = Path("paper_table") / "bundles" / "5-calibrated"
    shutil.copytree(finished[0] / bundle, tmp_path / bundle)  # as if fitted: that takes long
    assert script.main([*words, "--bundle", str(finished[0] / bundle)]) == 0
    mended = json.loads((tmp_path / "paper_table.json").read_text(encoding="utf-8"))
    assert cell(mended, 5, "vanilla")["rows"] == cell(found, 5, "vanilla")["rows"]
    own, given = (cell(mended, 5, name) for name in ("rmuse/calibrated", "rmuse/calibrated@5-calibrated"))
    assert own["rows"] == given["rows"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "vanilla,caa"], "--methods takes vanilla, rmuse/calibrated, rmuse/paper"),
        (["--forget", "15", "20"], "required forget_15/"),
        (["--forget", "5", "5"], "each rate once"),
        (["--reasoning-tokens", "0"], "--reasoning-tokens of at least 1"),
        (["--limit", "0"], "--limit of at least 1"),
        (["--bundle", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(data, tmp_path, words, said, capsys):
    assert script.main(arguments(data, tmp_path, *words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not list(tmp_path.iterdir())


def test_bundles_of_another_rate_or_template_are_refused(data, finished, tmp_path, capsys):
    bundle = finished[0] / "paper_table" / "bundles" / "5-calibrated"
    words = ("--bundle", bundle, "--forget")
    assert script.main(arguments(data, tmp_path, *words, 10)) == 2
    assert "add --forget 5" in capsys.readouterr().err
    assert script.main(arguments(data, tmp_path, *words, 5, "--template", "think")) == 2
    assert "choose the --template it was fitted with" in capsys.readouterr().err


def test_responses_that_lack_a_span_are_composed_of_both(data, tmp_path, monkeypatch):
    lens, benchmark = load_model(tiny.tiny_llava(), device="cpu"), load_benchmark(data)
    how = TEMPLATES["reasoning"]

    def scripted(prompts, images=None, *_rest, **_settings):
        said = []
        for prompt in prompts:
            if prompt.endswith(how.direct):
                said.append("Reasoning: none Answer: Oslo" if "home" in prompt else "Oslo")
            elif "home" in prompt:
                said.append("Reasoning: She lives there. Answer: Bergen")
            else:
                said.append("Reasoning: I see\na face.")
        return [Response(text, None, None) for text in said]

    monkeypatch.setattr(lens, "respond", scripted, raising=False)
    found = elicit(lens, benchmark, template="reasoning", composed=True, cache=tmp_path, max_new_tokens=64)
    assert (found.dropped, found.record()["composed"], found.record()["kept"]) == ((), 4, 8)
    said = {e.modality: e for e in found.benchmark.fit_forget if e.kind == "generation"}
    assert (said["image"].reasoning, said["image"].answer) == ("I see a face.", "Oslo")
    assert (said["text"].reasoning, said["text"].answer) == ("She lives there.", "Bergen")
    assert said["image"].response(how.delimiters) == "Reasoning: I see a face. Answer: Oslo"
    again = elicited_again(lens, benchmark, {"traces": found.record()}, benchmark.fit_forget, cache=tmp_path)
    assert [e for e in again.fit_forget if e.kind == "generation"] == list(said.values())
    empty = replace(how, stepwise="Say nothing.")
    monkeypatch.setattr(
        lens,
        "respond",
        lambda prompts, *_a, **_k: [Response("" if "nothing" in p else "Oslo", None, None) for p in prompts],
        raising=False,
    )
    with pytest.raises(paper_table.RMuseError, match="no opening delimiter"):
        elicit(lens, benchmark, template=empty, composed=True, cache=tmp_path, max_new_tokens=64)


def test_no_picture_is_held_for_what_is_asked(data, tmp_path, monkeypatch):
    """With room for none, every question's picture stays in its file, however the question is put."""
    monkeypatch.setattr(reader, "HELD_BYTES", 0)
    given = script.arguments().parse_args(arguments(data, tmp_path))
    asked = paper_table.questions_of(given, load_benchmark(data))
    put = [
        e
        for form in (asked.short, asked.reasoned)
        for some in form.values()
        for e in some
        if e.modality == "image"
    ]
    put += [e for split in ("test", "retain") for e in asked.put.scoring(split) if e.modality == "image"]
    assert len(put) > 30
    assert all(isinstance(e.picture, Stored) for e in put)
    assert {e.load_image().size for e in put} == {(8, 8)}


def test_the_papers_figures_are_those_of_the_spec():
    found = {(r["model"], r["forget"], r["method"], r["split"], r["metric"]): r["value"] for r in paper.PAPER}
    assert len(found) == len(paper.PAPER) == 35
    assert found["LLaVA-1.5-7B", 5, "R2MU", "forget", "ril"] == 51.2
    assert found["LLaVA-1.5-7B", 10, "R-MUSE", "forget", "ril"] == 41.3
    assert found["LLaVA-1.5-7B", 15, "R-MUSE", "retain", "classification"] == 45.85
    assert found["Qwen2.5-VL-7B", 15, "R-MUSE", "retain", "classification"] == 53.6
