"""Text shown for edits and plans: lines for ``print``, an HTML table for notebooks."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, Protocol, runtime_checkable

from rmuse_interp.data.example import Modality
from rmuse_interp.edits.sentence import Per, Tokens
from rmuse_interp.models.site import Site
from rmuse_interp.parts.gates import Gate
from rmuse_interp.parts.part import Part

_TOKENS: Final[dict[Tokens, str]] = {
    "generated": "last prompt token on",
    "prompt_end": "last prompt token",
    "prompt": "question and last prompt token",
    "response": "generated tokens",
    "all": "all tokens but those of images",
    "image": "image tokens",
    "chain": "chain of the response",
    "answer": "answer of the response",
    "mask": "tokens of a mask",
}


@runtime_checkable
class _Edit(Protocol):
    @property
    def tokens(self) -> Tokens: ...

    @property
    def positions(self) -> Sequence[int] | None: ...

    @property
    def modality(self) -> Modality | None: ...

    @property
    def gate(self) -> Gate | None: ...

    @property
    def per(self) -> Per: ...

    @property
    def name(self) -> str | None: ...

    @property
    def parts(self) -> Sequence[tuple[Part, list[Site]]]: ...


def lines(edit: _Edit) -> list[str]:
    """Text lines for an edit: its rows and tokens, its condition, and what it does at which sites."""
    name = "" if edit.name is None or edit.name == edit.modality else f"{edit.name}: "
    condition = [f"  {one}" for one in [_condition(edit)] if one]
    return [f"{name}{_rows(edit)} · {_tokens(edit)}", *condition, *(f"  {one}" for one in _acts(edit))]


def table(edits: Iterable[_Edit]) -> str:
    """A plan as an HTML table, one row per edit, all of its text escaped."""
    heads = ("edit", "queries", "tokens", "if", "does")
    rows = [
        (edit.name or f"edit{i}", _rows(edit), _tokens(edit), _condition(edit), "\n".join(_acts(edit)))
        for i, edit in enumerate(edits)
    ]
    cells = ["".join(f"<td>{escape(cell).replace(chr(10), '<br>')}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _rows(edit: _Edit) -> str:
    return "all queries" if edit.modality is None else f"{edit.modality} queries"


def _tokens(edit: _Edit) -> str:
    if edit.positions is not None:
        return f"position{'s' * (len(edit.positions) > 1)} {', '.join(map(str, edit.positions))}"
    return _TOKENS[edit.tokens]


def _condition(edit: _Edit) -> str:
    if edit.gate is None:
        return ""
    return f"{'where' if edit.per == 'token' else 'if'} {edit.gate.describe()}"


def _acts(edit: _Edit) -> list[str]:
    return [f"{_where(sites)}: {operator.describe()}" for operator, sites in edit.parts]


def _where(sites: Sequence[Site]) -> str:
    found = []
    for hook in dict.fromkeys(site.hook for site in sites):
        layers = [str(site.layer) for site in sites if site.hook == hook]
        blocks = f"block{'s' * (len(layers) > 1)} {', '.join(layers)}"
        found.append(blocks if hook == "resid_post" else f"{hook} of {blocks}")
    return ", ".join(found)
