"""R-TOFU: text only; each line is a JSON object with one question and its chain of thought.

Files are named by split: ``forget05.jsonl`` (published with the ending ``.json``), ``retain95``. The files
``forget05_perturbed`` and ``retain_perturbed`` ask the same in other words and form the test splits;
``real_authors_perturbed`` and ``world_facts_perturbed`` ask what a model knows from pretraining. A ``task_id`` numbers
a request of several questions, from the start in every file, and retain files may lack it: people are identified by
split and number.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rmuse_interp.data import fields
from rmuse_interp.data.fields import Fault, Question
from rmuse_interp.data.rows import Row, identifier, records

MARKS: Final = ("cot",)
COLUMNS: Final = (
    "task_id",
    "question",
    "answer",
    "cot",
    "paraphrased_answer",
    "perturbed_answer",
    "paraphrased_question",
)
KNOWN: Final = ("real_authors", "world_facts")


def files(root: Path, folder: str, rate: int | None) -> list[Path]:
    """The files that correspond to a folder of RMLLMU-Bench, sorted; `rate` is the forget rate, if one is chosen."""
    name, _, number = folder.partition("_")
    stems: list[str] = []
    if name in ("forget", "retain") and number.isdigit():
        stems = [f"{name}{int(number):02d}", f"{name}{number}"]
    elif folder == "Test_Set" and rate is not None:
        stems = [f"forget{rate:02d}_perturbed", f"retain{100 - rate}_perturbed", "retain_perturbed"]
    elif folder == "Retain_Set":
        stems = [f"{known}{end}" for known in KNOWN for end in ("", "_perturbed")]
    found = {path for stem in stems for end in (".jsonl", ".json") for path in root.glob(stem + end)}
    return sorted(found)


def person(record: Row, path: Path, row: int) -> str:
    """Identify the person of a question: its request within the split, or the question itself if it has no request."""
    split = next((s for s in ("forget", "retain", *KNOWN) if path.stem.startswith(s)), path.stem)
    request = identifier(record.get("task_id"))
    return f"{split}-{row:05d}" if request is None else f"{split}-{request}"


def tasks(record: Row) -> Iterator[Question]:
    """The question of a line, in other words where the file has a paraphrase.

    Only perturbed files, which are for scoring, may leave the chain empty.
    """
    for column in ("question", "answer", "cot"):
        if column not in record:
            raise Fault(column, f"required the key {column!r}, got {', '.join(record)}")
    asked = "paraphrased_question" if record.get("paraphrased_question") else "question"
    scoring = record.get("perturbed_answer") is not None
    chain = record["cot"]
    if isinstance(chain, str) and not chain.strip() and scoring:
        chain = None
    yield Question(
        "generation/0",
        "generation",
        asked,
        "text",
        {
            "Question": fields.text(record, asked, ""),
            "Ground_Truth": fields.text(record, "answer", ""),
            "Reasoning": fields.reasoning(chain, "cot"),
            # If the paraphrase is asked, the original question becomes its paraphrase.
            "Paraphrased_Question": fields.optional_text(record, "question", "")
            if asked != "question"
            else None,
            "Paraphrased_Answer": fields.optional_text(record, "paraphrased_answer", ""),
            "Perturbed_Answers": [
                fields.said(a, "perturbed_answer")
                for a in fields.as_list(record.get("perturbed_answer"), "perturbed_answer")
            ],
        },
    )


def facts(record: Row) -> dict[str, str]:
    """No facts: the format states no attributes."""
    return {}


def shared(forget: list[Path], retain: list[Path]) -> list[str]:
    """Questions in both forget and retain files, sorted; IDs cannot show this, as `person` gives each file its own."""

    def told_before(_line: int, _reason: str) -> None:
        """Ignore a faulty line: an earlier reading has reported it, or stopped at it."""

    def asked(paths: list[Path]) -> set[str]:
        found = (row for path in paths for _, row in records(path, path.name, ("question",), bad=told_before))
        return {str(row.get("question", "")).strip() for row in found}

    return sorted(asked(forget) & asked(retain))
