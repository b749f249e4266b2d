"""Write reasoning for a benchmark without any, as for RMLLMU-Bench: a generator writes, a verifier sends back.

For each open question about a person, a language model writes a chain from the person's record alone. In a new prompt
the same model checks that the chain is *attributable* (every step rests on a fact of the record), *conservative* (it
says no more than the record and the question do) and *consistent* (its steps follow and lead to the given answer). A
chain that fails goes back with its fault, up to `ROUNDS` times; if it still fails, the question stays without
reasoning. Everything is listed for human audit.
"""

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rmuse_interp import RMuseError
from rmuse_interp.data import fields
from rmuse_interp.data.fields import Fault
from rmuse_interp.data.store import JSON, write_text
from rmuse_interp.evaluate.judges import Consultation, Quote, Unreadable
from rmuse_interp.evaluate.judges.consulting import json_in
from rmuse_interp.evaluate.text import Lexicon

ROUNDS: Final = 3
"""Maximum number of times a chain is written before the question stays without one."""
CHECKS: Final = ("attributable", "conservative", "consistent")
AUDIT: Final = "audit"
"""Stem of the audit files ``audit.jsonl`` and ``audit.csv``; a person fills in the last two columns of the CSV."""
COLUMN: Final = "Generation_Task"
WRITE: Final = """Write the reasoning that leads from a person's record to the answer of a question.

Record: {record}
Question{seen}: {question}
Answer: {answer}
{fault}One to five short steps in the third person, the last of which states the answer. Use only facts of the record \
that the question needs; add nothing to them. For each step name the key of the record it rests on.
Reply with one JSON object and nothing else: {{"steps": [{{"step": "a sentence", "evidence": "a key of the record"}}]}}"""
CHECK: Final = """You check reasoning that somebody wrote about a person.

Record: {record}
Question{seen}: {question}
Answer: {answer}
Reasoning: {chain}
"attributable": true if every step rests on the record.
"conservative": true if it says nothing about the person that neither the record nor the question says.
"consistent": true if the steps follow from one another and lead to the answer.
"fault": what is wrong, in one sentence; empty if nothing is.
Reply with one JSON object and nothing else: {{"attributable": true or false, "conservative": true or false, \
"consistent": true or false, "fault": "…"}}"""
_REPLY_TOKENS: Final = 120
_CHAIN_GUESS: Final = "x" * 300


@dataclass(frozen=True)
class Task:
    """One question that needs a chain; equal questions in several splits are one task."""

    person: str
    record: str
    modality: str
    question: str
    answer: str

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the record; empty if the record is free text."""
        try:
            return frozenset(json.loads(self.record))
        except ValueError:
            return frozenset()

    def words(self, **more: str) -> dict[str, str]:
        """The values that fill the prompt templates."""
        seen = " (about a picture of the person)" if self.modality == "Image_Textual" else ""
        return {
            "record": self.record,
            "seen": seen,
            "question": self.question,
            "answer": self.answer,
            **more,
        }


@dataclass(frozen=True)
class Annotation:
    """The result of a task: its steps as ``(sentence, key)``, the checks of its last round, and whether it is used."""

    task: Task
    steps: tuple[tuple[str, str], ...] = ()
    checks: Mapping[str, bool] | None = None
    fault: str = ""
    rounds: int = 0
    accepted: bool = False

    @property
    def reasoning(self) -> str:
        """The chain as text."""
        return " ".join(step for step, _ in self.steps)


def annotate(tasks: Sequence[Task], consultation: Consultation) -> list[Annotation]:
    """Write and verify a chain for each task.

    Raises:
        RMuseError: as `Consultation.ask`; a new run with the same folder of replies continues from there.
    """
    found = {task: Annotation(task) for task in tasks}
    for _ in range(ROUNDS):
        pending = [task for task, one in found.items() if not one.accepted]
        if not pending:
            break
        written = consultation.ask([_to_write(found[task]) for task in pending], _steps)
        drafts = []
        for task, steps in zip(pending, written, strict=True):
            one = replace(found[task], rounds=found[task].rounds + 1, checks=None)
            fault = "no readable reply" if steps is None else fault_of(task, steps)
            one = replace(one, steps=() if steps is None else steps, fault=fault)
            found[task] = one
            if not fault:
                drafts.append(task)
        asked = [CHECK.format(**t.words(chain=found[t].reasoning)) for t in drafts]
        for task, said in zip(drafts, consultation.ask(asked, _checks), strict=True):
            if said is None:
                found[task] = replace(found[task], fault="the verifier gave no readable verdict")
            else:
                checks, fault = said
                fine = all(checks.values())
                failed = ", ".join(name for name, right in checks.items() if not right)
                found[task] = replace(
                    found[task],
                    checks=checks,
                    accepted=fine,
                    fault="" if fine else f"not {failed}: {fault}",
                )
    return [found[task] for task in tasks]


def fault_of(task: Task, steps: Sequence[tuple[str, str]]) -> str:
    """Describe a fault of a draft that shows without a verifier; empty if there is none.

    Such faults are a step that names a key missing from the record, and a chain that omits an answer in the record.
    """
    strange = sorted({key for _, key in steps} - task.keys) if task.keys else []
    if strange:
        return f"the record has no key {', '.join(strange)[:80]}"
    words, chain = Lexicon(), " ".join(step for step, _ in steps)
    if words.states(task.record, task.answer) and not words.states(chain, task.answer):
        return "the steps do not state the answer"
    return ""


def estimate(tasks: Sequence[Task], consultation: Consultation) -> Quote:
    """Estimate the cost of one round, in which every chain is written and checked once."""
    asked = [_to_write(Annotation(task)) for task in tasks]
    asked += [CHECK.format(**task.words(chain=_CHAIN_GUESS)) for task in tasks]
    found = consultation.estimate(asked)
    reply_tokens = _REPLY_TOKENS * found.questions
    cost = consultation.budget.cost_of(found.prompt_tokens, reply_tokens)
    return replace(found, reply_tokens=reply_tokens, cost=cost)


def _to_write(one: Annotation) -> str:
    fault = f"An earlier draft was sent back: {one.fault}. Mend that.\n" if one.fault else ""
    return WRITE.format(**one.task.words(fault=fault))


def _steps(text: str) -> tuple[tuple[str, str], ...]:
    rows = json_in(text).get("steps")
    if not isinstance(rows, list) or not rows:
        raise Unreadable(text.strip())
    found = []
    for row in rows:
        step, key = (row.get("step"), row.get("evidence")) if isinstance(row, dict) else (None, None)
        if not isinstance(step, str) or not step.strip() or not isinstance(key, str):
            raise Unreadable(text.strip())
        found.append((step.strip(), key.strip()))
    return tuple(found)


def _checks(text: str) -> tuple[dict[str, bool], str]:
    found = json_in(text)
    checks = {name: found.get(name) for name in CHECKS}
    if not all(isinstance(value, bool) for value in checks.values()):
        raise Unreadable(text.strip())
    return {name: bool(value) for name, value in checks.items()}, str(found.get("fault") or "")


# ---------------------------------------------------------------- folders


def tasks_in(folder: Path) -> list[Task]:
    """List the open questions without reasoning in a folder of person rows (MLLMU-Bench's parquet), each once.

    Raises:
        RMuseError: a missing folder, a folder without person rows, a faulty row.
    """
    found: dict[Task, None] = {}
    files = person_files(folder)
    for path in files:
        for row, record in _rows(path, ("ID", "biography", COLUMN)):
            with _named(path.relative_to(folder), row):
                for question in fields.as_list(record.get(COLUMN), COLUMN):
                    task = task_of(record, fields.as_dict(question, COLUMN))
                    if task is not None:
                        found[task] = None
    return list(found)


def person_files(folder: Path) -> list[Path]:
    """List the parquet files of a folder that hold person rows.

    Raises:
        RMuseError: no such file.
    """
    import pyarrow.parquet as pq

    files = sorted(folder.glob("*/*.parquet")) if folder.is_dir() else []
    found = [path for path in files if {"ID", COLUMN} <= set(pq.read_schema(path).names)]
    if not found:
        raise RMuseError(
            f"{folder}: required parquet files with the columns ID and {COLUMN} in folders of splits, got none"
        )
    return found


def task_of(record: JSON, question: Mapping[str, object]) -> Task | None:
    """Make a task of one question in a person's row; None if it already has reasoning."""
    if question.get("Reasoning"):
        return None
    facts = fields.biography(record.get("biography"))
    text = json.dumps(facts, ensure_ascii=False) if facts else str(record.get("biography") or "")
    return Task(
        fields.identity(record),
        text,
        str(question.get("Type")),
        fields.text(question, "Question", f"{COLUMN}."),
        fields.text(question, "Ground_Truth", f"{COLUMN}."),
    )


def write_annotated(folder: Path, out: Path, annotations: Sequence[Annotation]) -> None:
    """Copy the folder, adding ``Reasoning`` where a chain was accepted, and write the audit files."""
    chains = {one.task: one.reasoning for one in annotations if one.accepted}
    people = set(person_files(folder))
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        place = out / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path in people:
            _rewrite(path, place, chains)
        else:
            shutil.copyfile(path, place)
    write_audit(out, annotations)


def write_audit(out: Path, annotations: Sequence[Annotation]) -> None:
    """Write ``audit.jsonl`` (everything) and ``audit.csv`` (for people, with empty ``auditor`` and ``verdict``)."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [_audited(one) for one in annotations]
    write_text(out / f"{AUDIT}.jsonl", (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    table = io.StringIO()
    names = [*(rows[0] if rows else ()), "auditor", "verdict"]
    writer = csv.DictWriter(table, names, restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "steps": " | ".join(f"{s['step']} [{s['evidence']}]" for s in row["steps"])})
    # The byte-order mark tells spreadsheets that the file is UTF-8.
    write_text(out / f"{AUDIT}.csv", ["\ufeff", table.getvalue()])


def _audited(one: Annotation) -> JSON:
    task = one.task
    return {
        "person": task.person,
        "type": task.modality,
        "question": task.question,
        "answer": task.answer,
        "record": task.record,
        "accepted": one.accepted,
        "rounds": one.rounds,
        "fault": one.fault,
        **{name: None if one.checks is None else one.checks[name] for name in CHECKS},
        "steps": [{"step": step, "evidence": key} for step, key in one.steps],
    }


def _rewrite(path: Path, place: Path, chains: Mapping[Task, str]) -> None:
    """Write one file of person rows with its accepted chains, a few rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        at = schema.get_field_index(COLUMN)
        kind = _with_reasoning(schema.field(at).type)
        with pq.ParquetWriter(place, schema.set(at, pa.field(COLUMN, kind))) as writer:
            for batch in file.iter_batches(batch_size=16):
                known = [name for name in ("ID", "biography", COLUMN) if name in schema.names]
                rows = batch.select(known).to_pylist()
                column = [_filled(row, chains, pa.types.is_string(kind)) for row in rows]
                table = pa.Table.from_batches([batch])
                writer.write_table(table.set_column(at, pa.field(COLUMN, kind), pa.array(column, type=kind)))


def _with_reasoning(kind: Any) -> Any:
    """Add a string field ``Reasoning`` to the type of the questions' column; JSON strings stay strings."""
    import pyarrow as pa

    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.string()
    struct = kind.value_type
    there = [struct.field(i) for i in range(struct.num_fields)]
    return pa.list_(
        pa.struct([f for f in there if f.name != "Reasoning"] + [pa.field("Reasoning", pa.string())])
    )


def _filled(record: JSON, chains: Mapping[Task, str], as_json: bool) -> str | list[JSON]:
    questions = []
    for question in fields.as_list(record.get(COLUMN), COLUMN):
        entry = dict(fields.as_dict(question, COLUMN))
        task = task_of(record, entry)
        entry["Reasoning"] = (
            fields.reasoning(entry.get("Reasoning"), "Reasoning") if task is None else chains.get(task)
        )
        questions.append(entry)
    return json.dumps(questions, ensure_ascii=False) if as_json else questions


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, JSON]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        use = [c for c in columns if c in file.schema_arrow.names]
        row = 0
        for batch in file.iter_batches(batch_size=64, columns=use):
            for record in batch.to_pylist():
                yield row, record
                row += 1


@contextmanager
def _named(file: Path, row: int) -> Iterator[None]:
    """Turn an exception into an error that names the file and row."""
    try:
        yield
    except Fault as fault:
        raise RMuseError(f"{file}, row {row}, field {fault.field!r}: {fault.reason}; mend the row") from None
