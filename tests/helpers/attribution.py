"""Statements about people whose leaks are attributed."""

import io
from functools import cache

from helpers.plans import lens_of
from helpers.tiny import picture

from rmuse_interp.diagnostics.direct import folded_bridge
from rmuse_interp.diagnostics.leaks import Statement, find_leaks
from rmuse_interp.diagnostics.reference import mean_query
from rmuse_interp.fitting.collect import Query

NAMES = ["Mara Venn", "Oren Tal"]


JOBS = {"Mara Venn": "baker", "Oren Tal": "person"}


CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def png(seed):
    """A noisy picture, encoded as a benchmark has it."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def statement(person, job, *, seen=None, prefix="", number=0, among=()):
    """Whose occupation is asked for and given away, in the words the tiny tokenizer knows."""
    question = f"What is {person}'s occupation?" if seen is None else "What is this person's occupation?"
    response = f"<think> {person} works as a {job}. </think> {job}"
    lead = f"{prefix} " if prefix else ""
    query = Query(f"{person}/{number}", lead + question, None if seen is None else png(seen), response)
    return Statement(query, question, job, person, among)


OTHERS = [
    statement("Lisbon", "green", number=1),
    statement("Asst Privat", "colour", number=2),
    statement("Venn Mara", "hat", number=3),
]


SEEN = [statement(o.person, o.value, seen=i + 5, number=i) for i, o in enumerate(OTHERS)]


@cache
def bridge_of(folder):
    return folded_bridge(lens_of(folder))


@cache
def leaks_of(folder, seen=None):
    lens = lens_of(folder)
    rows = [
        statement(name, JOBS[name], seen=None if seen is None else seen + i) for i, name in enumerate(NAMES)
    ]
    return find_leaks(lens, rows).leaks


@cache
def reference_of(folder, seen=None):
    return mean_query(lens_of(folder), OTHERS if seen is None else SEEN)
