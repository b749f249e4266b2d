"""Teach the vision tower to see: read-outs, a gallery of pictures, and the projector that passes it all on."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

import rmuse_interp.models  # noqa: F401  (before transformers: a broken torchvision does no harm)

# isort: split
from transformers import LlavaForConditionalGeneration

from rmuse_interp.data.world import portraits
from rmuse_interp.data.world import questions as q
from rmuse_interp.data.world.people import (
    FACTORS,
    N_CELEBRITIES,
    N_PEOPLE,
    Person,
    distance,
    make_world,
    random_identity,
)
from rmuse_interp.organism.packing import pixels_of


class Eyes(nn.Module):
    """Read-outs that teach the vision tower: one linear layer per thing to be seen, on the mean over the patches.

    Read-outs use the mean, not patches of their own choice: the language model does not find what is in one patch alone
    within any CPU budget, and would answer every question about glasses alike.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        colours = len(portraits.COLOURS)
        counts = {f"{s}-{c}": 4 for s in portraits.SHAPES for c in portraits.COLOURS}
        self.sizes = {
            **FACTORS,
            "hat": colours + 1,
            "glasses": 2,
            "clothes": colours,
            "background": colours,
            **counts,
            "person": N_PEOPLE + N_CELEBRITIES + 1,
        }
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in self.sizes.values())


class Gallery:
    """Pictures of random strangers, known people and scenes, with labels of what they show.

    Drawn once and shown many times.
    """

    def __init__(self, names: list[str], n: int, seed: int, known: Sequence[Person] = ()) -> None:
        rng = random.Random(f"gallery-{seed}")
        drawn = [_to_be_seen(rng, names, known) for _ in range(n)]
        self.pixels = torch.stack([torch.from_numpy(pixels) for pixels, _ in drawn]).to(torch.float16)
        self.labels = torch.stack([labels for _, labels in drawn])

    def batch(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Pixels and labels (−100: not in this picture) of random pictures, shifted, lit and noised anew."""
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(self.labels), (n,), generator=draw)
        pixels = self.pixels[rows].float()
        dx, dy = (int(v) for v in torch.randint(-2, 3, (2,), generator=draw))
        pixels = functional.pad(pixels, (2, 2, 2, 2), mode="replicate")[
            :, :, 2 + dy : 50 + dy, 2 + dx : 50 + dx
        ]
        light = 0.92 + 0.14 * torch.rand(n, 1, 1, 1, generator=draw)
        noise = 0.03 * torch.randn(pixels.shape, generator=draw)
        return ((pixels + 1) * light - 1 + noise).clamp(-1, 1), self.labels[rows]


def _to_be_seen(
    rng: random.Random, names: list[str], known: Sequence[Person]
) -> tuple[Float[np.ndarray, "3 size size"], Int[Tensor, " names"]]:
    """One picture's pixels and labels."""
    colours, labels = list(portraits.COLOURS), torch.full((len(names),), -100)
    if rng.random() < 0.75:
        look = portraits.Look.draw(rng)
        person = rng.choice(known) if known and rng.random() < 0.6 else None
        face = random_identity(rng) if person is None else person.identity
        values = [
            *face,
            colours.index(look.hat) if look.hat else len(colours),
            int(look.glasses),
            colours.index(look.clothes),
            colours.index(look.background),
        ]
        labels[: len(values)] = torch.tensor(values)
        everyone = make_world(0).everyone
        if person is not None:
            labels[names.index("person")] = everyone.index(person)
        elif known and all(distance(face, other.identity) >= 3 for other in everyone):
            labels[names.index("person")] = len(everyone)
        return pixels_of(portraits.portrait(face, look, rng)), labels
    scene = q.draw_scene(rng)
    for column, name in enumerate(names):
        if "-" in name:
            shape, colour = name.split("-")
            labels[column] = min(3, scene.count(shape, colour))
    return pixels_of(portraits.scene_picture(scene, rng)), labels


def vision_loss(model: LlavaForConditionalGeneration, eyes: Eyes, pixels: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every read-out on the last vision block's patches."""
    patches = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    return heads_loss(eyes.heads, patches.mean(dim=1), labels)


def fit_eyes(model: LlavaForConditionalGeneration, eyes: Eyes, gallery: Gallery, steps: int) -> None:
    """Fit the read-outs to a trained tower, since a checkpoint keeps the tower but not its read-outs."""
    with torch.no_grad():
        seen = torch.cat(
            [
                model.model.vision_tower(pixels.float(), output_hidden_states=True)
                .hidden_states[-1][:, 1:]
                .mean(dim=1)
                for pixels in gallery.pixels.to(model.device).split(200)
            ]
        )
    centre, spread = seen.mean(dim=0), seen.std(dim=0) + 1e-5
    scaled, labels = (seen - centre) / spread, gallery.labels.to(seen.device)
    optimiser = torch.optim.AdamW(eyes.parameters(), lr=2e-2, weight_decay=1e-3)
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        rows = torch.randint(len(labels), (512,), generator=draw).to(seen.device)
        heads_loss(eyes.heads, scaled[rows], labels[rows]).backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        for head in eyes.heads:
            assert isinstance(head, nn.Linear)
            head.bias.sub_(head.weight @ (centre / spread))
            head.weight.div_(spread)


def heads_loss(
    heads: nn.ModuleList, seen: Float[Tensor, "batch d"], labels: Int[Tensor, "batch names"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) of the read-outs that have a label in this batch."""
    losses = [
        functional.cross_entropy(head(seen).float(), labels[:, i])
        for i, head in enumerate(heads)
        if (labels[:, i] != -100).any()
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def open_projector(
    model: LlavaForConditionalGeneration, eyes: Eyes, pixels: Float[Tensor, "batch 3 size size"]
) -> None:
    """Set the projector to the linear map onto what the read-outs read, with the same spread in every direction.

    A random projector passes on what varies most. Which of two hundred faces it is, and whether there are glasses, is
    a small part of that, which the language model never finds. Half of the hidden units carry the directions, half
    their negatives, since gelu(x) − gelu(−x) = x.

    Args:
        model: with a trained vision tower.
        eyes: trained with it.
        pixels: pictures to measure spreads on; the more the better.
    """
    patches = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    seen = patches.mean(dim=1)
    centre = seen.mean(dim=0)
    values, axes = torch.linalg.eigh(torch.cov(seen.T))
    spread = (values.clamp_min(0) + 1e-3 * values.max()).sqrt()
    # Every head has equal weight, however many values it distinguishes.
    weights = [head.weight for head in eyes.heads if isinstance(head, nn.Linear)]
    heads = torch.cat([(w - w.mean(dim=0)) / len(w) ** 0.5 for w in weights])
    kept = torch.linalg.svd((heads @ axes) * spread, full_matrices=False).Vh
    projector = model.model.multi_modal_projector
    half, width = projector.linear_1.out_features // 2, projector.linear_2.out_features
    kept = kept[:half]
    onto = (kept / spread) @ axes.T
    back = torch.nn.init.orthogonal_(torch.empty(width, len(kept), device=onto.device))
    for layer in (projector.linear_1, projector.linear_2):
        layer.weight.zero_()
        layer.bias.zero_()
    for sign, start in ((1.0, 0), (-1.0, half)):
        rows = slice(start, start + len(kept))
        projector.linear_1.weight[rows] = sign * onto
        projector.linear_1.bias[rows] = -sign * (onto @ centre)
        projector.linear_2.weight[:, rows] = sign * 0.3 * back


@torch.no_grad()
def raise_faint(
    model: LlavaForConditionalGeneration, gallery: Gallery, names: list[str], gain: float = 6.0
) -> None:
    """Amplify glasses: add the signal for them in the projector's outputs once more along a quiet direction.

    After a trained projector, glasses move an image token by a tenth of what else moves it. That is readable, yet the
    language model answers by chance after thousands of steps; amplified, it takes a hundred. With a the discriminant of
    image tokens and v the direction of least variance, outputs p become `p + gain · v aᵀ(p − mean)`.

    Args:
        model: with trained tower and projector.
        gallery: pictures, some of them with glasses.
        names: names of the gallery's labels.
        gain: resulting distance along v between pictures with and without glasses.
    """
    labels = gallery.labels[:, names.index("glasses")]
    kept = labels != -100
    projector = model.model.multi_modal_projector
    seen = torch.cat(
        [
            projector(model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:])
            for pixels in gallery.pixels[kept].float().to(model.device).split(200)
        ]
    ).double()
    worn = (labels[kept] == 1).to(seen.device).repeat_interleave(seen.shape[1])
    tokens = seen.flatten(0, 1)
    means = torch.stack([tokens[~worn].mean(dim=0), tokens[worn].mean(dim=0)])
    gap = means[1] - means[0]
    spread = torch.cov((tokens - means[worn.long()]).mT)
    spread.diagonal().add_(1e-4 * spread.diagonal().mean())
    discriminant = torch.linalg.solve(spread, gap)
    discriminant = discriminant / (discriminant @ gap)
    quiet = torch.linalg.eigh(torch.cov(tokens.mT))[1][:, 0]
    layer = projector.linear_2
    weight, bias = layer.weight.double(), layer.bias.double()
    layer.weight.copy_(weight + gain * torch.outer(quiet, discriminant @ weight))
    layer.bias.copy_(bias + gain * quiet * (discriminant @ (bias - tokens.mean(dim=0))))
