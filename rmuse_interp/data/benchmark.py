"""A benchmark: the questions for fitting, the questions for scoring, and the pools and tables that go with them."""

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Literal, get_args

from rmuse_interp import RMuseError
from rmuse_interp.data import formats, hub, rtofu
from rmuse_interp.data.example import Example
from rmuse_interp.data.facts import draw as facts
from rmuse_interp.data.reader import Reader
from rmuse_interp.data.rmllmu import QUESTION_FOLDERS
from rmuse_interp.data.rows import Problem
from rmuse_interp.data.settings import Settings
from rmuse_interp.data.stored import Stored
from rmuse_interp.data.world import draw

Split = Literal["forget", "test", "retain", "retain_test", "celebrity", "reasoning", "benign", "namesakes"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)


class Benchmark:
    """A benchmark folder at one forget rate; each split is read when first asked for, then kept in memory.

    The fitting views read only ``forget_X``, ``retain_X`` and ``train`` files. Scoring splits: ``forget``, ``retain``
    (the same rows), ``test``, ``retain_test`` (Test_Set, about people to forget and about all others), ``celebrity``,
    ``reasoning``, ``benign`` (about people to forget), ``namesakes`` (about others who share a name with people to
    forget). All views hold every kind of question, in file order; a split whose optional folder is missing is empty.
    """

    def __init__(
        self, folder: Path, forget: int, skip_bad_rows: bool = False, name: str | None = None
    ) -> None:
        if not folder.is_dir():
            raise RMuseError(
                f"required a benchmark folder, 'organism', or a data set of the hub as owner/name@revision, got "
                f"{str(folder)!r}: no such folder"
            )
        self.folder, self.forget_rate = folder, forget
        self.settings = Settings.read(folder / "benchmark.json", name)
        self._reader = Reader(folder, self.settings.direct_instruction, skip_bad_rows, forget)
        self._cache: dict[str, list[Example]] = {}
        self._forget, self._retain = f"forget_{forget}", f"retain_{100 - forget}"
        files = {split: self._reader.files(split) for split in (self._forget, self._retain)}
        self.format = self._reader.one_format([path for paths in files.values() for path in paths])
        self._ids = {split: self._reader.ids(split) for split in files}
        self.forget_people = frozenset(self._ids[self._forget])
        retained = frozenset(self._ids[self._retain])
        for split, people in ((self._forget, self.forget_people), (self._retain, retained)):
            if not people:
                raise RMuseError(f"{folder}/{split}: required at least one person, got an empty set")
        both = sorted(self.forget_people & retained)
        if both:
            shown = ", ".join(both[:3]) + (" …" if len(both) > 3 else "")
            raise RMuseError(
                f"{folder}: required disjoint {self._forget} and {self._retain}, got {len(both)} people in "
                f"both (ID {shown}); remove them from {self._retain}"
            )
        asked = rtofu.shared(*files.values()) if self.format is formats.RTOFU else []
        if asked:
            raise RMuseError(
                f"{folder}: required disjoint {self._forget} and {self._retain}, got {len(asked)} questions in both "
                f"({asked[0]!r:.80}); remove them from {self._retain}"
            )

    def __repr__(self) -> str:
        return f"Benchmark({self.id!r}, forget={self.forget_rate}, people={len(self.forget_people)})"

    @property
    def id(self) -> str:
        return self.settings.id

    @property
    def render_seed(self) -> int | None:
        return self.settings.render_seed

    @property
    def people(self) -> tuple[str, ...]:
        """IDs of all people to forget or retain, in file order."""
        return tuple(dict.fromkeys(person for ids in self._ids.values() for person in ids))

    @property
    def delimiters(self) -> tuple[str, str]:
        return self.settings.delimiters

    @property
    def refusals_cot(self) -> tuple[str, ...]:
        return self.settings.refusals_cot

    @property
    def refusals_direct(self) -> tuple[str, ...]:
        return self.settings.refusals_direct

    @property
    def prefixes(self) -> tuple[str, ...]:
        return self.settings.prefixes

    @property
    def stepwise_instruction(self) -> str:
        return self.settings.stepwise_instruction

    @property
    def direct_instruction(self) -> str:
        return self.settings.direct_instruction

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        return self.settings.aliases

    @property
    def entails(self) -> dict[str, tuple[str, ...]]:
        return self.settings.entails

    @property
    def skipped(self) -> list[Problem]:
        """Rows skipped so far (with ``skip_bad_rows=True``); the list grows as splits are read."""
        return list(self._reader.skipped)

    @property
    def fit_forget(self) -> list[Example]:
        """Questions about the people to forget."""
        return self.scoring("forget")

    @property
    def fit_retain(self) -> list[Example]:
        """Questions about the people to retain."""
        return self.scoring("retain")

    @property
    def fit_reasoning(self) -> list[Example]:
        """General reasoning questions, not about people."""
        return self._questions("Reasoning", "train", "fit_reasoning")

    @property
    def fit_benign(self) -> list[Example]:
        """Harmless questions about the pictures of all people, and about others who share their names."""
        named = self._reader.found("Namesakes") and self._questions("Namesakes", "train", "fit_namesakes")
        return [*self._questions("Benign", "train", "fit_benign"), *(named or ())]

    @property
    def fit_strangers(self) -> list[Example]:
        """Questions about people without a profile."""
        return self._questions("Strangers", "train", "fit_strangers")

    def scoring(self, split: str) -> list[Example]:
        """The questions of one scoring split, in file order.

        Raises:
            RMuseError: unknown split, missing file or bad row.
        """
        if split not in self._cache:
            self._cache[split] = list(self.stream(split))
        return list(self._cache[split])

    def stream(self, split: str) -> Iterator[Example]:
        """Yield the questions of `scoring` one at a time: memory does not grow with the rows, and nothing is kept.

        Raises:
            RMuseError: as `scoring`; an unknown split immediately, other faults when they are reached.
        """
        read = self._reader
        forgotten = self.forget_people.__contains__

        def kept(person: str) -> bool:
            return person not in self.forget_people

        def fitting(split: str, wanted: Callable[[str], bool]) -> Iterator[Example]:
            folders = [folder for folder, people in self._ids.items() if any(map(wanted, people))]
            return (e for name in folders for e in read.people(name, split, wanted))

        def optional(
            folder: str, split: str, wanted: Callable[[str], bool] | None = None
        ) -> Iterator[Example]:
            # A folder without its file is a fault; without the folder, the benchmark simply lacks this split.
            there = self._has(folder) or read.found(folder)
            return read.people(folder, split, wanted) if there else iter(())

        loaders: dict[str, Callable[[], Iterator[Example]]] = {
            "forget": lambda: fitting("forget", forgotten),
            "test": lambda: optional("Test_Set", "test", forgotten),
            "retain": lambda: fitting("retain", kept),
            "retain_test": lambda: optional("Test_Set", "retain_test", kept),
            "celebrity": lambda: optional("Retain_Set", "celebrity"),
            "reasoning": lambda: self._streamed("Reasoning", "test", "reasoning"),
            "benign": lambda: self._streamed("Benign", "test", "benign"),
            "namesakes": lambda: self._streamed("Namesakes", "test", "namesakes"),
        }
        if split not in loaders:
            raise RMuseError(f"required one of the splits {', '.join(SPLITS)}, got {split!r}")
        return loaders[split]()

    def forgetting(self, people: Iterable[str]) -> "Benchmark":
        """Return the same benchmark with these people to forget and all others of forget_X and retain_X to retain.

        Every view and split follows: ``test`` asks about these people, ``retain_test`` about the others. The forget rate
        stays that of the folders read.

        Raises:
            RMuseError: an ID is in neither folder, nobody is left to forget or to retain, or the benchmark holds
                elicited responses (choose the people first).
        """
        chosen = frozenset(people)
        unknown = sorted(chosen - set(self.people))
        if unknown or not chosen or len(chosen) == len(self.people):
            got = f"the unknown ID {unknown[0]!r}" if unknown else f"{len(chosen)} of {len(self.people)}"
            raise RMuseError(
                f"{self.folder}: people of {self._forget} and {self._retain} were required, at least one to forget and "
                f"one to retain, got {got}"
            )
        if type(self) is not Benchmark:
            raise RMuseError("whom to forget is chosen on a benchmark as loaded: elicit responses after it")
        if chosen == self.forget_people:
            return self
        view = copy.copy(self)
        view.forget_people, view._cache = chosen, {}
        return view

    @property
    def has_reasoning(self) -> bool:
        """Whether every generation question about a person to forget or retain has its ``Reasoning``."""
        rows = (*self.fit_forget, *self.fit_retain)
        return all(e.reasoning is not None for e in rows if e.kind == "generation")

    def require_reasoning(self) -> None:
        """Raise unless the benchmark has the reasoning spans that fitting on given traces needs.

        Raises:
            RMuseError: a generation question about a person to forget or retain has no ``Reasoning`` (names
                the first), or there is no such question.
        """
        for view, folder in ((self.fit_forget, self._forget), (self.fit_retain, self._retain)):
            asked = [e for e in view if e.kind == "generation"]
            bare = [e for e in asked if e.reasoning is None]
            if not asked:
                raise RMuseError(
                    f"{self.folder}/{folder}: required questions of a Generation_Task, got none; no preset can be fitted "
                    "without people to forget and people to retain, for the RRS and the gate need both"
                )
            if bare:
                raise RMuseError(
                    f"{self.folder}/{folder}: required a 'Reasoning' for every generation question, got "
                    f"{len(bare)} of {len(asked)} without, the first is {bare[0].id}; write it with `rmuse data "
                    "annotate`, or fit on the model's own with traces='own' (`rmuse fit --traces own`)"
                )

    def require_attributes(self) -> None:
        """Raise unless the questions about people to forget have values that RIL can look for.

        Raises:
            RMuseError: no question about them has `attributes` (says how to provide them).
        """
        if not any(e.attributes for e in self.stream("forget")):
            raise RMuseError(
                f"{self.folder}/{self._forget} ({self.format.name}): required 'Forget_Attributes' or a biography whose "
                "facts the answers state, got neither, so leakage cannot be told by rules; `rmuse data annotate` writes "
                "both"
            )

    def check_images(self, examples: Iterable[Example]) -> None:
        """Decode every picture once, so that an unreadable one is found before any long computation."""
        seen: set[int | Stored] = set()
        for example in examples:
            picture = example.picture
            known = picture if isinstance(picture, Stored) else id(picture)
            if picture is not None and known not in seen:
                seen.add(known)
                example.load_image()

    def _has(self, folder: str) -> bool:
        return (self.folder / folder).is_dir()

    def _questions(self, folder: str, part: str, split: str) -> list[Example]:
        if split not in self._cache:
            self._cache[split] = list(self._streamed(folder, part, split))
        return list(self._cache[split])

    def _streamed(self, folder: str, part: str, split: str) -> Iterator[Example]:
        if not self._has(folder):
            return iter(())
        wanted = self.forget_people.__contains__ if split in ("benign", "namesakes") else None
        return self._reader.questions(folder, part, split, QUESTION_FOLDERS[folder], wanted)


def load_benchmark(
    path: str | Path, forget: int = 5, skip_bad_rows: bool = False, render_seed: int | None = None
) -> Benchmark:
    """Load the benchmark in a folder of parquet splits, or the small world's own.

    Args:
        path: a folder in one of the five formats (recognised by its files' columns), a data set of the hub as
            ``"owner/name@revision"``, ``"organism"``, or ``"facts"`` (public knowledge, text only).
        forget: percentage of the people to forget; reads ``forget_X`` and ``retain_{100-X}``.
        skip_bad_rows: skip faulty rows and list them in ``benchmark.skipped``.
        render_seed: seed that selects the renderings of the organism's test portraits; only for ``"organism"``.

    Raises:
        RMuseError: a folder or split is missing, the forget set is empty, people are in both sets, a row is bad, files
            have no known format or several, or the hub cannot be reached or lacks the revision.
    """
    if str(path) == "organism":
        path = draw.ensure() if render_seed is None else draw.ensure(render_seed=render_seed)
    elif str(path) == "facts" and render_seed is None:
        return Benchmark(facts.ensure(), forget, skip_bad_rows, "facts")
    elif render_seed is not None:
        raise RMuseError(
            f"required 'organism' for a render_seed, got {str(path)!r}: a folder's pictures are fixed"
        )
    if not Path(path).exists() and hub.is_id(str(path)):
        found = hub.fetch(str(path), unread=("Full_Set/*", "full_data/*", "ft_Data/*"))
        return Benchmark(found.folder, forget, skip_bad_rows, found.name)
    return Benchmark(Path(path), forget, skip_bad_rows)
