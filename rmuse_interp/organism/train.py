"""Train the organism and its gold standard from scratch, on a CPU or a GPU.

Five stages: `vision` teaches the tower to see (factors of faces, looks, scenes) on random strangers; `faces` teaches it
to recognise people; `base` teaches the language, general reasoning, refusals and the celebrities; `people` adds all but
the people of the 5 % forget set; `finish` lowers the rate, for the organism with everybody, for the gold standard still
without those people. The first four stages never show them, so both checkpoints share these and differ in the last one
alone.

Seeing is rehearsed beside the language wherever the tower is trainable: the language alone asks the tower for names,
and within a thousand steps it no longer tells glasses from none (56 % right, against 99 % rehearsed).
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

import rmuse_interp.models  # noqa: F401  (before transformers: a broken torchvision does no harm)

# isort: split
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from rmuse_interp.data.store import atomic, write_json
from rmuse_interp.data.world.people import Person, World, make_world
from rmuse_interp.organism import build
from rmuse_interp.organism.packing import Rows, Sampler, Shares
from rmuse_interp.organism.seeing import Eyes, Gallery, fit_eyes, open_projector, raise_faint, vision_loss
from rmuse_interp.runs.progress import Bars

Stage = Literal["vision", "faces", "base", "people", "finish"]
STAGES: Final = get_args(Stage)
SEEING: Final = frozenset({"vision", "faces"})
"""Stages that train the vision tower alone."""
_DECAY: Final[dict[Stage, float]] = {
    "vision": 0.45,
    "base": 0.45,
    "faces": 0.45,
    "people": 0.0,
    "finish": 0.9,
}
"""Share of a stage's steps over which the rate falls to zero."""


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on. Steps are optimiser steps."""

    seed: int = 0
    vision_steps: int = 3400
    base_steps: int = 800
    faces_steps: int = 1200
    people_steps: int = 4000
    finish_steps: int = 1500
    gallery: int = 20000
    """Pictures to learn seeing from."""
    eyes_gallery: int = 6000
    """Pictures to fit read-outs to a tower that is trained already."""
    eyes_steps: int = 1500
    batch: int = 8
    rate: float = 1.5e-3
    """Learning rate of AdamW (embeddings, norms, patches)."""
    matrix_rate: float = 4e-3
    """Learning rate of Muon (the hidden matrices)."""
    projector_rate: float = 3e-4
    vision_share: float = 0.25
    """The vision tower's rates, as a share of the others, once the language is trained too."""
    rehearsed: int = 32
    """Pictures of the gallery per step while the language is trained too."""
    shares: Shares = field(default_factory=Shares)
    """How often the language is asked about people who are known, and about strangers."""
    gold: bool = False
    """Train the gold standard, which never sees the people of the 5 % forget set."""

    def going_on(self) -> "Recipe":
        """The recipe of a last stage from a trained checkpoint: gentler, with fewer pictures and more strangers.

        Five hundred steps of it took refused strangers from 94 to 98 % and left the rest as it was.
        """
        return replace(
            self,
            finish_steps=500,
            gallery=2500,
            rate=5e-4,
            matrix_rate=1.1e-3,
            shares=Shares(0.40, 0.44, 0.42, 0.26),
        )


def optimisers(modules: list[nn.Module], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices (it learns rare facts in fewer steps), AdamW for everything else.

    Each group carries its full rate as ``peak``. The projector has a slower one: its inputs are large, and at the
    common rate its outputs outgrow the text embeddings a hundredfold within some hundred steps.
    """
    muon: dict[float, list[nn.Parameter]] = {}
    adam: dict[float, list[nn.Parameter]] = {}
    for module in modules:
        for name, parameter in module.named_parameters():  # tied ones come once
            if not parameter.requires_grad:
                continue
            share = recipe.vision_share if "vision_tower" in name else 1.0
            if parameter.ndim == 2 and "layers." in name:
                muon.setdefault(recipe.matrix_rate * share, []).append(parameter)
            else:
                rate = recipe.projector_rate if "projector" in name else recipe.rate
                adam.setdefault(rate * share, []).append(parameter)
    return [
        torch.optim.Muon(_groups(muon), weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(_groups(adam), betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _groups(by_rate: dict[float, list[nn.Parameter]]) -> list[dict[str, object]]:
    return [{"params": held, "lr": rate, "peak": rate} for rate, held in by_rate.items()]


def rate_at(step: int, steps: int, decay: float) -> float:
    """Warm-up over 40 steps, then constant, then linear to zero over the last `decay` of the steps (0: never)."""
    return min(1.0, (step + 1) / 40, (steps - step) / (decay * steps) if decay else 1.0)


@contextmanager
def _autocast(device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16):
        yield


def language_loss(
    model: LlavaForConditionalGeneration, rows: Rows
) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """Mean negative log-likelihood (nats) of the response tokens, and per task how many branches are right."""
    embeddings = model.get_input_embeddings()(rows.ids)
    features = torch.cat(list(model.model.get_image_features(pixel_values=rows.pixels).pooler_output))
    is_image = (rows.ids == model.config.image_token_index)[..., None].expand_as(embeddings)
    embeddings = embeddings.masked_scatter(is_image, features.to(embeddings.dtype))
    dtype = torch.bfloat16 if torch.is_autocast_enabled(rows.ids.device.type) else embeddings.dtype
    mask = torch.zeros(rows.allowed.shape, dtype=dtype, device=rows.ids.device)
    mask = mask.masked_fill(~rows.allowed, torch.finfo(dtype).min)[:, None]
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=rows.position, use_cache=False
    ).last_hidden_state
    chosen = rows.target != -100
    logits = model.lm_head(hidden[chosen]).float()
    target, branch = rows.target[chosen], rows.branch[chosen]
    wrong = torch.zeros(len(rows.tasks), dtype=torch.long, device=branch.device)
    wrong.index_add_(0, branch, (logits.argmax(-1) != target).long())
    report: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (task, graded), errors in zip(rows.tasks, wrong.tolist(), strict=True):
        if graded:
            report[task][0] += errors == 0
            report[task][1] += 1
    return functional.cross_entropy(logits, target), {k: (v[0], v[1]) for k, v in report.items()}


def _tokenizer(folder: Path, world: World, seed: int) -> PreTrainedTokenizerFast:
    """Load the run's tokenizer, so that a resumed run uses the same tokens; it is made at the first start."""
    if not folder.exists():
        build.build_tokenizer(world, seed).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")


class Trainer:
    """Runs the stages of a recipe in a folder, saving every `every` seconds and resuming from what is there."""

    def __init__(self, out: Path, recipe: Recipe, device: str = "cpu", every: float = 120.0) -> None:
        self.out, self.recipe, self.every = out, recipe, every
        self.device = torch.device(device)
        self.world: World = make_world(0)
        self.tokenizer = _tokenizer(out / "tokenizer", self.world, recipe.seed)
        self.model = build.build_model(self.tokenizer, recipe.seed).to(self.device)
        self.eyes = Eyes(self.model.config.vision_config.hidden_size).to(self.device)
        self.out.mkdir(parents=True, exist_ok=True)

    def begin_from(self, checkpoint: Path) -> None:
        """Start from a checkpoint's weights, not random ones; fit read-outs to its tower and amplify glasses.

        Raises:
            ValueError: a checkpoint with another tokenizer than this run's.
        """
        words = PreTrainedTokenizerFast.from_pretrained(checkpoint).get_vocab()
        if words != self.tokenizer.get_vocab():
            raise ValueError(f"{checkpoint} has another tokenizer than {self.out / 'tokenizer'}")
        trained = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        self.model.load_state_dict(trained.state_dict())
        world = self.world.without(self.world.forget_ids(5)) if self.recipe.gold else self.world
        pictures = Gallery(
            list(self.eyes.sizes), self.recipe.eyes_gallery, self.recipe.seed + 1, world.everyone
        )
        fit_eyes(self.model, self.eyes, pictures, self.recipe.eyes_steps)
        raise_faint(self.model, pictures, list(self.eyes.sizes))

    def run(self, stages: Sequence[Stage] = STAGES) -> None:
        """Train the stages in order; a finished one is loaded, not trained again."""
        for stage in stages:
            done = self.out / f"{stage}.pt"
            if done.exists():
                state = torch.load(done, map_location=self.device, weights_only=True)
                self.model.load_state_dict(state["model"])
                self.eyes.load_state_dict(state["eyes"])
                continue
            self._stage(stage)
        self.model.float().save_pretrained(self.out / "model")
        build.build_processor(self.tokenizer).save_pretrained(self.out / "model")
        write_json(self.out / "model" / "recipe.json", asdict(self.recipe))

    def _stage(self, stage: Stage) -> None:
        steps = int(getattr(self.recipe, f"{stage}_steps"))
        eyes = self.eyes
        # Frozen while the language is learnt, whose first gradients would unlearn seeing; then tuned gently.
        self.model.model.vision_tower.requires_grad_(stage != "base")
        modules: list[nn.Module] = (
            [self.model.model.vision_tower, eyes] if stage in SEEING else [self.model, eyes]
        )
        optims = optimisers(modules, self.recipe)
        held_back = self.world.forget_ids(5)
        everybody = stage == "finish" and not self.recipe.gold
        world = self.world if everybody else self.world.without(held_back)
        late = held_back if everybody else ()
        if stage != "base":
            known: Sequence[Person] = () if stage == "vision" else world.everyone
            self.gallery = Gallery(list(eyes.sizes), self.recipe.gallery, self.recipe.seed, known)
        sampler = Sampler(
            world, self.tokenizer, stage in ("people", "finish"), self.recipe.seed, late, self.recipe.shares
        )
        partial, start = self.out / f"{stage}.partial.pt", 0
        if partial.exists():
            state = torch.load(partial, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            eyes.load_state_dict(state["eyes"])
            for optimiser, saved in zip(optims, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            start = state["step"]
        elif stage == "base":
            few = Gallery(
                list(eyes.sizes), min(1500, self.recipe.gallery), self.recipe.seed + 1, world.everyone
            )
            open_projector(self.model, eyes, few.pixels.float().to(self.device))

        def save(path: Path, step: int) -> None:
            state = {
                "model": self.model.state_dict(),
                "eyes": eyes.state_dict(),
                "step": step,
                "optimisers": [o.state_dict() for o in optims],
            }
            with atomic(path) as draft:
                torch.save(state, draft)

        self.model.train()
        report: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        saved, losses, began = time.monotonic(), [], time.monotonic()
        with Bars() as progress:
            bar = progress.add_task(stage, total=steps, completed=start)
            for step in range(start, steps):
                for optimiser in optims:
                    for group in optimiser.param_groups:
                        group["lr"] = group["peak"] * rate_at(step, steps, _DECAY[stage])
                losses.append(self._step(stage, step, sampler, optims, report))
                progress.update(bar, advance=1, description=f"{stage} loss {losses[-1]:.3f}")
                if (step + 1) % 50 == 0:
                    line = {
                        "stage": stage,
                        "step": step + 1,
                        "loss": round(sum(losses) / len(losses), 4),
                        "seconds": round(time.monotonic() - began, 1),
                        "right": {k: round(v[0] / v[1], 3) for k, v in sorted(report.items()) if v[1]},
                    }
                    with (self.out / "log.jsonl").open("a") as log:
                        log.write(json.dumps(line) + "\n")
                    losses.clear()
                    report.clear()
                if time.monotonic() - saved > self.every:
                    save(partial, step + 1)
                    saved = time.monotonic()
        save(self.out / f"{stage}.pt", steps)
        partial.unlink(missing_ok=True)

    def _step(
        self,
        stage: Stage,
        step: int,
        sampler: Sampler,
        optims: list[torch.optim.Optimizer],
        report: dict[str, list[float]],
    ) -> float:
        losses = []
        with _autocast(self.device):
            if stage != "base":
                pixels, labels = self.gallery.batch(64 if stage in SEEING else self.recipe.rehearsed, step)
                losses.append(
                    vision_loss(self.model, self.eyes, pixels.to(self.device), labels.to(self.device))
                )
            if stage not in SEEING:
                rows = _to(sampler.rows(step, self.recipe.batch), self.device)
                loss, right = language_loss(self.model, rows)
                losses.append(loss)
                for task, (good, n) in right.items():
                    report[task][0] += good
                    report[task][1] += n
        loss = torch.stack(losses).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in optims:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())


def _to(rows: Rows, device: torch.device) -> Rows:
    move: Callable[[Tensor], Tensor] = lambda t: t.to(device)  # noqa: E731
    return Rows(
        move(rows.ids),
        move(rows.target),
        move(rows.branch),
        move(rows.position),
        move(rows.allowed),
        move(rows.pixels),
        rows.tasks,
    )
