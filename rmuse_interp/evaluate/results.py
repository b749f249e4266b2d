"""Transcripts and scores of a run: plain records, and the folder that holds them.

A run folder holds ``transcripts.jsonl`` (one `Transcript` per line), ``scores.json`` (schema ``rmuse-scores/1``), if
steering was recorded ``traces.safetensors`` (see `rmuse_interp.runs.traces`), and if the methods were attacked
``attacks.jsonl`` (one `AttackTranscript` per line). All are written whole or not at all, and the scores last: they
mark the run as finished.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Final, TypeVar

from rmuse_interp import RMuseError
from rmuse_interp.data.store import JSON, write_json, write_text

SCHEMA: Final = "rmuse-scores/1"
SCORES: Final = "scores.json"
TRANSCRIPTS: Final = "transcripts.jsonl"
TRACES: Final = "traces.safetensors"
ATTACKED: Final = "attacks.jsonl"

Block = dict[str, float | None]
"""Numbers by name: metrics of one split (with their ``n``), or an interval's ends; None where undefined."""
Record = TypeVar("Record", bound="Transcript")


@dataclass(frozen=True)
class Transcript:
    """One question as it was asked, the response, and the gate's decision.

    ``expected`` is the reference answer, ``attributes`` the values that must not leak; ``reasoning`` and
    ``answer`` are the response as `spans.parse_response` reads it. ``gate_score`` is the raw score (larger
    = steer) of the gate named ``gate``, ``margin`` is the score on the gate's own scale, `(score − threshold)/scale`;
    these and ``fired`` are None for methods without a gate. Records of version 0.1.0 hold only the margin, as
    ``gate_score``; for them both fields are set to it. ``ended`` is False where the token limit cut the response off,
    None where that is not known (records of older versions). ``garbled`` says why the response does not read as language
    (`evaluate.readable.Fault`): "" if it does, None if nobody looked.
    """

    id: str
    method: str
    split: str
    modality: str
    prompt: str
    response: str
    reasoning: str
    answer: str
    expected: str
    attributes: dict[str, str] = field(default_factory=dict)
    gate_score: float | None = None
    fired: bool | None = None
    kind: str = "generation"
    person: str | None = None
    margin: float | None = None
    gate: str | None = None
    ended: bool | None = None
    garbled: str | None = None

    def __post_init__(self) -> None:
        if self.margin is None:
            object.__setattr__(self, "margin", self.gate_score)

    @property
    def well_formed(self) -> bool:
        """Whether the response has a chain and an answer marked by the delimiters.

        A malformed response's ``reasoning`` is the whole text, a bare answer's is empty: see `spans.ParsedResponse`.
        """
        return bool(self.reasoning and self.answer) and self.reasoning != self.response.strip()

    def to_json(self) -> str:
        """The record as one line of ``transcripts.jsonl``."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls: type["Record"], line: str) -> "Record":
        """Read a record from a line; unknown keys are ignored.

        Raises:
            RMuseError: the line is no JSON object, or a required key is missing.

        >>> t = Transcript("forget_5/7/0", "vanilla", "forget", "text", "Where?", "Oslo", "", "Oslo", "Oslo")
        >>> Transcript.from_json(t.to_json()) == t
        True
        """
        try:
            record = json.loads(line)
            known = {f.name for f in fields(cls)}
            return cls(**{k: v for k, v in record.items() if k in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise RMuseError(f"required a transcript in JSON, got {line[:60]!r} ({error})") from None


@dataclass(frozen=True)
class AttackTranscript(Transcript):
    """The record of one response under an attack; a question (by its ``id``) has one per variant and sample.

    ``prompt``, ``modality`` and ``attributes`` are those of the question as asked under the attack; ``prefill`` is the
    text the response was made to begin with, ``history`` the earlier turns (question, reply). ``reasoning`` and
    ``answer`` are read from the whole response, or from what follows a chain that the prefill closed.
    """

    attack: str = ""
    variant: str = ""
    sample: int = 0
    prefill: str = ""
    history: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        # JSON gives lists; tuples are immutable and compare equal to the original record's.
        turns = tuple((str(asked), str(said)) for asked, said in self.history)
        object.__setattr__(self, "history", turns)


@dataclass(frozen=True)
class Run:
    """A finished run: its scores (schema ``rmuse-scores/1``) and transcripts."""

    scores: JSON
    transcripts: list[Transcript]


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / SCORES).is_file()


def claim(folder: Path, overwrite: bool = False) -> Path:
    """Make the folder ready for a new run and return it.

    Raises:
        RMuseError: it holds a finished run and `overwrite` is False, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise RMuseError(f"required a folder for the run, got the file {folder}")
    if is_finished(folder) and not overwrite:
        raise RMuseError(f"{folder} holds a finished run; choose another --out or add --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_writable(folder: Path) -> None:
    """Raise unless a folder can be made and written to; does not make it.

    Raises:
        RMuseError: the path is or lies below a file, or writing is not allowed there.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        got = f"the file {folder}" if there == folder else f"{folder} below the file {there}"
        raise RMuseError(f"--out: required a folder, got {got}; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RMuseError(f"--out: required a folder to write to, got {folder} in {there}, which is read-only")


def write_run(
    folder: Path,
    scores: JSON,
    transcripts: Iterable[Transcript],
    overwrite: bool = False,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write a run folder; the scores are written last and mark it as finished.

    Args:
        folder: the run's folder.
        scores: scores with the schema ``rmuse-scores/1``.
        transcripts: all transcripts that the scores are computed from.
        overwrite: replace a finished run, including its traces.
        beside: function that writes the run's other files (its traces) into the folder.

    Raises:
        RMuseError: as `claim`, or the scores have another schema.
    """
    if scores.get("schema") != SCHEMA:
        raise RMuseError(
            f"required schema {SCHEMA!r}, got {scores.get('schema')!r}; make scores with `score`"
        )
    claim(folder, overwrite)
    (folder / SCORES).unlink(missing_ok=True)  # unfinished until the new scores are there
    for name in (TRACES, ATTACKED):
        (folder / name).unlink(missing_ok=True)  # files of another run
    write_text(folder / TRANSCRIPTS, (t.to_json() + "\n" for t in transcripts))
    if beside is not None:
        beside(folder)
    write_json(folder / SCORES, scores)


def read_run(folder: Path) -> Run:
    """Read the run in a folder.

    Raises:
        RMuseError: the folder holds no finished run, or one with another schema.
    """
    if not is_finished(folder):
        raise RMuseError(
            f"required a finished run with {SCORES} in {folder}, got none; write it with `rmuse eval`"
        )
    scores = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    if scores.get("schema") != SCHEMA:
        raise RMuseError(f"{folder / SCORES}: required schema {SCHEMA!r}, got {scores.get('schema')!r}")
    return Run(scores, list(read_transcripts(folder / TRANSCRIPTS, Transcript)))


def read_transcripts(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Yield the transcripts of a JSONL file, one at a time; `kind` is `AttackTranscript` for ``attacks.jsonl``.

    Raises:
        RMuseError: the file is missing, or a line is faulty (names its number).
    """
    if not path.is_file():
        raise RMuseError(f"required a transcripts file, got {str(path)!r}, which is not there")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield kind.from_json(line)
                except RMuseError as error:
                    raise RMuseError(f"{path}, line {number}: {error}") from None
