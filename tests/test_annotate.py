"""`rmuse data annotate` against a real server: written, sent back, verified, kept, and never half done."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import done, refused, rmuse
from helpers.misbehaving import serving
from helpers.parquet_fixture import CITY, NAME, write_benchmark

from rmuse_interp.data import load_benchmark
from rmuse_interp.evaluate.judges import Consultation, Endpoint
from rmuse_interp.fitting.annotate import Task, annotate, fault_of, task_of, tasks_in


def bare(row):
    """A person's row as MLLMU-Bench has it: no reasoning, no attributes."""
    keep = ("Type", "Question", "Ground_Truth")
    tasks = [{k: q[k] for k in keep} for q in row["Generation_Task"]]
    # The country is no fact of the fixture's biography: the writer needs it.
    facts = {**json.loads(row["biography"]), "Country": row["Generation_Task"][1]["Ground_Truth"]}
    return {**row, "Generation_Task": tasks, "biography": json.dumps(facts)}


@pytest.fixture
def folder(tmp_path):
    return write_benchmark(tmp_path / "bench", bare)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def line(question: str, name: str) -> str:
    return next(x for x in question.splitlines() if x.startswith(name)).split(": ", 1)[1]


def writer(question: str) -> str:
    """A careful model: writes from the record, and finds fault with chains that say more."""
    record, answer = json.loads(line(question, "Record")), line(question, "Answer")
    if "You check reasoning" in question:
        chain = line(question, "Reasoning")
        right = "famous" not in chain
        said = {"attributable": True, "conservative": right, "consistent": answer in chain}
        return json.dumps({**said, "fault": "" if right else "nothing says famous"})
    key = next((k for k, v in record.items() if v == answer), "Residence")
    steps = [
        {"step": f"The record says {key}.", "evidence": key},
        {"step": f"So it is {answer}.", "evidence": key},
    ]
    return json.dumps({"steps": steps})


def hasty(question: str) -> str:
    """Embroiders the first draft, and mends it when it is sent back."""
    if "Write the reasoning" in question and "sent back" not in question:
        answer = line(question, "Answer")
        return json.dumps({"steps": [{"step": f"The famous one: {answer}.", "evidence": "Name"}]})
    return writer(question)


def annotated(server, folder, out, *more):
    return done(
        "data", "annotate", folder, "--out", out, "--judge", "openai:m", "--judge-url", server.url, *more
    )


def test_a_benchmark_without_reasoning_gets_it(folder, tmp_path):
    out = tmp_path / "out"
    with serving(writer) as server:
        shown = annotated(server, folder, out)
        n = len(tasks_in(folder))
        assert (
            len(server.questions) == 2 * n
        )  # written once and checked once, though people are in several splits
    assert f"reasoning for {n} of {n} questions" in shown.output
    before, after = load_benchmark(folder), load_benchmark(out)
    for split in ("forget", "retain", "test", "celebrity"):
        one, two = before.scoring(split), after.scoring(split)
        assert [e.id for e in one] == [e.id for e in two]
        assert all(e.reasoning is None for e in one if e.kind == "generation")
        assert all(e.answer in e.reasoning for e in two if e.kind == "generation")
        assert [e.answer for e in one] == [e.answer for e in two]
        assert [e.image.read() if hasattr(e.image, "read") else e.image for e in one if e.image] == [
            e.image.read() if hasattr(e.image, "read") else e.image for e in two if e.image
        ]
    assert (out / "benchmark.json").read_bytes() == (folder / "benchmark.json").read_bytes()
    assert not tasks_in(out)


def test_every_chain_is_listed_for_audit(folder, tmp_path):
    with serving(writer) as server:
        annotated(server, folder, tmp_path / "out")
    lines = (tmp_path / "out" / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(text) for text in lines]
    assert all(r["accepted"] and r["attributable"] and r["conservative"] and r["consistent"] for r in records)
    assert records[0]["steps"][0].keys() == {"step", "evidence"}
    with (tmp_path / "out" / "audit.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records)
    assert {"question", "steps", "fault", "auditor", "verdict"} <= set(rows[0])
    assert {row["verdict"] for row in rows} == {""}


TASK = Task("p0", json.dumps({"Name": "Mara Venn", "Residence": "Oslo"}), "Pure_Text", "Where?", "Oslo")


def consultation(server, folder=None):
    return Consultation(Endpoint("m", server.url, attempts=3, wait=0.01, at_once=2), folder)


def test_a_draft_that_says_too_much_is_sent_back_and_mended():
    with serving(hasty) as server:
        (found,) = annotate([TASK], consultation(server))
        assert found.accepted
        assert found.rounds == 2
        assert "famous" not in found.reasoning
        assert any("not conservative: nothing says famous" in q for q in server.questions)


def test_what_is_never_mended_stays_without_and_is_listed(folder, tmp_path):
    def stubborn(question: str) -> str:
        return hasty(question.replace("sent back", ""))

    with serving(stubborn) as server:
        (found,) = annotate([TASK], consultation(server))
        assert (found.accepted, found.rounds) == (False, 3)
        shown = annotated(server, folder, tmp_path / "out")
    assert "reasoning for 0 of" in shown.output
    assert all(e.reasoning is None for e in load_benchmark(tmp_path / "out").scoring("forget"))
    listed = [json.loads(text) for text in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    assert all("not conservative" in r["fault"] for r in listed)


def test_plain_faults_cost_no_verifier():
    assert fault_of(TASK, [("She lives in Oslo.", "Residence")]) == ""
    assert "no key Diary" in fault_of(TASK, [("She lives in Oslo.", "Diary")])
    assert "do not state the answer" in fault_of(TASK, [("She lives somewhere.", "Residence")])

    def strange(question: str) -> str:
        return json.dumps({"steps": [{"step": "Oslo.", "evidence": "Diary"}]})

    with serving(strange) as server:
        (found,) = annotate([TASK], consultation(server))
        assert not found.accepted
        assert all("Write the reasoning" in q for q in server.questions)


def test_faults_of_the_server_pass_and_lasting_ones_lose_nothing(folder, tmp_path):
    out = tmp_path / "out"
    with serving(writer, "429", "500", "drop", "cut") as server:
        server.faults += [None] * 6 + ["401"]
        said = refused_last(
            "data", "annotate", folder, "--out", out, "--judge", "openai:m", "--judge-url", server.url
        )
        assert "a valid key" in said
        assert not out.exists()
        before = len(server.questions)
        annotated(server, folder, out)
        # four faults of the first round and the last one were no replies: all others are kept
        assert len(server.questions) - before <= 2 * len(tasks_in(folder)) - 5
    assert load_benchmark(out).scoring("forget")[0].reasoning


def test_some_prose_leaves_one_question_without(folder, tmp_path):
    def odd(question: str) -> str:
        return (
            "I'd rather chat."
            if "does this person live" in question and "Rome" in question
            else writer(question)
        )

    with serving(odd) as server:
        annotated(server, folder, tmp_path / "out")
    listed = [json.loads(text) for text in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    assert [r["answer"] for r in listed if not r["accepted"]] == ["Rome"]
    assert {r["fault"] for r in listed if not r["accepted"]} == {"no readable reply"}


def test_prose_alone_is_refused_and_nothing_is_written(folder, tmp_path):
    with serving(lambda _: "Let me tell you a story.") as server:
        said = refused_last(
            "data",
            "annotate",
            folder,
            "--out",
            tmp_path / "out",
            "--judge",
            "openai:m",
            "--judge-url",
            server.url,
        )
    assert "Let me tell you a story." in said
    assert not (tmp_path / "out").exists()


def test_costs_are_told_before_and_bounded(folder, tmp_path):
    prices = ("--price-in", 1e6, "--price-out", 0)
    with serving(writer) as server:
        args = (
            "data",
            "annotate",
            folder,
            "--out",
            tmp_path / "out",
            "--judge",
            "openai:m",
            "--judge-url",
            server.url,
        )
        assert "would cost more" in refused_last(*args, *prices, "--max-cost", 1)
        assert not server.questions
        assert "add --price-in" in refused(*args, "--max-cost", 1)
        shown = annotated(server, folder, tmp_path / "out", "--price-in", 1, "--price-out", 1)
        assert "questions to ask (about" in shown.stderr
        assert (
            f"{len(server.questions) * 100:,} + {len(server.questions) * 10:,} tokens, cost" in shown.stderr
        )


def refused_last(*words) -> str:
    """The error of a command that tells an estimate before it."""
    result = rmuse(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr.splitlines()[-1]


def test_names_of_any_script_and_long_answers_go_through(tmp_path):
    def change(row):
        row = bare(row)
        facts = {**json.loads(row["biography"]), "Motto": "長い " * 15_000}
        asked = [{"Type": "Pure_Text", "Question": "モットーは?", "Ground_Truth": facts["Motto"]}]
        return {**row, "biography": json.dumps(facts, ensure_ascii=False), "Generation_Task": asked}

    folder = write_benchmark(tmp_path / "bench", change)
    with serving(writer) as server:
        annotated(server, folder, tmp_path / "out")
    chain = load_benchmark(tmp_path / "out").scoring("forget")[0].reasoning
    assert len(chain.encode()) > 50_000
    assert "長い" in chain


def test_json_strings_stay_json_strings(folder, tmp_path):
    path = next(folder.glob("forget_5/*.parquet"))
    table = pq.read_table(path)
    column = pa.array([json.dumps(row, ensure_ascii=False) for row in table["Generation_Task"].to_pylist()])
    pq.write_table(
        table.set_column(table.schema.get_field_index("Generation_Task"), "Generation_Task", column), path
    )
    with serving(writer) as server:
        annotated(server, folder, tmp_path / "out")
    made = pq.read_table(tmp_path / "out" / path.relative_to(folder))
    assert json.loads(made["Generation_Task"][0].as_py())[0]["Reasoning"]
    assert load_benchmark(tmp_path / "out").scoring("forget")[0].reasoning


def test_reasoning_that_is_there_stays(tmp_path):
    folder = write_benchmark(tmp_path / "bench")
    assert not tasks_in(folder)
    args = ("--out", tmp_path / "out", "--judge", "openai:m", "--judge-url", "http://localhost:1/v1")
    assert "it has reasoning" in refused("data", "annotate", folder, *args)
    record = {"ID": "p0", "biography": "{}"}
    question = {"Type": "Pure_Text", "Question": "Q?", "Ground_Truth": "A", "Reasoning": [{"step": "s"}]}
    assert task_of(record, question) is None
    assert task_of(record, {**question, "Reasoning": None}) is not None


def test_bad_input_is_named(folder, tmp_path):
    out = ("--out", tmp_path / "out", "--judge-url", "http://localhost:1/v1", "--judge")
    assert "required parquet files" in refused("data", "annotate", tmp_path / "none", *out, "openai:m")
    assert "rules, openai:MODEL or local:PATH" in refused("data", "annotate", folder, *out, "rules")
    key = refused("data", "annotate", folder, "--out", tmp_path / "out", "--judge", "openai:m")
    assert "OPENAI_API_KEY, got none" in key
    inside = refused("data", "annotate", folder, "--out", folder / "x", "--judge", "openai:m")
    assert "a folder outside" in inside
    path = next(folder.glob("forget_5/*.parquet"))
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["Generation_Task"][0]["Ground_Truth"] = None
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    said = refused("data", "annotate", folder, *out, "openai:m")
    assert "row 0" in said
    assert "Ground_Truth" in said


def test_the_fixture_is_what_it_should_be(folder):
    assert {task.person for task in tasks_in(folder)} == set(NAME)
    assert {task.answer for task in tasks_in(folder)} >= set(CITY.values())
