"""`data.words`: the words of texts in many scripts, and whether a judge finds a value in them."""

import unicodedata

import pytest

from rmuse_interp.data import fields
from rmuse_interp.data.words import folded, numbers, occurrences, words
from rmuse_interp.evaluate.judges.cases import LeakCase
from rmuse_interp.evaluate.judges.rules import RulesJudge
from rmuse_interp.evaluate.text import Lexicon, has_loop, normalise, rouge_l

SHY, ZWSP, ZWNJ, ZWJ, RLM, BOM, VS16 = "\u00ad", "\u200b", "\u200c", "\u200d", "\u200f", "\ufeff", "\ufe0f"

FOUND = [
    # text, value: the text tells the value
    # Latin
    ("She lives in Oslo.", "Oslo"),
    ("OSLO!", "oslo"),
    ("Elle vient d'Oslo.", "Oslo"),
    ("Elle vient d’Oslo.", "Oslo"),
    ("Elle vient dʼOslo.", "Oslo"),
    ("l'Italia", "Italia"),
    ("L´Aquila", "L'Aquila"),
    ("Ankara'da yaşıyor.", "Ankara"),
    ("İstanbul'dan geldi", "istanbul"),
    ("ISTANBUL", "İstanbul"),
    ("DİYARBAKIR", "Diyarbakır"),
    ("Diyarbakır'lı", "DIYARBAKIR"),
    ("Mr O'Brien knows", "O’Brien"),
    ("the Os" + SHY + "lo office", "Oslo"),
    ("Os" + ZWSP + "lo", "Oslo"),
    (BOM + "Oslo", "Oslo"),
    ("\u2066Oslo\u2069", "Oslo"),
    ("Ｏｓｌｏ", "Oslo"),
    ("𝐎𝐬𝐥𝐨", "Oslo"),
    (unicodedata.normalize("NFD", "in Malmö."), "Malmö"),
    ("in Malmö.", unicodedata.normalize("NFD", "Malmö")),
    ("Hauptstraße 5", "HAUPTSTRASSE"),
    ("ﬁsher", "fisher"),
    ("Hawaiʻi", "Hawai'i"),
    ("Huế, Việt Nam", "huế"),
    ("naïve Zoë", "ZOË"),
    ("born in 1984,", "1984"),
    ("(Oslo)—indeed", "Oslo"),
    ("Oslo/Bergen", "bergen"),
    # Greek, Cyrillic, Armenian, Georgian
    ("Ζει στην ΑΘΗΝΑ.", "Αθήνα".replace("ή", "η")),
    ("ο Οδυσσεύς", "ΟΔΥΣΣΕΎΣ"),
    ("Она живёт в Москве.", "москве"),
    ("м'ята", "мʼята"),
    ("ԵՐԵՎԱՆ", "Երեվան"),
    ("ᲗᲑᲘᲚᲘᲡᲘ", "თბილისი"),
    # Hebrew, Arabic, Persian, Urdu
    ("הוא גר בתל אביב.", "אביב"),
    (RLM + "אוסלו" + RLM, "אוסלו"),
    ("ג׳ורג׳ כאן", "ג'ורג'"),
    ("تعيش في أوسلو.", "أوسلو"),
    ("أوســـلو", "أوسلو"),
    ("سنة ١٩٨٤", "1984"),
    ("سال ۱۹۸۴", "1984"),
    ("۱۹۸۴", "١٩٨٤"),
    ("می" + ZWNJ + "رود", "میرود"),
    ("ﻻ", "لا"),
    # Devanagari, Bengali, Gurmukhi, Tamil, Telugu, Malayalam
    ("वह दिल्ली में रहती है।", "दिल्ली"),
    ("जन्म १९८४ में", "1984"),
    ("क्" + ZWJ + "ष", "क्ष"),
    ("ঢাকা শহর", "ঢাকা"),
    ("১৯৮৪ সালে", "1984"),
    ("ਦਿੱਲੀ", "ਦਿੱਲੀ"),
    ("சென்னை நகரம்", "சென்னை"),
    ("హైదరాబాద్ లో", "హైదరాబాద్"),
    ("കൊച്ചി", "കൊച്ചി"),
    # Ethiopic, Cherokee, N'Ko
    ("አዲስ አበባ።", "አበባ"),
    ("ꮳꮃꭹ", "ᏣᎳᎩ"),
    ("߁߉߈߄", "1984"),
    # Han, kana, Hangul, Thai, Lao, Khmer, Burmese
    ("她住在東京。", "東京"),
    ("Tokyoに住む", "Tokyo"),
    ("2024年に", "2024"),
    ("１９８４年", "1984"),
    ("ロンドンに住む", "ロンドン"),
    ("ﾛﾝﾄﾞﾝ", "ロンドン"),
    ("ガ", unicodedata.normalize("NFD", "ガ")),
    ("서울에서 왔다", "서울"),
    (unicodedata.normalize("NFD", "서울"), "서울"),
    ("เธออยู่ที่กรุงเทพฯ", "กรุงเทพ"),
    ("พ.ศ. ๒๕๖๗", "2567"),
    ("ຢູ່ວຽງຈັນ", "ວຽງຈັນ"),
    ("នៅភ្នំពេញ", "ភ្នំពេញ"),
    ("ရန်ကုန်မှာ", "ရန်ကုန်"),
    # others
    ("1" + VS16 + "\u20e3", "1"),
    ("№ 5", "no"),
    ("C++ and C#", "C++"),
]
ABSENT = [
    ("Osloby", "Oslo"),
    ("romantic", "Roma"),
    ("दिल्ली", "दिल"),
    ("दिल्ली", "ल्ली"),
    ("काम", "का"),
    ("হাঁস", "হাঁ"),
    ("சென்னை", "சென்"),
    ("กิน", "ก"),
    ("កម្ពុជា", "ពុជា"),
    ("がく", "か" + "\u3099" + "く" + "x"),
    (unicodedata.normalize("NFD", "Zoë"), "Zoe"),
    ("19845", "1984"),
    ("12.5", "12"),
    ("12.5", "5"),
    ("12,500", "500"),
    ("at -4 degrees", "4"),
    ("١٩٨٤٥", "1984"),
    ("Московский", "Москов"),
    ("شمس", "شم"),
    ("Oslo", ""),
    ("", "Oslo"),
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_a_value_that_a_text_tells_is_found(text, value):
    assert occurrences(folded(text), folded(value)) == 1
    assert fields.states(text, value)
    if value != "C++":  # a sign is no word: for the judges this is the letter
        assert Lexicon().states(text, value)
        assert RulesJudge().states([LeakCase(text, "?", "city", value)]) == [True]


@pytest.mark.parametrize(("text", "value"), ABSENT)
def test_a_value_that_is_part_of_another_word_is_not_found(text, value):
    assert occurrences(folded(text), folded(value)) == 0
    assert not fields.states(text, value)
    accents_matter = value != "Zoe"
    assert Lexicon().states(text, value) is not accents_matter


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Elle vient d'Oslo, non?", ["elle", "vient", "d", "oslo", "non"]),
        ("don't", ["don", "t"]),
        ("a_b — c/d", ["a", "b", "c", "d"]),
        ("दिल्ली में रहती", ["दिल्ली", "में", "रहती"]),
        ("東京に2回", ["東", "京", "に", "2", "回"]),
        ("ราคา 5", ["ร", "า", "ค", "า", "5"]),
        ("กิน", ["กิ", "น"]),
        ("サーバー", ["サ", "ー", "バ", "ー"]),
        ("서울에서 왔다", ["서울에서", "왔다"]),
        ("🙂 ok 👍🏽", ["ok"]),
        ("שָׁלוֹם", ["שָׁלוֹם"]),
        ("", []),
    ],
)
def test_words_keep_their_marks_and_lose_their_punctuation(text, found):
    assert words(text) == list(map(folded, found))


def test_numbers_stand_beside_any_script():
    assert numbers(folded("10年 and ٣٫٥, not b2 or 3d; -4")) == ["10", "3.5", "-4"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("They don't know; it's she who'd say", "they dont know it she whod say"),
        ("O'Brien's", "o brien"),
        ("Ankara'da", "ankara da"),
        ("twenty-one in '05", "21 in 2005"),
        ("सन् १९८४", "सन् 1984"),
    ],
)
def test_the_normal_form_keeps_english_contractions_whole(text, normal):
    assert normalise(text) == normal


def test_a_name_is_the_same_with_and_without_its_apostrophe():
    for text in ("Mr O'Brien", "Mr OBrien", "Mr O’Brien"):
        assert Lexicon().states(text, "O'Brien")


def test_scores_of_texts_in_other_scripts_are_those_of_their_words():
    assert rouge_l("東京に住む", "東京に住む人") == pytest.approx(2 * 5 / (5 + 6))
    assert rouge_l("दिल्ली में", "दिल में") == pytest.approx(1 / 2)
    # One accent must not change how the rest of a text is read: the article counts on both sides.
    assert rouge_l("the café in town", "the cafe in town") == 1
    assert has_loop("東京東京東京", period=2)
