"""Short trainings on the tiny model, and what they do to it."""

from dataclasses import replace

import torch

from rmuse_interp.baselines import BASELINES, training
from rmuse_interp.baselines.methods import build
from rmuse_interp.baselines.trials import Trial
from rmuse_interp.fitting import validation
from rmuse_interp.lens.likelihood import response_nll


def held_out(*asked):
    return replace(validation.hold_out(*asked), max_new_tokens=3)


def weights(lens):
    return {name: p.detach().clone() for name, p in lens.hf.named_parameters()}


def nats(lens, rows):
    """Mean nats per token of the rows' responses."""
    found = response_nll(
        lens, [r.example.prompt() for r in rows], [r.response for r in rows], [r.example.image for r in rows]
    )
    return sum(n for n, _ in found) / sum(tokens for _, tokens in found)


def course(name, lens, benchmark):
    part = training.hold_out(lens, benchmark, 0)
    return training.Course(name, BASELINES[name], lens, benchmark, part, 0, 8, 4)


def epochs(name, lens, benchmark, rate, n=4, other=lambda: 0.0):
    """The model's nats on rows of every group, and what else is asked, before and after some epochs."""
    one = course(name, lens, benchmark)
    groups = {g: one.rows(g, 1) for g in ("forget", "refusal", "retain")}
    before = {g: nats(lens, rows) for g, rows in groups.items()}
    trainable = build(BASELINES[name], lens, 0)
    try:
        optimiser = torch.optim.AdamW(trainable.parameters(), lr=rate, weight_decay=0.0)
        for epoch in range(1, n + 1):
            one.epoch(BASELINES[name].objective, trainable, optimiser, epoch)
        return before, {"other": other(), **{g: nats(lens, rows) for g, rows in groups.items()}}
    finally:
        trainable.undo()


def trial(setting, leak, keep, epoch=1, malformed=0.0, changed=0.5):
    return Trial(setting, epoch, leak, keep, malformed, changed, 0.0, 1.0)
