"""The named checks of a model family, run by `rmuse models check` and by the tests alike."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.data.spans import span_masks
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.lens.bridge import to_bridge
from rmuse_interp.lens.lens import LensModel, load_model
from rmuse_interp.models.encoding import Encoding, Picture
from rmuse_interp.models.families import LIMITS, lacks
from rmuse_interp.models.site import HOOKS, Site
from rmuse_interp.models.sums import terms
from rmuse_interp.parts.gates import Gate, LinearDiscriminant, Read
from rmuse_interp.parts.gates.gate import Readout
from rmuse_interp.studies.families import places
from rmuse_interp.studies.families.making import picture
from rmuse_interp.studies.families.places import Asked, generated, plain_hooks, pushes, require_same

State = Literal["yes", "refused", "none", "fault"]
"""Passed; refused in one line by the record of limits; not there for this family; anything else."""

RESPONSE: Final = "<think> I see Mara. </think> Oslo"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Args:
        check: its name.
        state: the outcome.
        note: what was refused, is not there, or went wrong, in one line.
        seconds: time taken.
    """

    check: str
    state: State
    note: str = ""
    seconds: float = 0.0


class Absent(Exception):
    """Raised by a check of something that does not exist for a family."""


class Subject:
    """The model under test, and what several checks ask of it.

    Args:
        folder: folder or id of its checkpoint.
    """

    def __init__(self, folder: str | Path):
        self.folder = str(folder)

    @cached_property
    def lens(self) -> LensModel:
        """The loaded model."""
        return load_model(self.folder)

    @property
    def family(self) -> str:
        """`model_type` of its configuration."""
        return self.lens.layout.family

    @property
    def mixes(self) -> bool:
        """Whether rows with and without a picture may share a batch."""
        return not (lacks(self.family, "mixed batches") or lacks(self.family, "rows without a picture"))

    def asked(self) -> Asked:
        """Questions of unequal length; a row with two pictures, and one without any where that is possible."""
        prompts = ["Who is Oren Tal?", "What is this person's occupation?", "Where?"]
        if not self.lens.encoder.sees:
            return Asked(prompts, [None] * 3)
        first = None if self.mixes else picture(5)
        second: Picture = [picture(1, (48, 24)), picture(4)]
        if lacks(self.family, "unequal numbers of pictures"):
            second = picture(1, (48, 24))
        return Asked(prompts, [first, second, picture(2)])

    def texts(self) -> Asked:
        """Questions of unequal length, without pictures."""
        return Asked(["Who is Oren Tal?", "What is this person's occupation?"], [None, None])


def loads(on: Subject) -> None:
    """A pass over the model as loaded gives finite logits."""
    lens = on.lens
    with torch.no_grad():
        logits = lens.hf(**lens.encode(*on.asked())).logits
    _require(bool(logits.isfinite().all()), "logits that are not finite")
    _require(lens.d_model > 0 and lens.n_layers > 1, f"{lens.n_layers} blocks of width {lens.d_model}")


def prompts(on: Subject) -> None:
    """The prompt's tokens and pixels are those of transformers' own `apply_chat_template(tokenize=True)`."""
    lens = on.lens
    if getattr(lens.processor, "chat_template", None) is None:
        raise Absent("no chat template")
    for prompt, image in zip(*on.asked(), strict=True):
        content: object = prompt
        if lens.encoder.sees:
            items = image if isinstance(image, list) else [] if image is None else [image]
            shown = [{"type": "image", "image": item} for item in items]
            content = [*shown, {"type": "text", "text": prompt}]
        told = lens.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        own = lens.encode(prompt, [image])
        _require(torch.equal(own["input_ids"], told["input_ids"]), f"other tokens of {prompt!r}")
        for name in ("pixel_values", "image_sizes", "image_grid_thw"):
            there = name in told, name in own
            _require(there[0] == there[1], f"{name} on one side alone")
            if all(there):
                _require(torch.equal(_tensor(own[name]), _tensor(told[name])), f"other {name}")


def image_tokens(on: Subject) -> None:
    """Each picture has the tokens that the processor put in its place, and no others are taken for it."""
    lens = on.lens
    if not lens.encoder.sees:
        raise Absent("text alone")
    piece = lens.tokenizer.convert_ids_to_tokens(lens.image_token_id)
    for size in ((24, 24), (48, 24), (30, 60)):
        shown = picture(3, size)
        encoding = lens.encode("What is in the picture?", [shown])
        told = lens.processor(text=encoding.texts, images=[[shown]], return_text_replacement_offsets=True)
        put = [one["replacement"] for row in told.get("text_replacement_offsets", []) for one in row]
        there = (encoding["input_ids"][0] == lens.image_token_id).nonzero().flatten().tolist()
        _require(len(there) == "".join(put or [piece]).count(piece), f"{len(there)} image tokens for {put}")
        text = encoding.texts[0]
        token = lens.processor.image_token
        start = encoding.expansions[0].moved(text.index(token))
        end = encoding.expansions[0].moved(text.index(token) + len(token))
        for i in there:
            a, b = encoding.expansions[0].offsets[i]
            _require(start <= a < b <= end, f"token {i} lies outside its picture")


def batches(on: Subject) -> None:
    """Rows are read alike alone and beside others, with and without pictures, whatever their lengths."""
    lens, asked = on.lens, on.asked()
    together = _last(lens, lens.encode(*asked))
    for row, (prompt, image) in enumerate(zip(*asked, strict=True)):
        alone = _last(lens, lens.encode(prompt, [image]))[0]
        _close(together[row], alone, f"row {row} alone and in a batch")


def prompt_end(on: Subject) -> None:
    """A prompt's tokens stay the same with a response behind them, and its end is the last of them."""
    lens, asked = on.lens, on.asked()
    bare, said = lens.encode(*asked), lens.encode(*asked, [RESPONSE, None, "Oslo"])
    for row in range(len(asked.prompts)):
        prompt, whole = _row(bare, row), _row(said, row)
        end = int(said.prompt_end[row])
        _require(int(bare.prompt_end[row]) == len(prompt) - 1, "a prompt goes on behind its end")
        _require(whole[: end + 1] == prompt, f"row {row}: other tokens with a response behind them")
        _require((len(whole) > len(prompt)) == bool(said.tails[row]), f"row {row}: a response is missing")


def spans(on: Subject) -> None:
    """Question, reasoning and answer are found where they are, whatever stands for the pictures."""
    lens, asked = on.lens, on.asked()
    encoding = lens.encode(*asked, [RESPONSE] * 3)
    masks = span_masks(
        lens.processor,
        encoding,
        encoding.heads,
        encoding.tails,
        questions=asked.prompts,
        expansions=encoding.expansions,
        image_id=lens.image_token_id,
    )
    _require(
        torch.equal(masks.prompt_end - (encoding["attention_mask"] == 0).sum(1), encoding.prompt_end), "ends"
    )
    ids = encoding["input_ids"]
    for row, question in enumerate(asked.prompts):
        for mask, text in (
            (masks.question, question),
            (masks.reasoning, "I see Mara."),
            (masks.answer, "Oslo"),
        ):
            found = lens.tokenizer.decode(ids[row][mask[row]])
            _require(
                text in found and len(found.strip()) <= len(text) + 2,
                f"{text!r} was looked for, {found!r} found",
            )
        _require(
            torch.equal(masks.image[row], ids[row] == lens.image_token_id)
            if lens.image_token_id is not None
            else not bool(masks.image.any()),
            "image tokens",
        )


def sums(on: Subject) -> str:
    """What `run_with_cache` names adds up, pre + attn + mlp = post and pre + attn = mid; the note lists the sites."""
    lens, asked = on.lens, on.asked()
    _, cache = lens.run_with_cache(*asked)
    pictured = any(image is not None for image in asked.images)
    ran = [layer for layer in range(lens.n_layers) if pictured or layer not in lens.layout.skipped]
    for layer in ran:
        pre, attn, mid, mlp, post = (cache.cache_dict.get(str(Site(layer, hook))) for hook in HOOKS)
        _require(pre is not None and post is not None, f"block {layer} lacks its input or output")
        if attn is not None and mlp is not None:
            _close(pre + attn + mlp, post, f"block {layer}: pre + attn + mlp")
        if attn is not None and mid is not None:
            _close(pre + attn, mid, f"block {layer}: pre + attn")
    inner = terms(lens.hf, lens.layout)
    return ", ".join(hook for hook in HOOKS[1:4] if any(site.hook == hook for site in inner)) or "–"


def plain_place(place: str, mode: str) -> Callable[[Subject], None]:
    """The check of one place in one kind of generation."""

    def check(on: Subject) -> None:
        lens = on.lens
        if place == "hooks" or mode in ("batch", "beams"):
            asked = on.asked()
        if mode == "chunks":
            if lacks(on.family, "rows without a picture"):
                raise Absent("a picture's prompt is prefilled in one piece")
            asked = on.texts()
        elif mode not in ("batch", "beams") and place != "hooks":
            asked = on.asked()
        moved = False
        for name, edits in pushes(lens, asked).items():
            if not edits:
                continue
            plan = edits[0].plan
            for edit in edits[1:]:
                plan = plan >> edit.plan
            settings = places.MODES[mode]
            with plain_hooks(lens, edits, asked):
                expected = generated(lens, asked, "plain", None, settings)
            require_same(generated(lens, asked, place, plan, settings), expected, f"{name}, {mode}")
            bare = generated(lens, asked, "plain", None, settings)
            moved |= not torch.allclose(bare.logits, expected.logits, atol=1e-3)
        _require(moved, "an edit that does nothing")

    return check


def half(on: Subject) -> None:
    """In bfloat16 an attached plan equals plain hooks too."""
    lens = load_model(on.folder, dtype="bfloat16")
    asked = on.asked()
    for name, edits in pushes(lens, asked).items():
        if name == "inside blocks":
            continue
        plan = edits[0].plan
        for edit in edits[1:]:
            plan = plan >> edit.plan
        with plain_hooks(lens, edits, asked):
            expected = generated(lens, asked, "plain", None, {})
        require_same(generated(lens, asked, "hooks", plan, {}), expected, f"{name}, bfloat16")


def bridge(on: Subject) -> str:
    """Under given responses a TransformerLens bridge equals the plain model, where TransformerLens has an adapter."""
    lens, asked = on.lens, on.asked()
    try:
        other = to_bridge(lens)
    except (ValueError, NotImplementedError, KeyError) as error:
        raise Absent("TransformerLens has no adapter") from error
    responses, note = [RESPONSE, "", "Oslo"], ""
    for name, edits in {**pushes(lens, asked), "nothing": []}.items():
        plan = places.ablated(lens, 1)
        for edit in edits:
            plan = plan >> edit.plan
        try:
            there, here = places.forced(lens, asked, responses, plan, other)
        except RMuseError as error:
            _require(name == "inside blocks" and "cannot be edited" in str(error), str(error))
            note = "whole blocks"  # a bridge shows what attention and MLP return before their norm
            continue
        _close(there, here, name)
    return note


def decide(on: Subject) -> None:
    """Every read-out scores a row alone as it does in a batch."""
    lens, asked = on.lens, on.asked()
    readouts: list[Readout] = ["last", "question"]
    if lens.encoder.sees:
        readouts.append("image")
    for readout in readouts:
        gate = Gate(
            LinearDiscriminant(places.drawn(6, lens.d_model), 0.0), Read(lens.n_layers - 1, readout), 0.0
        )
        plan = as_plan(op.Add(places.drawn(1, lens.d_model)).at(0).when(gate))
        together = lens.decide(plan, *asked).score[:, 0]
        for row, (prompt, image) in enumerate(zip(*asked, strict=True)):
            alone = lens.decide(plan, [prompt], [image]).score[0, 0]
            _require(
                bool(alone.isfinite()) == (readout != "image" or image is not None),
                f"{readout} reads nothing",
            )
            if bool(alone.isfinite()):
                _close(together[row], alone, f"{readout}, row {row}")


def end_to_end(on: Subject) -> None:
    """A plan is fitted, saved, read back, run on questions and scored."""
    from rmuse_interp.studies.families.whole import used

    used(on.lens)


Check = Callable[[Subject], str | None]
CHECKS: Final[dict[str, Check]] = {
    "loads": loads,
    "prompt": prompts,
    "image tokens": image_tokens,
    "batches": batches,
    "prompt end": prompt_end,
    "spans": spans,
    "sites": sums,
    **{f"hooks: {mode}": plain_place("hooks", mode) for mode in places.MODES},
    "hooks: bfloat16": half,
    **{f"trace: {mode}": plain_place("trace", mode) for mode in places.MODES},
    **{f"stored: {mode}": plain_place("stored", mode) for mode in places.MODES},
    "bridge": bridge,
    "decide": decide,
    "fit, steer, eval": end_to_end,
}
"""Name → check: returns a note or None, raises `Absent`, or anything else for a fault."""


def examine(on: Subject, names: Iterable[str] = CHECKS) -> list[Finding]:
    """The outcome of the named checks on a model, none of which stops the others."""
    found = []
    for name in names:
        began = time.monotonic()
        state: State = "yes"
        try:
            note = CHECKS[name](on) or ""
        except Absent as error:
            state, note = "none", str(error)
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            refused = isinstance(error, RMuseError) and any(
                limit.why in said for limit in LIMITS.get(on.family, ())
            )
            state, note = ("refused", said.removeprefix("RMuseError: ")) if refused else ("fault", said[:300])
        found.append(Finding(name, state, note, time.monotonic() - began))
    return found


def _require(there: bool, otherwise: str) -> None:
    if not there:
        raise RMuseError(otherwise)


def _close(found: Tensor, expected: Tensor, what: str) -> None:
    gap, size = float((found - expected).abs().max()), float(expected.abs().max())
    _require(gap <= 1e-4 * max(1.0, size), f"{what}: differs by {gap:.2g} of {size:.2g}")


def _row(encoding: Encoding, row: int) -> list[int]:
    return encoding["input_ids"][row][encoding["attention_mask"][row].bool()].tolist()


def _last(lens: LensModel, encoding: Encoding) -> Tensor:
    """Logits of the first token of a response, as `generate` computes them."""
    with torch.no_grad():
        made = lens.hf.generate(
            **encoding, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    return made.logits[0].float()


def _tensor(value: object) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value)
