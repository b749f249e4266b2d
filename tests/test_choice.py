"""`choice`: the option that a reply to a multiple-choice question chooses."""

import pytest
from helpers.said import said

from rmuse_interp.evaluate.choice import choice, chosen


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        (" (b) Rome", "B"),
        ("b", "B"),
        ("B. Rome", "B"),
        ("B Rome", "B"),
        ("**B**", "B"),
        ("Answer: B", "B"),
        ("The answer is B.", "B"),
        ("The correct option is (B).", "B"),
        ("correct answer: **B**) Rome", "B"),
        ("I choose option B because A is wrong", "B"),
        ("A person like this lives in B.", "B"),
        ("The answer is a city.", ""),
        ("A or B.", ""),
        ("Answer: A. No, the answer is B.", ""),
        ("My choice: I think B.", "B"),
        ("Rome", ""),
        ("7", ""),
        ("", ""),
    ],
)
def test_choice_takes_the_letter_that_the_reply_chooses(reply, letter):
    assert chosen(reply) == letter
    found = choice([said(reply, kind="classification", answer="B")])
    assert (found.value, found.parse_failures) == (100.0 * (letter == "B"), int(not letter))
