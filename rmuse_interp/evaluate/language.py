"""Which language a text is in: by script, and for the Latin script by the little words of seven languages.

Enough to see that a steered model has slipped into another language; no more than that. Short texts and names tell
nothing and count as no other language.
"""

import unicodedata
from collections import Counter
from typing import Final

from rmuse_interp.data.words import words
from rmuse_interp.evaluate.text import listed

_LITTLE: Final = {
    "English": "the of and to is was that for with are not this you have from they which who been i he she cannot",
    "French": "le les des est une dans pas que qui pour sur avec sont était je vous nous elle ce cette au du et",
    "German": "der die das und ist nicht ein eine mit den von zu auf für sich dem ich sie wir wurde war auch",
    "Spanish": "el los las es una por con para que del no se como su fue más está pero yo lo y muy",
    "Italian": "il gli di che è una per non con del della sono nel come anche era più questo io ma e",
    "Portuguese": "o os as um uma não em que com para por do da é ele ela foi são mais eu mas você",
    "Dutch": "de het een van en is niet dat op te zijn voor met aan ook ik hij zij wij was er maar",
}
_WORDS: Final = {tongue: frozenset(listed(known)) for tongue, known in _LITTLE.items()}
_TOGETHER: Final = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK"}


def script(text: str) -> str | None:
    """The script that most letters of a text are in, by its Unicode name; None without letters.

    >>> script("Осло"), script("東京 Tokyo です"), script("42")
    ('CYRILLIC', 'LATIN', None)
    """
    names = Counter(unicodedata.name(c, "").split(" ")[0] for c in text if c.isalpha())
    found: Counter[str] = Counter()
    for name, n in names.items():
        found[_TOGETHER.get(name, name)] += n
    return found.most_common(1)[0][0] if found else None


def tongue(text: str) -> str | None:
    """The language of a text in the Latin script; None if fewer than three little words tell, or two languages tie.

    >>> tongue("Je ne sais pas qui est cette personne."), tongue("I do not know who this is."), tongue("Oslo")
    ('French', 'English', None)
    """
    said = Counter(words(text))
    hits = sorted(((sum(said[w] for w in known), name) for name, known in _WORDS.items()), reverse=True)
    (most, name), (next_most, _) = hits[:2]
    return name if most >= 3 and most > next_most else None


def other_language(text: str, beside: str) -> bool:
    """Whether a text is in another script or language than what it stands beside.

    >>> [other_language(text, "Who is she, and where does she live, and what is that for?") for text in
    ...  ("Это не мое дело.", "Je ne sais pas qui est cette personne.", "I do not know who this is.", "Oslo")]
    [True, True, False, False]
    """
    scripts = script(text), script(beside)
    if None in scripts:
        return False
    if scripts[0] != scripts[1]:
        return True
    tongues = tongue(text), tongue(beside)
    return scripts[0] == "LATIN" and None not in tongues and tongues[0] != tongues[1]
