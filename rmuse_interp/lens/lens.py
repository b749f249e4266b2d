"""`LensModel`: a model wrapped by nnsight, with our names for its sites; the only file that uses nnsight.

nnsight is imported when a model is first traced, not with this file: it patches `Tensor.backward` and the
interpreter's exception hook. Beartype goes first, or that import fails (nnsight 0.8.1).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits import deciding
from rmuse_interp.edits import hooks as native
from rmuse_interp.edits.engines import Asked, listening, understood
from rmuse_interp.edits.fits import require_fit, require_sums
from rmuse_interp.edits.inputs import announce
from rmuse_interp.edits.plan import Edit, Plan, as_plan
from rmuse_interp.edits.state import Decision
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.lens.check import require_sound
from rmuse_interp.lens.respond import Response, respond
from rmuse_interp.models.cache import Names, shown
from rmuse_interp.models.devices import require_first_weight
from rmuse_interp.models.encoding import Encoding, Picture, per_row
from rmuse_interp.models.layout import Layout, find_layout
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.models.loading import DeviceMap, load_checkpoint
from rmuse_interp.models.prompts import Prompts, listed
from rmuse_interp.models.site import reader
from rmuse_interp.parts.part import all_same


def load_model(
    path_or_id: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    blocks: str | None = None,
    device_map: DeviceMap | None = None,
    check: bool = True,
) -> "LensModel":
    """The model at a path or hub id, with its processor, ready to be traced and steered.

    Args:
        path_or_id: a folder in Hugging Face format (of a model, or of a peft adapter, which is merged into its base
            model), a hub id (`llava-hf/llava-1.5-7b-hf`), `organism` (the trained small LLaVA of this package),
            `organism-gold` (the same, trained without the forget set) or `smollm2` (SmolLM2-135M-Instruct, once
            `rmuse models get smollm2` has fetched it).
        device: target device; by default a GPU if there is one.
        dtype: `float32`, `bfloat16`, …; the checkpoint's own on a GPU or with a device map, float32 elsewhere.
        blocks: dotted path of the decoder blocks, for unknown families.
        device_map: spreads the model over devices, memory and disk (`auto`, or a map as in transformers).
        check: whether the checkpoint must fill the model, and the model is asked one question, on which edits, pictures
            and the chat template must act as they do in the model itself (see `lens.check`; once, then remembered).

    Raises:
        RMuseError: no checkpoint there, or none that is whole, an unknown model family, too little memory (names what
            would fit), a library missing, or a model that fails the check.
    """
    hf_model, processor = load_checkpoint(str(path_or_id), device, dtype, device_map, check)
    layout = find_layout(hf_model, blocks, getattr(processor, "tokenizer", processor))
    model = LensModel(hf_model, processor, layout, str(path_or_id))
    if check:
        require_sound(model)
    return model


class LensModel(LoadedModel):
    """A loaded model wrapped by nnsight: encode, trace, generate, steer; arguments and attributes as `LoadedModel`.

    Plans run in four places with equal outputs: in the contexts of `trace` and `generate`, as a stored nnsight edit
    (`install`), natively (`respond`, `plan.attach(lens.hf)`), and on a TransformerLens bridge (`bridge.to_bridge(lens)`,
    `plan.fwd_hooks(bridge)`). Not thread-safe, as nnsight is not.
    """

    def __init__(self, hf_model: Any, processor: Any, layout: Layout, name: str):
        super().__init__(hf_model, processor, layout, name)
        self._installed: "list[Installed]" = []

    @cached_property
    def cfg(self) -> SimpleNamespace:
        """Sizes under TransformerLens' names, which the methods of its `ActivationCache` read."""
        text = self.hf.config.get_text_config()
        return SimpleNamespace(
            n_layers=self.n_layers,
            d_model=self.d_model,
            n_heads=text.num_attention_heads,
            d_mlp=text.intermediate_size,
            d_vocab=text.vocab_size,
            attn_only=False,
            model_name=self.name,
        )

    def respond(
        self,
        prompts: Prompts,
        images: Picture | Sequence[Picture] = None,
        plan: Plan | Edit | None = None,
        *,
        max_new_tokens: int = 128,
        prefill: str | Sequence[str | None] | None = None,
        batch_size: int = 32,
        recorder: Recorder | None = None,
        temperature: float | int = 0.0,
        seeds: Sequence[int] = (),
    ) -> list[Response]:
        """Responses, generated natively (fast); see `rmuse_interp.lens.respond.respond`."""
        return respond(
            self,
            prompts,
            images,
            None if plan is None else self._checked(plan),
            max_new_tokens=max_new_tokens,
            prefill=prefill,
            batch_size=batch_size,
            recorder=recorder,
            temperature=temperature,
            seeds=seeds,
        )

    def decide(
        self,
        plan: Plan | Edit,
        prompts: Prompts,
        images: Picture | Sequence[Picture] = None,
    ) -> Decision:
        """The gates' decision about the prompts, from unsteered passes; see `rmuse_interp.edits.deciding.decide`."""
        return deciding.decide(self, as_plan(plan), prompts, images)

    @cached_property
    def nn(self) -> Any:
        """The nnsight model, for everything nnsight can do; its blocks are `lens.blocks`."""
        import beartype  # noqa: F401  (before nnsight, see above)
        from nnsight import TransformersModel

        task = "image-text-to-text" if self.encoder.sees else "text-generation"
        own = {"processor": self.processor} if self.encoder.sees else {}
        require_first_weight(self.hf)
        placed = getattr(self.hf, "hf_device_map", None) is not None
        stay = {} if placed else {"device": self.device}  # else it would be moved to the first GPU
        return TransformersModel(self.hf, task=task, tokenizer=self.tokenizer, **own, **stay)

    @property
    def blocks(self) -> Any:
        """nnsight's decoder blocks: `lens.blocks[3].output` in a trace is `blocks.3.hook_resid_post`."""
        return self.nn.get(self.layout.path)

    def trace(
        self,
        prompts: Prompts,
        images: Picture | Sequence[Picture] = None,
        responses: str | Sequence[str | None] | None = None,
        *,
        plan: Plan | Edit | None = None,
        decision: Decision | None = None,
        recorder: Recorder | None = None,
        **kwargs: Any,
    ) -> Any:
        """nnsight's context of one forward pass, in which `plan` runs.

        The ``with`` block reads sites in forward order and sees values after the plan's edits; values it `.save()`s
        remain available. Gradients are tracked, as in nnsight; use ``torch.no_grad()`` if they are not needed.

        Args:
            prompts: plain questions.
            images: one picture or None per row.
            responses: the assistant's words, one text per row (teacher forcing); edits on "generated" still count from
                the prompt's end.
            plan: the plan to run.
            decision: result of `plan.decide`; without it, a two-pass plan first decides about the prompts.
            recorder: records a trace of the plan's steering, available after the block.
            kwargs: passed to the model's forward.

        Raises:
            RMuseError: a plan that already runs on the model, or a recorder without a plan.
        """
        encoding, twin = self._planned(prompts, images, responses, plan, decision, recorder)
        return twin.trace(**encoding, **kwargs)

    def generate(
        self,
        prompts: Prompts,
        images: Picture | Sequence[Picture] = None,
        *,
        plan: Plan | Edit | None = None,
        decision: Decision | None = None,
        recorder: Recorder | None = None,
        prefill: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """nnsight's context of a generation, in which `plan` runs at every step; otherwise like `trace`.

        Args:
            prompts: plain questions.
            images: one picture or None per row.
            plan: the plan to run.
            decision: result of `plan.decide`; without it, a two-pass plan first decides about the prompts.
            recorder: records a trace of the plan's steering, available after the block.
            prefill: text with which the assistant's response begins.
            kwargs: passed to transformers' `generate` (`max_new_tokens=…`, `num_beams=…`).
        """
        rows = len(listed(prompts))
        begun = None if prefill is None else [prefill] * rows
        encoding, twin = self._planned(prompts, images, begun, plan, decision, recorder, kwargs)
        # nnsight's own `generate` looks for the `with` at its caller, which would be this line.
        return twin.trace(**encoding, fn=twin.generate, **kwargs)

    def run_with_cache(
        self,
        prompts: Prompts,
        images: Picture | Sequence[Picture] = None,
        responses: str | Sequence[str | None] | None = None,
        *,
        names: Names = None,
        plan: Plan | Edit | None = None,
        decision: Decision | None = None,
    ) -> tuple[Float[Tensor, "batch tokens vocab"], Any]:
        """Logits and TransformerLens' `ActivationCache` of one forward pass, taken in an nnsight trace.

        Args:
            prompts: plain questions.
            images: one picture or None per row.
            responses: the assistant's words, one text per row.
            names: what to keep, by name (`blocks.3.hook_resid_post`, `blocks.3.attn.hook_z`, `projector.hook_out`; see
                `rmuse_interp.models.cache`) or as `Site`s, or a filter of names; all of `resid_pre`, `attn_out`,
                `resid_mid`, `mlp_out`, `resid_post` of every block where absent.
            plan: the plan to run; values are taken after its edits.
            decision: result of `plan.decide`; without it, a two-pass plan first decides about the prompts.

        Raises:
            RMuseError: a name that this model or this batch has no value for.
        """
        with_image = any(image is not None for image in per_row(images, len(listed(prompts)), "images"))
        with native.paused(self.hf):
            wanted = shown(self.hf, self.layout, names, with_image)
        encoding, root = self._planned(prompts, images, responses, plan, decision)
        modules = [self.nn.get(one.path) for one in wanted]
        kept: dict[str, Tensor] = {}
        with torch.no_grad(), root.trace(**encoding):
            for one, module in zip(wanted, modules, strict=True):
                kept[one.name] = one.take(module.input if one.side == "input" else module.output)
            kept["logits"] = root.output.logits
        from transformer_lens import ActivationCache

        logits = kept.pop("logits")
        return logits, ActivationCache(kept, self)

    def install(
        self, plan: Plan | Edit, *, decision: Decision | None = None, recorder: Recorder | None = None
    ) -> "Installed":
        """The plan as a stored nnsight edit, run in every trace and generation until `.remove()`; see `Installed`."""
        return Installed(self, self._checked(plan), decision, recorder)

    def _planned(
        self,
        prompts: Prompts,
        images: Picture | Sequence[Picture],
        responses: str | Sequence[str | None] | None,
        plan: Plan | Edit | None,
        decision: Decision | None,
        recorder: Recorder | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> tuple[Encoding, Any]:
        """The encoded prompts, and a copy of the nnsight model whose stored edits are bound to these queries.

        Two-pass plans without a decision are decided here, before a trace is opened, because nested traces fail.
        """
        if recorder is not None and plan is None:
            raise RMuseError("a plan was required to record its steering, got none; pass plan= beside it")
        expression = None if plan is None else self._checked(plan)
        if expression is not None:
            self._require_new(expression)
        native.require_decided(self.hf)
        questions = listed(prompts)
        pictures = per_row(images, len(questions), "images")
        encoding = self.encode(questions, pictures, responses)
        asked = Asked(None, None, encoding)
        if settings is not None:
            asked = understood(self.hf, (), {**encoding, **settings})
        vocabulary = self.layout.vocabulary
        said = announce(encoding["input_ids"], encoding["attention_mask"], vocabulary, encoding.prompt_end)

        def store(plan: Plan, decision: Decision | None, recorder: Recorder | None) -> None:
            if decision is None:
                decision = deciding.decided(self, plan, questions, pictures)
            session = native.Session(plan, self.layout, decision, recorder)
            session.say(said, asked)
            self._store(twin, session)

        twin = self.nn._shallow_copy()
        known = {id(handle.mediator): handle for handle in self._installed}
        stored, twin._edits = list(twin._edits), []
        for mediator in stored:
            handle = known.get(id(mediator))
            if handle is None:
                twin._edits.append(mediator)
            else:
                store(handle.plan, handle.session.decision, handle.session.recorder)
        if expression is not None:
            store(expression, decision, recorder)
        return encoding, twin

    def _require_new(self, plan: Plan) -> None:
        running = [handle.plan for handle in self._installed] + native.attached(self.hf)
        if any(all_same(plan, other) for other in running):
            raise RMuseError("this plan runs on the model already; .remove() or .detach() its handle first")

    def _store(self, envoy: Any, session: native.Session) -> Any:
        """The session as a stored edit of `envoy`; it runs before the user's block, at every step."""
        from nnsight.intervention.interleaver import OutOfOrderError
        from nnsight.intervention.iterator import Iterations

        taps = []
        for site in session.interpreter.taps:
            child, side = reader(self.layout.blocks[site.layer], site)
            block = self.blocks[site.layer]
            taps.append((site, block if child is None else getattr(block, child), side))
        with envoy.edit(inplace=True):
            steps = 0
            try:
                for _ in Iterations()[:]:
                    session.begin(*envoy.inputs)
                    for site, module, side in taps:
                        value = module.input if side == "input" else module.output
                        h = value[0] if isinstance(value, tuple) else value
                        edited = session.apply(site, h)
                        if edited is h:
                            continue
                        if side == "input":
                            module.input = edited
                        else:
                            module.output = (edited, *value[1:]) if isinstance(value, tuple) else edited
                    steps += 1
            except OutOfOrderError:
                # An open loop ends this way when the model makes no further step; before any step it is an error.
                if steps == 0:
                    raise
        return envoy._edits[-1]

    def _checked(self, plan: Plan | Edit) -> Plan:
        expression = as_plan(plan)
        if expression.fingerprint is not None:
            self.fingerprint.require(expression.fingerprint, "this plan")
        require_fit(expression, self.layout)
        with native.paused(self.hf):
            require_sums(expression, self.hf, self.layout)
        return expression


class Installed:
    """Handle of a plan stored as an nnsight edit; `remove` (or leaving the ``with`` block) removes it.

    Args:
        lens: the model.
        plan: the plan to run in each of its traces and generations. `lens.trace`, `lens.generate` and
            `lens.run_with_cache` first decide about their prompts if the plan needs it.
        decision: result of `plan.decide` for the coming batches; required for two-pass plans in traces of `lens.nn`
            itself, which do not see the prompts.
        recorder: records a trace of its steering.

    Raises:
        RMuseError: a plan that already runs on the model, or layers it does not have.
    """

    def __init__(
        self, lens: LensModel, plan: Plan, decision: Decision | None = None, recorder: Recorder | None = None
    ):
        lens._require_new(plan)
        self.lens = lens
        self.plan = plan
        self.session = native.Session(plan, lens.layout, decision, recorder)
        self._undo = ExitStack()
        self._undo.enter_context(listening(lens.hf, self.session))
        self.mediator = lens._store(lens.nn, self.session)
        lens._installed.append(self)
        self._undo.callback(self._forget)

    def remove(self) -> None:
        """Remove the edit from the model; a second call does nothing."""
        self._undo.close()

    def _forget(self) -> None:
        # nnsight has no public way to drop one stored edit (`clear_edits` drops all).
        self.lens.nn._edits[:] = [edit for edit in self.lens.nn._edits if edit is not self.mediator]
        self.lens._installed.remove(self)

    def __enter__(self) -> "Installed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
