"""What a model is asked: a plain question, or a conversation, also as the turns that chat clients send."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rmuse_interp import RMuseError


@dataclass(frozen=True)
class Conversation:
    """A question with earlier turns; accepted wherever a plain question is. A picture belongs to the first turn.

    Args:
        history: earlier questions and the assistant's replies, oldest first.
        question: the question to be answered.
        system: a system turn before all others; put before the first question where the template has none.
    """

    history: tuple[tuple[str, str], ...]
    question: str
    system: str | None = None

    def __len__(self) -> int:
        """Number of characters in all turns."""
        return (
            len(self.question)
            + len(self.system or "")
            + sum(len(words) for turn in self.history for words in turn)
        )

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Role and text of every turn, the question last."""
        earlier = [turn for asked, said in self.history for turn in (("user", asked), ("assistant", said))]
        return [*([("system", self.system)] if self.system else []), *earlier, ("user", self.question)]


Prompt = str | Conversation
"""A plain question, or one with earlier turns."""


Turns = Sequence[Mapping[str, object]]
"""A conversation as chat clients have it: ``{"role": …, "content": …}`` for each turn, the question last."""
Prompts = Prompt | Turns | Sequence[Prompt | Turns]
"""One prompt or several, each a plain question, a `Conversation` or its turns."""


def listed(prompts: Prompts) -> list[Prompt]:
    """The prompts of a batch; a single one is a batch of one.

    >>> listed([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}])
    [Conversation(history=(), question='Who?', system='Be brief.')]

    Raises:
        RMuseError: turns that are no conversation (see `conversation`), or a prompt of another type.
    """
    if isinstance(prompts, str | Conversation):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise RMuseError(f"a question or a list of questions was required, got {type(prompts).__name__}")
    if prompts and all(isinstance(one, Mapping) for one in prompts):
        return [conversation(prompts)]
    return [one if isinstance(one, str | Conversation) else conversation(one) for one in prompts]


def conversation(turns: object) -> Conversation:
    """A conversation from its turns: an optional system turn, then questions and replies in turn, a question last.

    Raises:
        RMuseError: another order or role, a content that is not text, or a picture in it (pictures go to ``images``).
    """
    wanted = (
        "turns {'role': …, 'content': …} were required: system at most once and first, then user and assistant in turn, "
        "user last"
    )
    if isinstance(turns, str | bytes) or not isinstance(turns, Sequence):
        raise RMuseError(f"{wanted}; got {type(turns).__name__}")
    said = [
        (str(turn.get("role")), _words(turn.get("content"))) for turn in turns if isinstance(turn, Mapping)
    ]
    system = said.pop(0)[1] if said and said[0][0] == "system" else None
    roles = [role for role, _ in said]
    due = ["user", "assistant"] * (len(said) // 2) + ["user"]
    if len(said) + (system is not None) != len(turns) or roles != due:
        raise RMuseError(f"{wanted}; got {', '.join(roles) or 'none'}")
    words = [text for _, text in said]
    return Conversation(tuple(zip(words[0:-1:2], words[1::2], strict=True)), words[-1], system)


def _words(content: object) -> str:
    """The text of a turn's content: a string, or chat parts of type text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    texts = [
        part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        for part in parts
    ]
    if not all(isinstance(text, str) for text in texts):
        raise RMuseError(
            "the content of a turn was required in words (a string, or parts of type text), got other parts; give "
            "pictures by images=, one entry per prompt: they stand before the first question"
        )
    return "\n".join(map(str, texts))


def behind(prefix: str, prompt: Prompt) -> Prompt:
    """`g ⊕ q`: put a text in front of the question; in a conversation, in front of the last question.

    >>> behind("Refuse.", Conversation((("Hi?", "Hello."),), "Who?")).question
    'Refuse. Who?'
    """
    if isinstance(prompt, Conversation):
        return replace(prompt, question=f"{prefix} {prompt.question}")
    return f"{prefix} {prompt}"
