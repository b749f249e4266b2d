"""The model's own refusals: what it says when asked to refuse, in whole sentences that end and that fit any question.

Steering along text that the model would not have said leads it to states of which it makes word salad. So refusals are
drawn out of the model: behind a prefix g (`g ⊕ q`), or, for a model that follows no template, dictated to it without
any question. A model that refuses under no prefix is steered along the refusals of the benchmark's pool.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from rmuse_interp.data import Benchmark
from rmuse_interp.data.spans import parse_response
from rmuse_interp.data.words import words
from rmuse_interp.evaluate.metrics import RefusalPool
from rmuse_interp.evaluate.readable import loops
from rmuse_interp.evaluate.text import normalise
from rmuse_interp.fitting.collect import Query
from rmuse_interp.lens.lens import LensModel

DICTATION: Final = (
    'Do not answer the following question. Reply only with: "{}" Question:',
    'Repeat only this sentence: "{}"',
)
"""Prompts that dictate a refusal; no question follows, so that nothing of one is in the states."""
PLAIN: Final = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, I can't answer that question.",
    "I'm sorry, but I'm unable to assist with that.",
    "I'm sorry, I don't have any information about that.",
)
"""Refusals that are dictated beside those of the benchmark's pool."""
REFUSING: Final = re.compile(
    r"\b(sorry|apologi[sz]e|unable to|not able to|cannot|can['’]t|can not|won['’]t|rather not|do not know|don['’]t know"
    r"|don['’]t have (any )?information|not allowed|must (refuse|decline))\b",
    re.IGNORECASE,
)
"""Forms by which a sentence without a template is a refusal."""
ROOM: Final = 16
"""Number of tokens that a refusal may have beyond the pool's longest one."""


@dataclass(frozen=True)
class Refused:
    """A question put so that the model refuses, and the refusal that its states are read along.

    Attributes:
        query: the prompt (with what makes the model refuse) and the refusal.
        key: the question alone, whose last state says when to refuse like this; None for a dictated refusal.
        own: whether the model itself said it, and ended there.
    """

    query: Query
    key: Query | None
    own: bool


def in_own_words(
    model: LensModel, benchmark: Benchmark, asked: Sequence[Refused], formed: bool, batch_size: int
) -> list[Refused]:
    """Replace the pool's refusals by the model's own responses, where these refuse in the requested form and end.

    Args:
        model: the model to ask.
        benchmark: its pool tells refusals of a template.
        asked: questions behind a prefix, each with a refusal of the pool.
        formed: whether the model follows the benchmark's template; if it does not, refusals are told by `REFUSING`, must
            name nothing that one person's questions alone name, and are dictated as well, which comes first.
        batch_size: questions per batch.
    """
    pool = RefusalPool.of(benchmark.refusals_cot, benchmark.refusals_direct, benchmark.delimiters)
    texts = dict.fromkeys((*PLAIN, *benchmark.refusals_direct)) if not formed else {}
    dictated = [
        Refused(Query(f"dictated {i}.{j}", lead.format(text), None, text, stepwise=False), None, False)
        for i, text in enumerate(texts)
        for j, lead in enumerate(DICTATION)
    ]
    every = [*asked, *dictated]
    longest = max(len(model.tokenizer(one.query.response).input_ids) for one in every) + ROOM
    said = model.respond(
        [one.query.prompt for one in every],
        [one.query.image for one in every],
        max_new_tokens=longest,
        batch_size=batch_size,
    )
    special = names_of(benchmark)
    found = []
    for one, response in zip(every, said, strict=True):
        text = response.text
        parsed = parse_response(text, benchmark.delimiters)
        if formed:
            refuses = pool.refuses(parsed.reasoning, parsed.answer, parsed.well_formed)
            own = refuses and parsed.well_formed is one.query.stepwise
        else:
            ended = len(model.tokenizer(text, add_special_tokens=False).input_ids) < longest
            own = ended and is_plain_refusal(text) and not special & set(words(text))
            if one.key is None:
                own = own and normalise(text) == normalise(one.query.response or "")
        asked_as = one.query.stepwise and formed
        query = replace(one.query, response=text, stepwise=asked_as)
        found.append(replace(one, query=query, own=True) if own else one)
    if formed:
        return found
    # What was said to no question suits any; else what was said to some; else the pool's, word for word.
    said_so = [one for one in found if one.own]
    bare = [one for one in asked if not one.query.stepwise]
    return [one for one in said_so if one.key is None] or said_so or bare or list(asked)


def is_plain_refusal(text: str) -> bool:
    """Whether a text without a template is one short refusal: its first sentence refuses, and nothing loops.

    >>> is_plain_refusal("I'm sorry, but I can't help with that."), is_plain_refusal("Paris. I'm sorry.")
    (True, False)
    """
    first = re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]
    return bool(REFUSING.search(first)) and text.strip()[-1:] in ".!?\"'" and not loops(text)


def names_of(benchmark: Benchmark) -> frozenset[str]:
    """Words that occur in the questions and values of one person only: a refusal with such a word names somebody."""
    owners: dict[str, set[str]] = {}
    for example in (*benchmark.fit_forget, *benchmark.fit_retain):
        for text in (example.prompt(), example.answer, *example.attributes.values()):
            for word in words(text):
                owners.setdefault(word, set()).add(example.person or example.id)
    common = {word for text in (*benchmark.refusals_direct, *PLAIN) for word in words(text)}
    return frozenset(word for word, who in owners.items() if len(who) == 1) - common
