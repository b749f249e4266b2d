"""Check a benchmark: what it holds, and every row, picture and split that breaks the format."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from rmuse_interp import RMuseError
from rmuse_interp.data import formats, rtofu
from rmuse_interp.data.example import Example
from rmuse_interp.data.pictures import unreadable
from rmuse_interp.data.reader import Reader
from rmuse_interp.data.rmllmu import QUESTION_FOLDERS
from rmuse_interp.data.rows import Problem, count_rows
from rmuse_interp.data.settings import Settings
from rmuse_interp.data.words import folded

SCHEMA: Final = "rmuse-data-check/1"


@dataclass
class Split:
    """Contents of one split's files. `missing` counts questions that lack a field used in fitting or scoring."""

    format: str
    rows: int = 0
    people: int = 0
    questions: int = 0
    pictures: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    modalities: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)


@dataclass
class Report:
    """Splits by name, problems with file, row and field, and notes: facts that are no fault, but matter to the user."""

    folder: str
    format: str | None = None
    splits: dict[str, Split] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, object]:
        """The report as plain JSON."""
        splits = {
            name: {
                key: dict(value) if isinstance(value, Counter) else value
                for key, value in vars(split).items()
            }
            for name, split in self.splits.items()
        }
        problems = [asdict(problem) for problem in self.problems]
        return {
            "schema": SCHEMA,
            "folder": self.folder,
            "format": self.format,
            "splits": splits,
            "problems": problems,
            "notes": self.notes,
        }


def check(folder: Path, name: str | None = None) -> Report:
    """Read every row of every split and decode every picture once; report the first fault of each row.

    Memory does not grow with the pictures: rows are read a few at a time, and only their IDs and digests are kept.

    Args:
        folder: the benchmark's folder.
        name: the benchmark's name in the report.

    Raises:
        RMuseError: the folder does not exist, or holds nothing that could be a benchmark.
    """
    if not folder.is_dir():
        raise RMuseError(f"required a benchmark folder, got {str(folder)!r}: no such folder")
    report = Report(name or str(folder))
    try:
        settings = Settings.read(folder / "benchmark.json")
    except RMuseError as error:
        report.problems.append(Problem("benchmark.json", None, "", str(error)))
        settings = Settings()
    reader = Reader(folder, settings.direct_instruction, skip_bad_rows=True)
    groups = _groups(folder)
    if not groups:
        raise RMuseError(
            f"{folder}: required splits such as forget_5/train-00000-of-00001.parquet or forget05.jsonl, got none; "
            "`rmuse data new` makes a benchmark of a table of people"
        )
    seen: set[bytes] = set()
    people: dict[str, set[str]] = {}
    for (split, part), files in groups.items():
        label = split if part == "train" and split not in QUESTION_FOLDERS else f"{split}/{part}"
        try:
            layout = reader.one_format(files)
            summary = report.splits.setdefault(label, Split(layout.name))
            if split in QUESTION_FOLDERS:
                examples = reader.questions(split, part, split, QUESTION_FOLDERS[split])
            else:
                examples = reader.people_of(files, split, split)
            people[label] = _read(reader, examples, summary, report.problems, seen)
            summary.rows = sum(count_rows(path, reader.name(path)) for path in files)
        except RMuseError as error:
            report.problems.append(Problem(reader.name(files[0]), None, "", str(error)))
    report.problems[:0] = reader.skipped
    _overlaps(report, groups, people)
    _alike(report, people)
    _remarks(folder, report, groups)
    return report


def _groups(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """(split, part) → its files, sorted."""
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.glob("*/*.parquet")):
        part = path.name.partition("-")[0]
        if part in ("train", "test") and not path.parent.name.startswith("."):
            found.setdefault((path.parent.name, part), []).append(path)
    for path in sorted((*folder.glob("*.jsonl"), *folder.glob("*.json"))):
        if path.stem.startswith(("forget", "retain", "full", *rtofu.KNOWN)):
            found.setdefault((path.stem, "train"), []).append(path)
    return found


def _read(
    reader: Reader, examples: Iterator[Example], summary: Split, problems: list[Problem], seen: set[bytes]
) -> set[str]:
    """Count a split's questions, decode the pictures not `seen` before, and return the split's IDs."""
    ids: set[str] = set()
    persons: set[str] = set()
    pictures: set[bytes] = set()
    for example in examples:
        # A general reasoning row is named by the part of its id after folder and file.
        ids.add(example.person or example.id.split("/")[2])
        persons.update(() if example.person is None else (example.person,))
        summary.questions += 1
        summary.kinds[example.kind] += 1
        summary.modalities[example.modality] += 1
        if example.reasoning is None and example.kind not in ("classification", "cloze"):
            summary.missing["reasoning"] += 1
        if not example.attributes and example.kind in ("generation", "classification", "cloze"):
            summary.missing["attributes"] += 1
        encoded = example.image
        if encoded is None:
            continue
        digest = hashlib.blake2b(encoded, digest_size=8).digest()
        pictures.add(digest)
        if digest not in seen:
            seen.add(digest)
            fault = unreadable(encoded)
            if fault is not None:
                file, _, row = example.source.rpartition(", row ")
                problems.append(Problem(file, int(row), "image", fault))
    summary.people, summary.pictures = len(persons), len(pictures)
    return ids


def _overlaps(report: Report, groups: dict[tuple[str, str], list[Path]], people: dict[str, set[str]]) -> None:
    """Report pairs of splits that share people or questions but must not."""
    pairs = [
        (a, b) for a in people for b in people if _rate(a) is not None and _rate(a) == _rate(b, "retain")
    ]
    pairs += [
        (a, b)
        for a in people
        if _rate(a) is not None
        for b in ("Retain_Set", "Strangers/train", "Strangers/test")
        if b in people
    ]
    pairs += [
        (f"{folder}/train", f"{folder}/test")
        for folder in ("Reasoning", "Strangers")
        if {f"{folder}/train", f"{folder}/test"} <= set(people)
    ]
    for one, other in pairs:
        both = sorted(people[one] & people[other])
        key = "ID"
        if report.splits[one].format == report.splits[other].format == formats.RTOFU.name:
            both, key = rtofu.shared(groups[one, "train"], groups[other, "train"]), "question"
        if both:
            shown = ", ".join(f"{value:.60}" for value in both[:3]) + (" …" if len(both) > 3 else "")
            reason = f"required no {key} in both, got {len(both)} ({shown}); take them out of one"
            report.problems.append(Problem(f"{one} and {other}", None, key, reason))


def _alike(report: Report, people: dict[str, set[str]]) -> None:
    """Report IDs that differ only in leading zeros or case, and IDs of Test_Set that no other split knows."""
    splits: dict[str, str] = {}
    for split, ids in people.items():
        if report.splits[split].format not in (formats.RTOFU.name, formats.QUESTIONS.name):
            splits.update((who, splits.get(who, split)) for who in ids)
    forms: dict[str, list[str]] = {}
    for who in sorted(splits):
        forms.setdefault(folded(who).lstrip("0"), []).append(who)
    for same in forms.values():
        if len(same) > 1:
            shown = " and ".join(f"{who!r} ({splits[who]})" for who in same[:3])
            reason = f"required one way of writing an ID, got {shown}: these count as different people"
            report.problems.append(Problem(splits[same[0]], None, "ID", reason))
    known = set().union(*(ids for split, ids in people.items() if split != "Test_Set"))
    unknown = sorted(people.get("Test_Set", set()) - known)
    if unknown and len(people) > 1:
        shown = ", ".join(f"{who:.60}" for who in unknown[:3]) + (" …" if len(unknown) > 3 else "")
        reason = (
            f"required IDs of people in the other splits, got {len(unknown)} that none of them has ({shown})"
        )
        report.problems.append(Problem("Test_Set", None, "ID", reason))


def _rate(split: str, name: str = "forget") -> int | None:
    """The forget rate in a split's name such as forget_5 or forget05; for a retain split, the matching forget rate."""
    number = split.removeprefix(name).removeprefix("_")
    if not split.startswith(name) or not number.isdigit():
        return None
    return int(number) if name == "forget" else 100 - int(number)


def _remarks(folder: Path, report: Report, groups: dict[tuple[str, str], list[Path]]) -> None:
    """Add the benchmark's format, its missing splits, and what the format lacks."""
    named = {f.name: f for f in formats.TOLD_BY_COLUMNS}
    fitted = {name: split for name, split in report.splits.items() if _rate(name) is not None}
    first = next(iter(fitted.values()), next(iter(report.splits.values()), None))
    if first is None:
        return
    report.format = first.format
    bare = first.missing["reasoning"] == first.kinds["generation"]
    if report.format == formats.MLLMU.name and not bare:
        report.format = formats.RMLLMU.name
    for name in [
        name for name in report.splits if _rate(name) is not None or _rate(name, "retain") is not None
    ]:
        if not report.splits[name].rows:
            report.problems.append(Problem(name, None, "", "required at least one person, got an empty set"))
    for name in fitted:
        rate = _rate(name)
        if not any(_rate(other, "retain") == rate for other in report.splits):
            wanted = (
                f"retain{100 - (rate or 0):02d}.jsonl"
                if first.format == formats.RTOFU.name
                else f"retain_{100 - (rate or 0)}/"
            )
            report.problems.append(
                Problem(
                    name, None, "", f"required {wanted} beside it, got none; nothing can be fitted without"
                )
            )
    if not fitted:
        report.notes.append(
            "no forget set: split the rows by ID into forget_5/ and retain_95/ (or another rate)"
        )
    layout = formats.RMLLMU if report.format == formats.RMLLMU.name else named[first.format]
    report.notes += layout.lacks
    if layout.has_test and fitted and "Test_Set" not in report.splits:
        if folder.joinpath("Test_Set").is_dir():
            report.problems.append(
                Problem("Test_Set", None, "", "required Test_Set/train-00000-of-00001.parquet, got none")
            )
        else:
            report.notes.append(formats.UNTESTED)
    if layout is formats.RMLLMU:
        for name in QUESTION_FOLDERS:
            if not any(split == name for split, _ in groups):
                report.notes.append(f"no {name}/: optional, fitting and scoring go without")
        for name, split in fitted.items():
            if split.missing["reasoning"]:
                n, of = split.missing["reasoning"], split.kinds["generation"]
                report.notes.append(
                    f"{name}: {n} of {of} questions without reasoning; `rmuse data annotate` writes it"
                )
