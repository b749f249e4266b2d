"""What single model families cannot do: one record, for refusals and for the table in `docs/families.md`."""

from dataclasses import dataclass
from typing import Final, Literal

from rmuse_interp import RMuseError

Need = Literal[
    "pictures",
    "rows without a picture",
    "mixed batches",
    "unequal numbers of pictures",
    "chats",
    "cross-attention blocks",
]
"""What a call may need of a family: pictures; rows without one; batches of both, or of rows with other numbers of them;
earlier turns; edits at such blocks."""


@dataclass(frozen=True)
class Limit:
    """Something a family cannot do.

    Args:
        need: what it is.
        why: the reason, with the way round it, in one line.
    """

    need: Need
    why: str


_MLLAMA: Final = (
    Limit(
        "mixed batches",
        "Mllama runs its cross-attention blocks for every row of a batch or for none, so a row without a picture would "
        "read otherwise beside one with a picture; encode rows with and without pictures apart",
    ),
    Limit(
        "unequal numbers of pictures",
        "Mllama reads the words before a picture otherwise in a batch with a row of more pictures; encode rows with "
        "other numbers of pictures apart",
    ),
    Limit(
        "cross-attention blocks",
        "Mllama skips its cross-attention blocks where no row has a picture, so an edit or gate there would do nothing; "
        "choose other layers",
    ),
)
_PALIGEMMA: Final = (
    Limit(
        "rows without a picture",
        "PaliGemma's processor takes no row without a picture; give every row one, or choose another family",
    ),
    Limit("chats", "PaliGemma has no chat: its input is a picture and one text; ask without earlier turns"),
)
_PHI4: Final = (
    Limit(
        "pictures",
        "Phi-4-multimodal is loaded as a text model, since transformers has no image-text class for it; leave images out",
    ),
)

LIMITS: Final[dict[str, tuple[Limit, ...]]] = {
    "mllama": _MLLAMA,
    "paligemma": _PALIGEMMA,
    "phi4_multimodal": _PHI4,
}
"""`model_type` of the configuration → what the family cannot do."""


def require(family: str, need: Need, row: str = "") -> None:
    """Raise unless the family can do what a call needs of it.

    Args:
        family: `model_type` of the model's configuration.
        need: what the call needs.
        row: name of the row at fault, if there is one.

    Raises:
        RMuseError: the family's own reason.
    """
    for limit in LIMITS.get(family, ()):
        if limit.need == need:
            raise RMuseError(f"{row}: {limit.why}" if row else limit.why)


def lacks(family: str, need: Need) -> bool:
    """Whether the family cannot do something."""
    return any(limit.need == need for limit in LIMITS.get(family, ()))
