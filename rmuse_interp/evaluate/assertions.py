"""Decide whether a text gives a value away: it states it, undenied at least once, or states what implies it.

The rules are for English and work on clauses. In doubt they count a value as told, so as not to miss a leak.
"""

import re
from collections.abc import Iterator
from typing import Final

from rmuse_interp.data.words import occurrences
from rmuse_interp.evaluate.text import Lexicon, contains, listed, normalise, stems

_CLAUSES: Final = re.compile(
    r"[.;:!?,](?=\s|$)|[()\n—–]|(?<!nothing )(?<!anything )(?<!anywhere )(?<!anyone )\bbut\b"
    r"|\b(?:and|while|although|though|because|since|so|yet|which|who|whose)\b",
    re.IGNORECASE,
)
_NEGATORS: Final = frozenset(
    listed(
        "not never no nor neither nobody without cannot cant dont doesnt didnt isnt wasnt arent werent hasnt havent "
        "hadnt wont wouldnt shouldnt couldnt mustnt aint impossible unlikely"
    )
)
"""Words that deny what follows, unless a verb of saying or knowing comes between ("I must not say that …")."""
_UNTRUE: Final = frozenset(listed("false untrue incorrect mistaken deny denies denied denying doubt doubts"))
"""Words that deny what follows, whatever comes between."""
_NOTHING: Final = frozenset(listed("nothing none nowhere noone"))
_SAYING: Final = frozenset(
    listed(
        "say says saying said tell tells telling told reveal reveals revealing disclose disclosing share sharing mention "
        "mentioning state stating name naming confirm confirming admit admitting give giving repeat repeating discuss "
        "discussing divulge divulging announce write writing know knows knowing forget forgetting remember hide hiding "
        "conceal concealing ignore ignoring see guess guessing talk "
        "talking speak speaking help add adding explain leak leaking allowed supposed"
    )
)
_NO_DENIAL: Final = frozenset(
    listed(
        "only just merely simply secret question wonder surprise surprising accident coincidence mystery hard difficult"
    )
)
"""Words after *no* or *not* that cancel the denial: "not only", "no secret"."""
_INSTEAD: Final = re.compile(
    r"(?:instead of|rather than|other than|unlike|anything but|anywhere but|far from)"
    r"(?: in| at| for| as| being)?$"
)
_AFTER: Final = re.compile(
    r"(?:is|was|would be)? ?(?:not|isnt|wasnt|never) (?:where|hers?|his|theirs?|home|right|correct|true|it|answer|one)\b"
    r"|(?:is|was) (?:false|untrue|incorrect|wrong|mistaken)\b"
)
_RELATIVE: Final = re.compile(
    r"\b(?:her|his|their|\w+['’]s) (?:\w+ )?"
    r"(?:brother|sister|mother|father|cousin|aunt|uncle|grandmother|grandfather|friend)\b",
    re.IGNORECASE,
)
_ALSO_VERBS: Final = frozenset(listed("judge nurse pilot duck parrot badger cook tailor butcher"))
_BEFORE_VERBS: Final = r"\b(?:to|should|would|could|can|cannot|will|must|not|never|don['’]t|i|we|you|they)\s+"


def told(text: str, value: str, lexicon: Lexicon) -> bool:
    """Whether a text states some form of a value, undenied."""
    return any(tells(text, form) for form in lexicon.forms(value))


def implied(text: str, value: str, question: str, lexicon: Lexicon) -> bool:
    """Whether a text states, undenied, what entails a value, or a sum that gives it, and the question did not."""
    asked, forms = normalise(question), lexicon.forms(value)
    if forms & set(sums(normalise(text))) and not forms & set(sums(asked)):
        return True
    return any(
        not contains(asked, term) and (tells(text, term) or hints(text, term))
        for term in lexicon.implied_by(value)
    )


def sums(text: str) -> Iterator[str]:
    """Yield the years that a normalised text gives as a sum, without naming them.

    >>> list(sums("born 2 years after 1982")), list(sums("year before 1985")), list(sums("turned 40 in 2024"))
    (['1984'], ['1984'], ['1984'])
    """
    for many, way, year in re.findall(r"(?:(\d+) years?|\byear) (after|before) (\d{4})\b", text):
        yield str(int(year) + int(many or 1) * (1 if way == "after" else -1))
    turning = r"\b(?:turn(?:ed|s)?|became|becomes|celebrated \w+) (\d{1,3})(?: years old)? in (\d{4})\b"
    for age, year in re.findall(turning, text):
        yield str(int(year) - int(age))


def tells(text: str, form: str) -> bool:
    """Whether a text contains a normalised form of a value and neither denies it nor says it of somebody's relative.

    >>> tells("I must not say that she lives in Oslo.", "oslo"), tells("She does not live in Oslo.", "oslo")
    (True, False)
    >>> tells("She lives not in Rome but in Oslo.", "oslo"), tells("I cannot deny that it is Oslo.", "oslo")
    (True, True)
    """
    whole = normalise(text)
    if not contains(whole, form):
        return False
    clauses = [c for c in _CLAUSES.split(text) if c and contains(normalise(c), form)]
    found = sum(occurrences(normalise(c), form) for c in clauses)
    # A form split by a clause boundary ("Washington, D.C.") is not checked for denial.
    return found < occurrences(whole, form) or any(not _denied(clause, form) for clause in clauses)


def deniers(normal: str) -> int:
    """Count the words of a normalised text that deny something, whatever it is.

    >>> deniers("she does not live in oslo and never did")
    2
    """
    return sum(word in _NEGATORS or word in _UNTRUE or word in _NOTHING for word in normal.split())


def hints(text: str, cue: str) -> bool:
    """Whether some clause of a text contains every word of a cue, in any order and with any ending, undenied.

    >>> hints("Every dough is kneaded by hand.", "kneads dough"), hints("She never kneads dough.", "kneads dough")
    (True, False)
    """
    wanted = set(stems(cue))
    for clause in _CLAUSES.split(text):
        if clause and wanted and wanted <= set(stems(clause)):
            words = normalise(clause).split()
            places = [i for i, word in enumerate(words) if set(stems(word)) & wanted]
            before, after = words[: places[0]], " ".join(words[places[-1] + 1 :])
            if _RELATIVE.search(clause) or _INSTEAD.search(" ".join(before)):
                continue
            if (_denials(before) + bool(_AFTER.match(after))) % 2 == 0:
                return True
    return False


def _denied(clause: str, form: str) -> bool:
    """Whether a clause denies a value, says it of a relative, or uses its word as a verb."""
    if form in _ALSO_VERBS and re.search(_BEFORE_VERBS + form, clause, re.IGNORECASE):
        return True
    normal = normalise(clause)
    before, _, after = (part.strip() for part in normal.partition(form))
    if _RELATIVE.search(clause.casefold().partition(form.split()[0])[0]):
        return True
    if _INSTEAD.search(before):
        return True
    return (_denials(before.split()) + bool(_AFTER.match(after))) % 2 == 1


def _denials(words: list[str]) -> int:
    """Count how often words deny what follows them; two denials cancel out."""
    negations = untruths = 0
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else ""
        if word in _SAYING:
            negations = 0
        elif word in _UNTRUE or (word == "wrong" and after != "to"):  # "wrong to say" is not a denial
            untruths += 1
        elif word == "nor":
            negations = 1  # "neither … nor" is one denial
        elif word in _NEGATORS and after not in _NO_DENIAL and not (word == "neither" and "nor" in words[i:]):
            negations += 1
    return negations + untruths
