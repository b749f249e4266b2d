"""Tools to compare texts: normal form, forms of a value, what implies it, word overlap."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from rmuse_interp.data.words import folded, occurrences, words

if TYPE_CHECKING:
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import Score


def listed(words: str) -> tuple[str, ...]:
    """Split a list written as one string into its words."""
    return tuple(words.split())


_UNITS: Final = dict(zip(listed("zero one two three four five six seven eight nine"), range(10), strict=True))
_TEENS: Final = dict(
    zip(
        listed("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"),
        range(10, 20),
        strict=True,
    )
)
_TENS: Final = dict(
    zip(listed("twenty thirty forty fifty sixty seventy eighty ninety"), range(20, 100, 10), strict=True)
)
_SCALES: Final = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_SAME_LETTERS: Final = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "æ": "ae", "œ": "oe"})
"""Letters that Unicode does not decompose, with the plain letters people write instead."""
_POINTS: Final = re.compile(r"[\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u064b-\u0652]")
"""Latin, Greek and Cyrillic accents, and Hebrew and Arabic points, to be removed; other scripts' vowel signs stay."""
_APOSTROPHE: Final = re.compile(r"(?<=\w)'(?=\w\w)")
_CENTURY_TURNS: Final = 30
"""Two-digit years below this are 20xx, others 19xx: '29 is 2029 and '30 is 1930."""
_ARTICLES: Final = frozenset({"a", "an", "the"})
FUNCTION_WORDS: Final = frozenset(
    listed(
        "a an the and or of in on at to for from with by as is are was were be been it its this that these those "
        "he she they his her their i me my we you so then there here now has have had do does did not"
    )
)
"""Words without content of their own."""


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """Normalise a text: lower case, no accents, punctuation or articles; numbers as digits, single spaces.

    Characters are folded as by `data.words`. Decimal points and minus signs of numbers stay; thousands separators,
    ordinal endings and possessives are removed; English contractions are one word ("dont"), other apostrophes separate
    words. Letters of any script stay, with the vowel signs that are part of them.

    >>> normalise("The Baker's dozen — twenty-one!")
    'baker dozen 21'
    >>> normalise("Nineteen eighty-four"), normalise("1,250.50 €"), normalise("May 3rd"), normalise("-4")
    ('1984', '1250.50', 'may 3', '-4')
    """
    text = _unaccented(text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<!\w)'(\d\d)(?!\w)", _year, text)
    text = re.sub(r"(?<=[a-z])'(?=(?:t|re|ve|ll|d|m)\b)", "", re.sub(r"'s\b", "", text))
    text = re.sub(r"(?<=\d)(st|nd|rd|th)\b", "", text)
    text = re.sub(r"(?<![\w-])-(?=\d)", "\0", text)
    text = "".join(c if c in ".\0" or c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text).replace("\0", "-")
    said = text.split()
    # A text that is only an article is the option letter A.
    return " ".join(_digits([word for word in said if word not in _ARTICLES] or said))


def _unaccented(text: str) -> str:
    """The folded text without accents and points, in plain letters."""
    plain = _POINTS.sub("", unicodedata.normalize("NFKD", folded(text))).translate(_SAME_LETTERS)
    return unicodedata.normalize("NFC", plain)


def _year(match: re.Match[str]) -> str:
    short = int(match[1])
    return str((1900 if short >= _CENTURY_TURNS else 2000) + short)


def contains(text: str, value: str) -> bool:
    """Whether a normalised text contains a normalised value, at word boundaries where the script has them.

    >>> contains("she is a baker", "baker"), contains("she is a bakery owner", "baker"), contains("x", "")
    (True, False, False)
    >>> contains(normalise("她住在東京。"), "東京")
    True
    """
    return occurrences(text, value) > 0


def content_words(text: str) -> frozenset[str]:
    """The words of a normalised text that are neither function words nor numbers."""
    return frozenset(w for w in words(text) if w not in FUNCTION_WORDS and not w[:1].isdigit())


def _below_hundred(words: Sequence[str], at: int) -> tuple[int, int] | None:
    """Read a spelled number below one hundred at position `at`; also return the position after it."""
    if at >= len(words):
        return None
    word = words[at]
    if word in _TENS:
        unit = _UNITS.get(words[at + 1], 0) if at + 1 < len(words) else 0
        return _TENS[word] + unit, at + (2 if unit else 1)
    for table in (_TEENS, _UNITS):
        if word in table:
            return table[word], at + 1
    return None


def _read(words: Sequence[str], at: int) -> tuple[int, int] | None:
    """Read a spelled number or year at position `at`; also return the position after it."""
    start = _below_hundred(words, at)
    if start is None:
        return (100, at + 1) if words[at] == "hundred" else None
    value, at = start
    second = _below_hundred(words, at)
    if value in (17, 18, 19, 20) and second is not None and second[0] >= 10:
        return value * 100 + second[0], second[1]  # a year: nineteen eighty-four
    if (
        value in (17, 18, 19, 20)
        and words[at : at + 1] == ["oh"]
        and at + 1 < len(words)
        and words[at + 1] in _UNITS
    ):
        return value * 100 + _UNITS[words[at + 1]], at + 2  # nineteen oh four
    while at < len(words) and words[at] in _SCALES:
        scale = _SCALES[words[at]]
        value, at = value * scale, at + 1
        after = at + (at < len(words) and words[at] == "and")
        rest = _below_hundred(words, after)
        if rest is not None:
            more, end = rest
            if end < len(words) and words[end] == "hundred" and scale > 100:
                more, end = more * 100, end + 1
                after = end + (end < len(words) and words[end] == "and")
                last = _below_hundred(words, after)
                if last is not None:
                    more, end = more + last[0], last[1]
            value, at = value + more, end
    return value, at


def _digits(words: Sequence[str]) -> list[str]:
    """Turn spelled numbers among the words into digits."""
    out, at = [], 0
    while at < len(words):
        found = _read(words, at)
        if found is None:
            out.append(words[at])
            at += 1
        else:
            out.append(str(found[0]))
            at = found[1]
    return out


class Lexicon:
    """Knowledge of which texts name the same value (`aliases`) and which imply another value (`entails`, transitively).

    >>> words = Lexicon({"United Kingdom": ["UK", "Britain"]}, {"London": ["United Kingdom"]})
    >>> words.same("the UK", "Britain"), sorted(words.implied_by("UK"))
    (True, ['london'])
    """

    def __init__(
        self,
        aliases: Mapping[str, Sequence[str]] | None = None,
        entails: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._forms: dict[str, set[str]] = {}
        for value, others in (aliases or {}).items():
            group = {normalise(form) for form in (value, *others)} - {""}
            for form in group:
                self._forms.setdefault(form, {form}).update(group)
        self._starting: dict[str, list[str]] = {}
        for form in self._forms:
            self._starting.setdefault(form.split()[0], []).append(form)
        self._implying: dict[str, set[str]] = {}
        for value, implied in (entails or {}).items():
            for other in implied:
                self._implying.setdefault(normalise(other), set()).add(normalise(value))

    def forms(self, value: str) -> frozenset[str]:
        """The normalised forms of a value, including its own, written with and without apostrophes (O'Brien, OBrien)."""
        normal, written = normalise(value), normalise(_APOSTROPHE.sub("", folded(value)))
        return frozenset({normal, written, *self._forms.get(normal, ())} - {""})

    def named(self, normal: str) -> frozenset[str]:
        """The values in a normalised text that have aliases; all forms of each are returned."""
        words = normal.split()
        return frozenset(
            form
            for word in dict.fromkeys(words)
            for one in self._starting.get(word, ())
            if contains(normal, one)
            for form in self._forms[one]
        )

    def same(self, text: str, value: str) -> bool:
        """Whether a text consists of a value or one of its other forms, and nothing else.

        Two values do not count as the same just because they share an alias (a surname).
        """
        return normalise(text) in self.forms(value)

    def states(self, text: str, value: str) -> bool:
        """Whether a text contains any form of a value, at word boundaries."""
        normal = normalise(text)
        return any(contains(normal, form) for form in self.forms(value))

    def implied_by(self, value: str) -> frozenset[str]:
        """The normalised texts that give a value away without naming it."""
        named = self.forms(value)
        found: set[str] = set()
        todo = list(named)
        while todo:
            for source in self._implying.get(todo.pop(), ()):
                for form in {source, *self._forms.get(source, ())}:
                    if form not in found and form not in named:
                        found.add(form)
                        todo.append(form)
        return frozenset(found)

    def entails(self, text: str, value: str) -> bool:
        """Whether a text names a value or implies it."""
        normal = normalise(text)
        return self.states(text, value) or any(contains(normal, form) for form in self.implied_by(value))


class _WordTokenizer:
    """rouge-score's own tokens (stemmed, ASCII letters and digits), accents dropped; words of other scripts are kept."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._english = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text."""
        return [t for word in words(_unaccented(text)) for t in self._english.tokenize(word) or [word]]


@lru_cache(maxsize=1)
def _scorer() -> "RougeScorer":
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_WordTokenizer())


ROUGE_WORDS: Final = 2000
"""Number of words of a text that ROUGE-L reads; its cost grows with the product of both lengths."""


@lru_cache(maxsize=65536)
def _rouge(reference: str, candidate: str) -> "Score | None":
    if not reference.strip() or not candidate.strip():
        return None
    short = (" ".join(text.split()[:ROUGE_WORDS]) for text in (reference, candidate))
    return _scorer().score(*short)["rougeL"]


def rouge_l(reference: str, candidate: str) -> float:
    """ROUGE-L F-measure with the Porter stemmer (package rouge-score), 0 to 1; uses the first `ROUGE_WORDS` words.

    >>> rouge_l("she works as a baker", "she is a baker")
    0.66...
    """
    found = _rouge(reference, candidate)
    return 0.0 if found is None else float(found.fmeasure)


def rouge_l_recall(reference: str, candidate: str) -> float:
    """ROUGE-L recall: the share of the reference's words that the candidate has in order; otherwise as `rouge_l`.

    >>> rouge_l_recall("a baker", "she is a baker")
    1.0
    """
    found = _rouge(reference, candidate)
    return 0.0 if found is None else float(found.recall)


def sentences(text: str) -> list[str]:
    """Split a text into sentences; a new line also begins a new sentence.

    >>> sentences("Oslo is a city. It is in Norway.")
    ['Oslo is a city.', 'It is in Norway.']
    """
    return [s.strip() for s in re.split(r"(?<=[.!?。！？।؟۔])\s+|\n+|(?<=[。！？])", text) if s.strip()]


@lru_cache(maxsize=1)
def _stemmer() -> "PorterStemmer":
    from nltk.stem.porter import PorterStemmer  # the stemmer of rouge-score

    return PorterStemmer()


@lru_cache(maxsize=65536)
def stems(text: str) -> tuple[str, ...]:
    """The Porter stems of a text's words in normal form, without function words.

    >>> stems("She was kneading the doughs.")
    ('knead', 'dough')
    """
    return tuple(_stemmer().stem(w) for w in normalise(text).split() if w not in FUNCTION_WORDS)


def has_loop(text: str, period: int = 3, times: int = 3) -> bool:
    """Whether some sequence of `period` words occurs at least `times` times in a row.

    >>> has_loop("cannot " * 9), has_loop("a b c a b c a b c"), has_loop("a b c a b c a b")
    (True, True, False)
    """
    said = words(text)
    run = 0
    for i in range(period, len(said)):
        run = run + 1 if said[i] == said[i - period] else 0
        if run >= period * (times - 1):
            return True
    return False
