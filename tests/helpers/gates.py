"""Seeded states of people, for gates."""

import torch

from rmuse_interp.parts.gates import GateStates


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def people(
    d: int = 24, forgotten: int = 6, known: int = 30, renderings: int = 5, noise: float = 0.5
) -> GateStates:
    """Each person is a direction of its own; every rendering adds noise. Groups are renderings of p0, p1, …"""
    center = random(forgotten + known, d)
    states = center.repeat_interleave(renderings, 0) + noise * random(
        (forgotten + known) * renderings, d, seed=1
    )
    groups = [f"rendering {i % renderings}" for i in range(len(states))]
    names = [f"p{i // renderings}" for i in range(len(states))]
    cut = forgotten * renderings
    sides = (states[:cut] + 5.0, states[cut:] + 5.0)
    return GateStates(*sides, groups[:cut], groups[cut:], names[:cut], names[cut:])
