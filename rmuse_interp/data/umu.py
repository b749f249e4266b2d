"""UMU-Bench: one row per person, columns of Python literals in strings, every question with and without the picture.

The key for questions with the picture is spelled ``muitimodal`` in the published files; ``multimodal`` is read as well.
``Classify``, ``Cloze`` and ``Generation`` hold ``{unimodal: {key: {question, answer, options}}, muitimodal: …}``,
``MM_QA`` and ``UM_QA`` ``{question: {key: …}, answer: {key: …}}``.
"""

import ast
from collections.abc import Iterator
from typing import Final

from rmuse_interp.data import fields
from rmuse_interp.data.example import Kind, Modality
from rmuse_interp.data.fields import Fault, Question
from rmuse_interp.data.rows import Row

MARKS: Final = ("MM_QA", "UM_QA", "Classify", "Cloze", "Generation")
COLUMNS: Final = ("ID", "image", "Biography", *MARKS)
_PICTURED: Final = ("muitimodal", "multimodal")
_TASKS: Final[dict[str, Kind]] = {"Generation": "generation", "Cloze": "cloze", "Classify": "classification"}


def literal(value: object, at: str) -> object:
    """Parse a column's string as a Python literal (`ast.literal_eval`: no code is run); numpy arrays become lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        said = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise Fault(at, f"required a Python literal, got {value[:60]!r} ({said})") from None


def tasks(record: Row) -> Iterator[Question]:
    """Yield every question of a person: the two lists of questions and answers, then the three tasks."""
    pairs: tuple[tuple[str, Modality], ...] = (("MM_QA", "image"), ("UM_QA", "text"))
    for column, modality in pairs:
        for i, (key, question, answer) in enumerate(_pairs(literal(record.get(column), column), column)):
            place = f"{column}[{key}]"
            yield Question(
                f"generation/qa{i}",
                "generation",
                place,
                modality,
                {"Question": question, "Ground_Truth": answer},
            )
    for column, kind in _TASKS.items():
        value = literal(record.get(column), column)
        if value is None:
            continue
        both = fields.as_dict(value, column)
        pictured = [key for key in _PICTURED if both.get(key) is not None]
        if len(pictured) > 1:
            raise Fault(column, "required one of the keys muitimodal and multimodal, got both")
        sides: tuple[tuple[str, Modality], ...] = (
            ((*pictured, _PICTURED[0])[0], "image"),
            ("unimodal", "text"),
        )
        if not pictured and both.get("unimodal") is None:
            raise Fault(column, f"required the keys unimodal and muitimodal, got {', '.join(both) or 'none'}")
        for side, modality in sides:
            for i, (key, entry) in enumerate(_entries(both.get(side), f"{column}[{side}]")):
                place = f"{column}[{side}][{key}]"
                yield Question(f"{kind}/{i}", kind, place, modality, _question(entry, kind, place))


def facts(record: Row) -> dict[str, str]:
    """The facts in the biography, a Python literal or JSON; free text gives none."""
    value = record.get("Biography")
    try:
        return fields.biography(literal(value, "Biography"))
    except Fault:
        return fields.biography(value)


def _entries(value: object, at: str) -> list[tuple[str, Row]]:
    """Pairs of key and question from a mapping or a list."""
    if value is None:
        return []
    found = dict(enumerate(value)) if isinstance(value, list | tuple) else fields.as_dict(value, at)
    return [(str(key), fields.as_dict(entry, f"{at}[{key}]")) for key, entry in found.items()]


def _pairs(value: object, at: str) -> list[tuple[str, str, str]]:
    """Triples of key, question and answer from two parallel mappings or a list of pairs."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        found = {key: (entry, entry) for key, entry in _entries(value, at)}
        return [
            (k, fields.text(q, "question", f"{at}[{k}]."), fields.text(a, "answer", f"{at}[{k}]."))
            for k, (q, a) in found.items()
        ]
    both = fields.as_dict(value, at)
    questions, answers = (fields.as_dict(both.get(k), f"{at}[{k}]") for k in ("question", "answer"))
    return [
        (str(k), fields.text(questions, k, f"{at}[question]."), fields.text(answers, k, f"{at}[answer]."))
        for k in questions
    ]


def _question(entry: Row, kind: Kind, place: str) -> dict[str, object]:
    question, answer = (fields.text(entry, key, f"{place}.") for key in ("question", "answer"))
    if kind != "classification":
        # A cloze answer is a word or two and a full stop, which a reply need not repeat.
        answer = answer.strip().removesuffix(".") if kind == "cloze" else answer
        return {"Question": question, "Ground_Truth": answer}
    options = fields.options(entry.get("options"), f"{place}.options")
    letter = answer.split(".")[0].strip()  # "B. Oslo", or the letter alone
    if letter not in options:
        raise Fault(f"{place}.answer", f"required one of {', '.join(options)}, got {answer!r:.60}")
    return {"Question": question, "Options": options, "Correct_Answer": letter}
