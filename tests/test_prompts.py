"""Prompts as users have them: the turns of a chat."""

import pytest
import torch
from helpers.tiny import picture

from rmuse_interp import RMuseError
from rmuse_interp.models.prompts import Conversation, conversation, listed

USER, REPLY, SYSTEM = (
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Mara."},
    {"role": "system", "content": "Be brief."},
)
LAST = {
    "role": "user",
    "content": [{"type": "text", "text": "Where does"}, {"type": "text", "text": "she live?"}],
}
SAME = Conversation((("Who?", "Mara."),), "Where does\nshe live?")


def test_chat_turns_are_a_conversation_alone_and_in_a_batch():
    assert listed([USER, REPLY, LAST]) == [SAME]
    assert listed([[USER], "Who?", [USER, REPLY, LAST], SAME]) == [
        Conversation((), "Who?"),
        "Who?",
        SAME,
        SAME,
    ]
    assert listed([SYSTEM, USER]) == [Conversation((), "Who?", "Be brief.")]


def test_chat_turns_are_encoded_as_the_conversation_they_are(lens):
    turns, same = lens.encode([USER, REPLY, LAST], picture(1)), lens.encode(SAME, picture(1))
    assert turns.texts == same.texts
    assert torch.equal(turns["input_ids"], same["input_ids"])
    assert lens.encode([USER]).texts == lens.encode("Who?").texts


@pytest.mark.parametrize(
    "turns",
    [
        [USER, REPLY],
        [USER, USER],
        [REPLY, USER],
        [USER, REPLY, SYSTEM, LAST],
        [SYSTEM],
        [{"role": "tool", "content": "x"}],
        [{"content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}],
        [],
        [5],
        [[5]],
        5,
    ],
)
def test_turns_that_are_no_conversation_are_refused(turns):
    with pytest.raises(RMuseError, match="required"):
        conversation(turns)
