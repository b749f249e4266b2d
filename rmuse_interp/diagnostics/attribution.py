"""Where a leaked token comes from: three attributions to spans of one log-probability, and how far they agree.

* ``gradients``: integrated gradients from the average query to this one (`gradients`): the contribution of a span's
  words and pixels, by whatever path it reaches the prediction. Nats; with ``here`` they add up to the difference.
* ``knockout``: the loss when a span's states are held at the average query's (`knockout`): all that passes through the
  span, its own or taken from earlier ones. Nats; they do not add up, since spans may overlap or replace each other.
* ``direct``: the contribution that heads move from the span's tokens directly into the token's logit (`direct`).
  Logits.

They answer three questions, so they need not agree; if they do, the result does not depend on the question.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.diagnostics.direct import Direct, direct_effects
from rmuse_interp.diagnostics.frozen import frozen
from rmuse_interp.diagnostics.gradients import Gradients, integrated_gradients
from rmuse_interp.diagnostics.knockout import Knockout, knock_out
from rmuse_interp.diagnostics.leaks import Leak, embedded
from rmuse_interp.diagnostics.reference import Reference
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.state import Decision
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.maths.statistics import Estimate, clustered

Way = Literal["gradients", "knockout", "direct"]
WAYS: Final[tuple[Way, ...]] = get_args(Way)


@dataclass(frozen=True, eq=False)
class Attribution:
    """The sources of one leak.

    Attributes:
        leak: the leak explained.
        knockout: its log-probability, with and without each span.
        direct: shares of its logit.
        gradients: integrated gradients; None if they were not requested.
        steered: whether the plan acted on the query; False without a plan.
    """

    leak: Leak
    knockout: Knockout
    direct: Direct
    gradients: Gradients | None
    steered: bool

    @property
    def by_way(self) -> dict[Way, dict[str, float]]:
        """Return the attributions by way and span, without spans that have no tokens and ways not requested."""
        found: dict[Way, dict[str, float]] = {}
        if self.gradients is not None:
            found["gradients"] = self.leak.summed(self.gradients.tokens)
        return {**found, "knockout": self.knockout.drops, "direct": self.direct.attention}

    @property
    def sound(self) -> dict[Way, dict[str, float]]:
        """Return the same without gradients that do not add up, for summaries."""
        incomplete = self.gradients is not None and not self.gradients.complete
        return {way: spans for way, spans in self.by_way.items() if not (incomplete and way == "gradients")}


def attribute(
    lens: LensModel,
    leaks: Sequence[Leak],
    reference: Callable[[Leak], Reference],
    bridge: Any,
    plan: Plan | None = None,
    *,
    gradients: Callable[[Leak], bool] = lambda leak: True,
    before: Sequence[Attribution] | None = None,
    progress: Progress | None = None,
    label: str = "spans",
) -> list[Attribution]:
    """Attribute leaks to their sources in all three ways.

    Args:
        lens: the model.
        leaks: leaks to explain.
        reference: function from a leak to its average query, of the same kind of query and under the same plan.
        bridge: from `direct.folded_bridge`, for the same model.
        plan: plan to run; its gates decide once per query, beforehand.
        gradients: whether to take a leak's integrated gradients, by far the slowest part.
        before: attributions of the same leaks without a plan; reused where no edit acts on a query.
        progress: a running progress bar to add a line to.
        label: label of that line.

    Raises:
        RMuseError: a reference that includes the person of a leak, or lacks a span that a leak has.
    """
    for leak in leaks:
        if leak.placed.statement.person in reference(leak).people:
            raise RMuseError(
                f"{leak.id}: a reference about other people was required, its person is among them; leave "
                f"{leak.placed.statement.person} out of mean_query(...)"
            )
        reference(leak).of(leak.placed.places)
    found: list[Attribution] = []
    task = progress.add_task(label, total=len(leaks)) if progress is not None else None
    for i, leak in enumerate(leaks):
        decision = None if plan is None else decided(lens, plan, leak)
        acts = plan is not None and decision is not None and acting(plan, decision, leak)
        if before is not None and plan is not None and not acts:
            found.append(before[i])
        else:
            asked = gradients(leak)
            found.append(_one(lens, leak, reference(leak), bridge, plan if acts else None, decision, asked))
        if progress is not None and task is not None:
            progress.advance(task)
    return found


def _one(
    lens: LensModel,
    leak: Leak,
    reference: Reference,
    bridge: Any,
    plan: Plan | None,
    decision: Decision | None,
    asked: bool,
) -> Attribution:
    own = embedded(lens, leak.placed)
    means = reference.of(leak.placed.places).to(own)
    with steering(lens, plan, decision, leak):
        knockout = knock_out(lens, leak, own, means)
    slopes = None
    if asked:
        held = None if plan is None or decision is None else frozen(lens, plan, decision, leak)
        with steering(lens, held, decision, leak):
            slopes = integrated_gradients(lens, leak, own, means[None, :, 0])
    shares = direct_effects(bridge, leak, plan, decision if plan is not None else None)
    return Attribution(leak, knockout, shares, slopes, plan is not None)


@contextmanager
def steering(lens: LensModel, plan: Plan | None, decision: Decision | None, leak: Leak) -> Iterator[None]:
    """Return a context in which the plan, if any, acts on a leak's query as decided."""
    with ExitStack() as undo:
        if plan is not None:
            handle = undo.enter_context(plan.attach(lens.hf, layout=lens.layout, decision=decision))
            told = leak.placed.ids, None, [leak.placed.prompt_end]
            undo.enter_context(handle.expecting(*told, copies=None))
        yield


def decided(lens: LensModel, plan: Plan, leak: Leak) -> Decision:
    """Return the decision of the plan's gates on a leak's query."""
    query = leak.placed.statement.query
    return lens.decide(plan, [query.prompt], [query.image])


def acting(plan: Plan, decision: Decision, leak: Leak) -> bool:
    """Whether any edit may act on a leak's query."""
    has_image = leak.placed.statement.query.image is not None
    fired = decision.fired[0].tolist()
    return any(
        (edit.gate is None or edit.per == "token" or fired[i])
        and edit.modality in (None, "image" if has_image else "text")
        for i, edit in enumerate(plan)
    )


@dataclass(frozen=True)
class Agreement:
    """How far two ways agree on the spans that leaks come from, excluding ``here``.

    Attributes:
        first, second: the ways.
        correlation: Spearman's correlation over the spans of a leak, averaged over leaks with at least three spans that
            differ; None without such leaks.
        top: share of leaks for which both ways rank the same span first.
        chance: the value of `top` if one of a leak's spans were drawn at random.
    """

    first: Way
    second: Way
    correlation: Estimate | None
    top: Estimate | None
    chance: float | None


def agreement(found: Sequence[Attribution], first: Way, second: Way, seed: int = 0) -> Agreement:
    """Compute how far two ways agree, over the leaks that have both."""
    from scipy.stats import spearmanr

    ranks: list[tuple[float, str]] = []
    tops: list[tuple[float, str]] = []
    chances: list[float] = []
    for one in found:
        ways, person = one.sound, one.leak.placed.statement.person
        if first not in ways or second not in ways:
            continue
        spans = [s for s in one.leak.sources if s in ways[first] and s in ways[second]]
        a, b = ([ways[way][span] for span in spans] for way in (first, second))
        if len(spans) > 1:
            tops.append((float(int(np.argmax(a)) == int(np.argmax(b))), person))
            chances.append(1 / len(spans))
        if len(spans) > 2 and len({*a}) > 1 and len({*b}) > 1:
            ranks.append((float(spearmanr(a, b).statistic), person))

    chance = float(np.mean(chances)) if chances else None
    return Agreement(first, second, _over_people(ranks, seed), _over_people(tops, seed), chance)


def by_span(found: Sequence[Attribution], way: Way, seed: int = 0) -> dict[str, Estimate | None]:
    """Average the attribution to each span over the leaks that have it."""
    rows: dict[str, list[tuple[float, str]]] = {}
    for one in found:
        for span, value in one.sound.get(way, {}).items():
            rows.setdefault(span, []).append((value, one.leak.placed.statement.person))
    return {span: _over_people(mine, seed) for span, mine in rows.items()}


def _over_people(rows: Sequence[tuple[float, str]], seed: int) -> Estimate | None:
    """Average values about people; None if there are none."""
    if not rows:
        return None
    values, people = zip(*sorted(rows, key=lambda row: row[1]), strict=True)
    return clustered(values, people, seed=seed)
