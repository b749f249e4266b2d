"""`Site`: a place in the decoder, printed and parsed as TransformerLens names it."""

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from rmuse_interp import RMuseError

Hook = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
"""Hook points of one block; the method itself lives at `resid_post` (the block's output)."""

HOOKS: Final[tuple[str, ...]] = get_args(Hook)
_NAME: Final = re.compile(r"blocks\.(\d+)\.hook_(\w+)")


@dataclass(frozen=True, order=True)
class Site:
    """`blocks.{layer}.hook_{hook}`: the output of decoder block `layer`, unless `hook` says otherwise.

    Extraction and injection use the same site. It is not an index into `output_hidden_states`, whose entry
    `i` is the *input* of block `i` and whose last entry is taken after the final norm.

    Args:
        layer: 0-based index of the decoder block.
        hook: the hook point inside the block.

    Raises:
        RMuseError: a negative layer or an unknown hook point.

    Examples:
        >>> str(Site(3))
        'blocks.3.hook_resid_post'
        >>> Site.parse("blocks.3.hook_resid_post") == Site(3)
        True
        >>> sorted([Site(10), Site(2)])[0].layer
        2
    """

    layer: int
    hook: str = "resid_post"

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise RMuseError(f"a site needs a 0-based block index, got {self.layer}; count blocks from 0")
        if self.hook not in HOOKS:
            raise RMuseError(f"a site needs a hook point out of {', '.join(HOOKS)}, got {self.hook!r}")

    def __str__(self) -> str:
        return f"blocks.{self.layer}.hook_{self.hook}"

    @classmethod
    def parse(cls, name: str) -> "Site":
        """The site that `name` (`blocks.3.hook_resid_post`) stands for.

        Raises:
            RMuseError: any other string.
        """
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in HOOKS:
            raise RMuseError(
                f"a site's name looks like 'blocks.3.hook_resid_post', got {name!r}; print a Site"
            )
        return cls(int(match[1]), match[2])
