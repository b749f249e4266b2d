"""The one way from a text to its words, whatever its script: what judges, scores and checks compare."""

import unicodedata
from functools import lru_cache
from typing import Final

import regex

_IGNORED: Final = regex.compile(r"[\p{Cf}\p{Default_Ignorable_Code_Point}\p{Me}\u0640]")
"""Characters that only format: soft hyphens, joiners, direction marks, variation selectors, keycaps, tatweel."""
_SAME: Final = str.maketrans(
    {**dict.fromkeys("’‘‛ʼʻʹʾʿ′´`׳", "'"), "−": "-", "İ": "i", "ı": "i", "٫": ".", "٬": ","}
)
"""Apostrophes, minus signs and separators of numbers, each in one form, and the Turkish i's, which capitals confuse."""
_DIGIT: Final = regex.compile(r"[^\P{Nd}0-9]")
_UNSPACED: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts without spaces between words."""
_SOLID: Final = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{_UNSPACED}\p{{Hangul}}]]"
"""A character that continues a word in scripts with spaces between them; in Hangul, particles follow a word unspaced."""
_WORD: Final = regex.compile(
    rf"[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]\p{{M}}*|[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]*",
    regex.VERSION1,
)
_NUMBER: Final = regex.compile(rf"(?<!{_SOLID})(?<!\d\.)-?\d+(?:\.\d+)?(?!{_SOLID})(?!\.\d)", regex.VERSION1)


@lru_cache(maxsize=65536)
def folded(text: str) -> str:
    """The text as it is compared: no case, one form per character (NFKC), digits of all scripts as 0–9.

    Characters that only format (soft hyphens, joiners, direction marks, variation selectors) are dropped, all
    apostrophes become one, and the Turkish İ and ı are i, as their capitals and small letters are mixed up in practice.
    Accents, vowel signs and punctuation stay.

    >>> folded("Ｏs\\u00adlo, ٢٠٢٤"), folded("DİYARBAKIR") == folded("Diyarbakır"), folded("STRASSE") == folded("Straße")
    ('oslo, 2024', True, True)
    """
    text = _IGNORED.sub("", unicodedata.normalize("NFKC", text.translate(_SAME)).translate(_SAME))
    text = unicodedata.normalize("NFKC", text.casefold()).replace("i\u0307", "i")
    return _DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text)


def words(text: str) -> list[str]:
    """The words of a text, folded, without punctuation; apostrophes separate words.

    Marks belong to their letter. In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), where words
    cannot be found without a dictionary, each character with its marks is a word.

    >>> words("Elle vient d'Oslo."), words("दिल्ली में"), words("東京に 2 回")
    (['elle', 'vient', 'd', 'oslo'], ['दिल्ली', 'में'], ['東', '京', 'に', '2', '回'])
    """
    return _WORD.findall(folded(text))


def occurrences(text: str, value: str) -> int:
    """How often a folded text holds a folded value as whole words.

    A word ends where no letter, mark or digit goes on; numbers are whole with their sign, decimals and thousands. In
    scripts without spaces, and in Korean, a value may have letters before and behind it, but a character is never
    separated from its marks.

    >>> occurrences("oslo or oslo not osloby", "oslo"), occurrences("दिल्ली", "दिल"), occurrences("東京に住む", "東京")
    (2, 0, 1)
    >>> occurrences("2024年", "2024"), occurrences("12.5", "12"), occurrences("oslo", "")
    (1, 0, 0)
    """
    if not value:
        return 0
    begin, end = _edges(value)
    found, at = 0, text.find(value)
    while at >= 0:  # found first, then tested: a pattern of a long value would be tried at every character
        whole = begin.match(text, at) is not None and end.match(text, at + len(value)) is not None
        found += whole
        at = text.find(value, at + (len(value) if whole else 1))
    return found


def numbers(text: str) -> list[str]:
    """The whole numbers and decimals of a folded text, in its order.

    >>> numbers("10年, -4 and 12.5 but not b2")
    ['10', '-4', '12.5']
    """
    return _NUMBER.findall(text)


@lru_cache(maxsize=4096)
def _edges(value: str) -> "tuple[regex.Pattern[str], regex.Pattern[str]]":
    """Patterns of no width that hold where a whole value begins and where it ends."""
    loose = regex.compile(rf"[{_UNSPACED}\p{{Hangul}}]")
    begin = r"(?<![\u17d2\u1039])" if loose.match(value[0]) else rf"(?<!{_SOLID})"
    begin += r"(?<!\d[.,])(?<!(?<!\S)-)" if value[0].isdigit() else ""
    end = r"(?!\p{M})" if loose.match(value[-1]) else rf"(?!{_SOLID})"
    end += r"(?![.,]\d)" if value[-1].isdigit() else ""
    return regex.compile(begin, regex.VERSION1), regex.compile(end, regex.VERSION1)
