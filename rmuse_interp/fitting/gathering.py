"""`gather`: all passes over fitting data that the presets need, run once for both."""

import hashlib
import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final, TypedDict

import torch
from rich.progress import Progress
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.edits.plan import Modality
from rmuse_interp.fitting.aside import SHORT, kept_out
from rmuse_interp.fitting.collect import Query, Where, pooled_states, trajectories
from rmuse_interp.fitting.disturbing import disturbed_states
from rmuse_interp.fitting.elicit import follows_template
from rmuse_interp.fitting.refusing import Refused, in_own_words
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import Evidence
from rmuse_interp.models.demand import require_room
from rmuse_interp.parts.gates import Readout
from rmuse_interp.parts.pooled import Pooled

LIMIT: Final = 160
"""Maximum number of examples read per group (forget, retain people, reasoning, benign) and kind of query."""
EACH: Final = 12
"""Number of examples per person to forget and kind of query that suffice for a gate to know the person."""
TRAJECTORIES: Final = 32
"""Maximum number of refusals followed token by token, per kind of query and form (stepwise, direct); their states are
the prototypes of `calibrated`."""
LONGEST: Final = 128
"""Tokens that a response is taken to have, where memory is estimated."""
READOUTS: Final[tuple[Readout, ...]] = ("last", "question", "draft")
"""Readouts open to gates. Never the image tokens alone: they precede the question, so they cannot tell what is asked
about a person."""
TEXT_READOUTS: Final[tuple[Readout, ...]] = (*READOUTS, "peak")
"""Readouts open to the gates of benchmarks without pictures, whose names may stand anywhere in a long request."""


def enough(benchmark: Benchmark, least: int = LIMIT) -> int:
    """Return a limit that grows with the number of people to forget: `EACH` per person, but at least `least`."""
    return max(least, EACH * len(benchmark.forget_people))


def gather(
    model: LensModel,
    benchmark: Benchmark,
    *,
    limit: int = LIMIT,
    batch_size: int = 32,
    seed: int = 0,
    photographs: bool = True,
    progress: Progress | None = None,
) -> dict[Modality, Evidence]:
    """Gather everything that both presets need, for each kind of query in the forget set.

    Args:
        photographs: whether to ask also about further photographs of people to forget, if the fitting files hold any;
            False uses only the one that comes with each person's questions.

    Raises:
        RMuseError: too little memory for a batch (names the size that fits), or no generation questions to forget.
    """
    require_room(model, [*benchmark.fit_forget, *benchmark.fit_retain], batch_size, LONGEST, logits=True)
    found: dict[Modality, Evidence] = {}
    for modality in ("image", "text"):
        wanted = [e for e in benchmark.fit_forget if e.modality == modality]
        if any(e.kind == "generation" for e in wanted):
            found[modality] = _Gatherer(
                model, benchmark, modality, limit, batch_size, seed, photographs, progress
            ).evidence()
    if not found:
        raise RMuseError(f"{benchmark.id}: the forget set has no generation questions to fit on")
    return found


class _Gated(TypedDict):
    """The data that gates are fitted on, named as the fields of `Evidence`."""

    readouts: dict[Readout, Pooled]
    prefixed: Pooled
    forget: dict[str, str]
    others: dict[str, str]
    people: dict[str, str]


class _Gatherer:
    """The passes over one kind of query."""

    def __init__(
        self,
        model: LensModel,
        benchmark: Benchmark,
        modality: Modality,
        limit: int,
        batch_size: int,
        seed: int,
        photographs: bool,
        progress: Progress | None,
    ) -> None:
        self.model, self.benchmark, self.modality, self.limit = model, benchmark, modality, limit
        self.seed, self.photographs = seed, photographs
        self.batch_size, self.progress = batch_size, progress
        self.pictured = any(e.picture is not None for e in benchmark.fit_forget)
        self.readouts = READOUTS if self.pictured else TEXT_READOUTS
        self._read: dict[Readout, dict[tuple[object, ...], Tensor]] = {span: {} for span in self.readouts}
        self.forget = self._some(benchmark.fit_forget, {"generation"})
        self.people = self._some(benchmark.fit_retain, {"generation"})
        self.reasoning = [
            e for e in self._some(benchmark.fit_reasoning, {"reasoning"}) if e.reasoning is not None
        ]
        if not self.people and not self.reasoning:
            raise RMuseError(
                f"{benchmark.id}: {modality} questions to retain were required, for the RRS and the gate that every "
                "preset has, got none in the retain split and in Reasoning/train; add some to either"
            )

    def _some(self, examples: Sequence[Example], kinds: Collection[str]) -> list[Example]:
        mine = [e for e in examples if e.modality == self.modality and e.kind in kinds]
        return sample(mine, self.limit, self.seed)

    def evidence(self) -> Evidence:
        benchmark = self.benchmark
        prefixes, refusals = benchmark.prefixes, benchmark.refusals_cot
        rng = random.Random(self.seed)
        refused_with = {
            e.id: i % len(refusals) for i, e in enumerate(rng.sample(self.forget, len(self.forget)))
        }
        refusing = [
            Query(e.id, f"{prefixes[i % len(prefixes)]} {e.prompt()}", e.image, refusals[refused_with[e.id]])
            for i, e in enumerate(self.forget)
        ]
        retained = [*self.people, *self.reasoning]
        aside = kept_out(benchmark, self.modality, self.seed)
        followed = [query for query in refusing if query.id not in aside] or refusing
        spoken = rng.sample(followed, min(TRAJECTORIES, len(followed)))
        plain = {e.id: Query(e.id, e.prompt(), e.image) for e in self.forget}
        asked = [*(Refused(query, plain[query.id], False) for query in spoken), *self._direct_refusals()]
        formed = follows_template(benchmark)
        refused = in_own_words(self.model, benchmark, asked, formed, self.batch_size)
        said = tuple(dict.fromkeys(one.query.response or "" for one in refused))
        drawn = {one.query.id: said.index(one.query.response or "") for one in refused}
        own = {one.query.id for one in refused if one.own}
        runs = trajectories(
            self.model,
            [one.query for one in refused],
            delimiters=benchmark.delimiters,
            label=f"refusals, {self.modality}",
            batch_size=self.batch_size,
            progress=self.progress,
        )
        keys = {one.query.id: one for one in asked}
        starts = self._states(
            [replace(one.key, id=name) for name, one in keys.items() if one.key is not None],
            ("last",),
            "questions",
        )["last"]
        return Evidence(
            own=self._responses(self.forget, "own responses", for_gates=True),
            refusal=self._pool(refusing, "refusals"),
            refused_with=refused_with,
            step=self._responses(retained, "stepwise", for_gates=True),
            direct=self._responses(retained, "direct", direct=True),
            step_prefixed=self._responses(retained, "stepwise, prefixed", prefix=prefixes[0]),
            direct_prefixed=self._responses(retained, "direct, prefixed", direct=True, prefix=prefixes[0]),
            groups={e.id: e.kind for e in retained},
            tokens=torch.cat([run.states for run in runs]),
            position=torch.cat([torch.arange(len(run.states)) for run in runs]),
            template=torch.cat([torch.full((len(run.states),), drawn[run.id]) for run in runs]),
            refusals=said,
            run=torch.cat([torch.full((len(run.states),), i) for i, run in enumerate(runs)]),
            run_own=tuple(one.own for one in refused),
            run_stepwise=tuple(not formed or one.query.stepwise for one in refused),
            starts=starts,
            start_text=tuple(drawn[i] if i in own else -1 for i in starts.ids),
            start_stepwise=tuple(not formed or keys[i].query.stepwise for i in starts.ids),
            **self._gate(),
        )

    def _direct_refusals(self) -> list[Refused]:
        """Return refusals without reasoning, for questions that ask for none.

        Without them, such a question would be steered along a chain of thought that it never began.
        """
        benchmark = self.benchmark
        short = self._some(benchmark.fit_forget, SHORT)
        asked = [(e, e.prompt()) for e in short] + [(e, e.prompt(direct=True)) for e in self.forget]
        aside = kept_out(benchmark, self.modality, self.seed)
        asked = [(e, prompt) for e, prompt in asked if e.id not in aside] or asked
        some = random.Random(self.seed).sample(asked, min(TRAJECTORIES, len(asked)))
        found = []
        for i, (example, prompt) in enumerate(some):
            lead = benchmark.prefixes[i % len(benchmark.prefixes)]
            response = benchmark.refusals_direct[i % len(benchmark.refusals_direct)]
            name = f"{example.id}, direct"
            query = Query(name, f"{lead} {prompt}", example.image, response, stepwise=False)
            found.append(Refused(query, Query(name, prompt, example.image), False))
        return found

    def _pool(self, queries: list[Query], label: str, readouts: Sequence[str] = ()) -> dict[str, Pooled]:
        spans: tuple[str, ...] = ("cot", "answer") if all(q.stepwise for q in queries) else ("answer",)
        return self._states(queries, (*spans, *readouts), label)

    def _states(self, queries: list[Query], spans: Sequence[Where], label: str) -> dict[Where, Pooled]:
        return pooled_states(
            self.model,
            queries,
            spans,
            delimiters=self.benchmark.delimiters,
            label=f"{label}, {self.modality}",
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def _responses(
        self,
        examples: Sequence[Example],
        label: str,
        *,
        direct: bool = False,
        prefix: str = "",
        for_gates: bool = False,
    ) -> dict[str, Pooled]:
        """Pool states of the reference responses; a prefix leaves q as it is (`g ⊕ q`).

        `for_gates`: whether to keep, from the same pass, what gates read, for `_gate`.
        """
        lead = f"{prefix} " if prefix else ""
        delimiters = self.benchmark.delimiters
        queries = [
            Query(
                e.id,
                lead + e.prompt(direct and not prefix),
                e.image,
                e.response(delimiters, direct),
                not direct,
            )
            for e in examples
        ]
        if not for_gates:
            return self._pool(queries, label)
        pooled = self._pool(queries, label, self.readouts)
        text_of = {query.id: _text(query) for query in queries}
        for span in self.readouts:
            found = zip(pooled[span].ids, pooled[span].states, strict=True)
            self._read[span] |= {text_of[i]: state for i, state in found}
        return pooled

    def _read_out(self, queries: list[Query]) -> dict[Readout, Pooled]:
        """Return what gates read of the queries; a text read before is not read again."""
        rest = self._states(
            [q for q in queries if _text(q) not in self._read["last"]], self.readouts, "prompts"
        )
        found: dict[Readout, Pooled] = {}
        for span in self.readouts:
            known = self._read[span]
            states = dict(zip(rest[span].ids, rest[span].states, strict=True))
            states |= {q.id: known[_text(q)] for q in queries if _text(q) in known}
            ids = tuple(q.id for q in queries if q.id in states)
            found[span] = Pooled(torch.stack([states[i] for i in ids]), ids, rest[span].layers, span)
        return found

    def _gate(self) -> _Gated:
        """Collect prompt states of queries that must and must not be steered, in every form of question.

        Further photographs of people to forget (Benign's `train` files hold some) are asked about as well: only
        held-out photographs tell a gate that knows the person from one that memorised a photograph.
        """
        benchmark = self.benchmark
        photographs = self._photographs()
        # (example, picture, index of the picture among the person's pictures)
        forget: list[tuple[Example, bytes | None, int]] = [
            (e, image, n)
            for e in self.forget
            for n, image in enumerate([e.image, *photographs.get(e.person or "", [])])
        ]
        for i, example in enumerate(self._some(benchmark.fit_forget, SHORT)):
            own = [example.image, *photographs.get(example.person or "", [])]
            forget.append((example, own[i % len(own)], i % len(own)))
        people: list[tuple[Example, bytes | None, int]] = []
        for i, example in enumerate([*self.people, *self._some(benchmark.fit_retain, SHORT)]):
            own = [example.image, *photographs.get(example.person or "", [])]
            people.append((example, own[i % len(own)], i % len(own)))
        benign = [
            e for e in benchmark.fit_benign if self.photographs or e.person not in benchmark.forget_people
        ]
        harmless = [
            (e, e.image, 0)
            for kind, view in (("reasoning", benchmark.fit_reasoning), ("benign", benign))
            for e in self._some(view, {kind})
        ]
        # Hardest to tell apart: harmless questions about the people to forget.
        known = {e.id for e, _, _ in harmless}
        harmless += [
            (e, e.image, 0)
            for e in benign
            if e.person in benchmark.forget_people and e.modality == self.modality and e.id not in known
        ]
        others = [*people, *harmless]
        # The reference response stands in for the draft, the model's unsteered response.
        queries = [
            Query(f"{e.id}@{n}", e.prompt(), image, e.response(benchmark.delimiters), e.reasoning is not None)
            for e, image, n in (*forget, *others)
        ]
        several = any(n for _, _, n in forget)
        some = [
            *sample(self.forget, 60, self.seed),
            *sample(self.people, 60, self.seed),
            *sample([e for e, _, _ in harmless], 60, self.seed),
        ]
        prefixed = [Query(f"{e.id}@0", f"{benchmark.prefixes[0]} {e.prompt()}", e.image) for e in some]
        readouts = self._read_out(queries)
        twins: list[str] = []
        for part in disturbed_states(
            self.model,
            queries,
            {f"{e.id}@{n}" for e, _, n in forget},
            self.seed,
            lambda some, label: self._states(some, self.readouts, label),
            embedding=not self.pictured,
        ):
            readouts = {span: _joined(readouts[span], part[span]) for span in self.readouts}
            twins += part[self.readouts[0]].ids

        def labelled(labels: dict[str, str]) -> dict[str, str]:
            """Add the disturbed queries, each with the label of its original."""
            return labels | {twin: labels[_own(twin)] for twin in twins if _own(twin) in labels}

        return {
            "readouts": readouts,
            "prefixed": self._states(prefixed, ("last",), "prefixed prompts")["last"],
            "forget": labelled(
                {f"{e.id}@{n}": f"photograph-{n}" if several else _question(e) for e, _, n in forget}
            ),
            # Harmless questions about people to forget are held out one by one, not by person.
            "others": labelled(
                {
                    f"{e.id}@{n}": e.id if e.person in benchmark.forget_people else e.person or e.id
                    for e, _, n in others
                }
            ),
            "people": labelled({f"{e.id}@{n}": _cluster(e) for e, _, n in (*forget, *others)}),
        }

    def _photographs(self) -> dict[str, list[bytes]]:
        """Return further photographs in the fitting data, by person."""
        found: dict[str, list[bytes]] = {}
        if self.modality == "image":
            for example in self.benchmark.fit_benign:
                mine = self.photographs or example.person not in self.benchmark.forget_people
                if mine and example.person is not None and example.image is not None:
                    found.setdefault(example.person, []).append(example.image)
        return found


def _text(query: Query) -> tuple[object, ...]:
    """Return everything that the states of a query depend on."""
    return query.prompt, query.image, query.response, query.stepwise


def _own(twin: str) -> str:
    """Return the id of the original of a disturbed query."""
    return twin.rpartition("~")[0]


def _joined(one: Pooled, other: Pooled) -> Pooled:
    return replace(one, states=torch.cat([one.states, other.states]), ids=(*one.ids, *other.ids))


def _cluster(example: Example) -> str:
    """Return the hashed person that a query is about; a person's harmless queries form their own cluster."""
    who = example.person or example.id
    name = f"{example.kind} {who}" if example.kind in ("benign", "reasoning") else who
    return hashlib.sha256(f"rmuse-{name}".encode()).hexdigest()[:16]


def _question(example: Example) -> str:
    """Return the number of the question in a person's row; equal numbers mean the same subject in every row."""
    return f"{example.kind}-{'-'.join(example.id.split('/')[3:4])}"
