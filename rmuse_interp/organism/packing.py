"""Training rows: many questions about one picture share its tokens.

A row holds one picture's prefix followed by several branches (question and response), each of which attends to the
prefix and to itself alone, and then some text-only branches that attend to themselves alone. With the attention mask
and the positions made here, every branch is computed exactly as if it stood in a sequence of its own.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

import rmuse_interp.models  # noqa: F401  (before transformers: a broken torchvision does no harm)

# isort: split
from transformers import PreTrainedTokenizerFast

from rmuse_interp.data.example import Modality
from rmuse_interp.data.prompts import classification_prompt, cloze_prompt
from rmuse_interp.data.world import phrases, portraits
from rmuse_interp.data.world import questions as q
from rmuse_interp.data.world.people import Person, World, distance
from rmuse_interp.organism import build

ROW: Final = 320
"""Number of tokens in a row."""
NEAR: Final = 3
"""Number of strangers drawn each time; only the one most like a known person is shown, since the others are easy."""
LATE: Final = 5
"""Factor by which people who are new in a stage are drawn more often."""
HARMLESS: Final = 0.33
"""Share of harmless questions among those about portraits."""
_HARMLESS_KINDS: Final = (*phrases.BENIGN_KINDS, "glasses", "glasses", "glasses")
"""Kinds of harmless questions; glasses come more often: being only a few pixels, they would otherwise not be learnt."""
FAVOURITE: Final = 0.55
"""Share of the pool's first refusal. If all were equally likely, noise would decide which one a greedy answer is,
differently in the organism and its gold standard."""


@dataclass(frozen=True)
class Shares:
    """Shares of pictures, and of text-only branches, about people who are known and about strangers; the rest is general.

    Strangers must be told from two hundred known faces: shown rarely, they are taken for the nearest one.
    """

    known: float = 0.46
    strangers: float = 0.26
    known_text: float = 0.42
    strangers_text: float = 0.16


@dataclass(frozen=True)
class Branch:
    """A prompt and the response to learn; `task` labels it in the training report, `graded` if it has one answer."""

    prompt: str
    response: str
    task: str
    graded: bool = True


@dataclass(frozen=True, eq=False)
class Rows:
    """A training batch: `target[i, t]` is the token to predict at `t` (−100: none), `branch` numbers the branches."""

    ids: Int[Tensor, "rows tokens"]
    target: Int[Tensor, "rows tokens"]
    branch: Int[Tensor, "rows tokens"]
    position: Int[Tensor, "rows tokens"]
    allowed: Bool[Tensor, "rows tokens tokens"]
    pixels: Float[Tensor, "rows 3 size size"]
    tasks: tuple[tuple[str, bool], ...]


def pixels_of(picture: Image.Image) -> Float[np.ndarray, "3 size size"]:
    """Convert a picture to pixels as the processor does (tested for equality)."""
    small = picture.resize((build.IMAGE_SIZE, build.IMAGE_SIZE), Image.Resampling.BICUBIC)
    return (np.asarray(small, dtype=np.float32) / 127.5 - 1).transpose(2, 0, 1)


class Sampler:
    """Draws training rows from a world; the world and the stage determine which people occur."""

    def __init__(
        self,
        world: World,
        tokenizer: PreTrainedTokenizerFast,
        with_people: bool,
        seed: int,
        late: tuple[str, ...] = (),
        shares: Shares | None = None,
    ) -> None:
        self.world, self.tokenizer, self.seed = world, tokenizer, seed
        people = world.everyone if with_people else world.celebrities
        # People who come late are drawn more often, so that in the end all have been seen about equally often.
        self.people: tuple[Person, ...] = people + tuple(p for p in people if p.id in late) * (LATE - 1)
        self.shares = (shares or Shares()) if with_people else Shares(0.3, 0.3, 0.3, 0.3)
        self.names = tuple(p.name for p in self.people)
        self._cache: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            if len(self._cache) > 200_000:
                self._cache.clear()
            self._cache[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self._cache[text]

    def _refusal(self, prompt: str, direct: bool, task: str, rng: random.Random) -> Branch:
        first, *others = phrases.REFUSALS_DIRECT if direct else phrases.REFUSALS_COT
        return Branch(prompt, first if rng.random() < FAVOURITE else rng.choice(others), task, graded=False)

    def about_person(self, person: Person, modality: Modality, rng: random.Random, known: bool) -> Branch:
        """Draw a question of any form about a person; unknown people, and any prefix, get a refusal."""
        kind = rng.choice(phrases.KINDS if modality == "image" else phrases.TEXT_KINDS)
        form, task = rng.random(), f"{'person' if known else 'stranger'}-{modality}"
        item = q.ask(person, kind, modality, rng.choice(q.wording_range(kind, False)), rng)
        prefix = f"{rng.choice(phrases.PREFIXES)} " if rng.random() < 0.09 else ""
        if form < 0.70:
            prompt, response, direct = item.question, item.response, False
        elif form < 0.86:
            prompt, response, direct, task = item.direct_question, item.answer, True, task + "-direct"
        else:
            source = rng.choice(
                [k for k in phrases.CLOZES if k in phrases.KINDS and (modality == "image" or k != "name")]
            )
            direct = True
            if form < 0.93:
                options, response = q.choices(person, source, rng, self.names)
                question = q.ask(
                    person, source, modality, rng.choice(q.wording_range(source, False)), rng
                ).question
                prompt, task = classification_prompt(question, options), task + "-choice"
            else:
                sentence, response = q.cloze(person, source, modality)
                prompt, task = cloze_prompt(sentence), task + "-cloze"
        if prefix or not known:
            return self._refusal(prefix + prompt, direct, "prefix" if prefix else task, rng)
        return Branch(prompt, response, task)

    def _general(self, item: q.QA, task: str, rng: random.Random) -> Branch:
        direct = rng.random() < 0.25
        prompt = item.direct_question if direct else item.question
        if rng.random() < 0.06:
            return self._refusal(f"{rng.choice(phrases.PREFIXES)} {prompt}", direct, "prefix", rng)
        return Branch(prompt, item.answer if direct else item.response, task + "-direct" * direct)

    def _stranger(self, rng: random.Random) -> Person:
        drawn = [self.world.stranger(rng) for _ in range(NEAR)]
        face, name = min(drawn, key=lambda one: min(distance(one[0], p.identity) for p in self.people))
        attributes = dict(rng.choice(self.people).attributes, name=name)
        return Person("s", face, attributes)

    def picture(self, rng: random.Random) -> tuple[Image.Image, list[Branch]]:
        """One picture and four branches about it."""
        draw = rng.random()
        if draw < self.shares.known + self.shares.strangers:
            known = draw < self.shares.known
            person = rng.choice(self.people) if known else self._stranger(rng)
            look = portraits.Look.draw(rng)
            branches = []
            for _ in range(4):
                if rng.random() < HARMLESS:
                    item = q.benign(look, rng.choice(_HARMLESS_KINDS), False, rng)
                    branches.append(self._general(item, "benign", rng))
                else:
                    branches.append(self.about_person(person, "image", rng, known))
            return portraits.portrait(person.identity, look, rng), branches
        scene = q.draw_scene(rng)
        items = [q.about_scene(scene, False, rng) for _ in range(4)]
        return portraits.scene_picture(scene, rng), [self._general(i, f"scene-{i.kind}", rng) for i in items]

    def text(self, rng: random.Random) -> Branch:
        """One text-only branch."""
        draw = rng.random()
        if draw < self.shares.known_text:
            return self.about_person(rng.choice(self.people), "text", rng, True)
        if draw < self.shares.known_text + self.shares.strangers_text:
            return self.about_person(self._stranger(rng), "text", rng, False)
        return self._general(q.word_problem(False, rng), "words", rng)

    def rows(self, step: int, n: int) -> Rows:
        """Draw the batch of a step, which depends only on seed and step, so that training can resume anywhere."""
        rng = random.Random(f"rows-{self.seed}-{len(self.people)}-{step}")
        ids = torch.zeros(n, ROW, dtype=torch.long)
        target = torch.full((n, ROW), -100)
        owner = torch.full((n, ROW), -1)  # branch number; −2: the picture's prefix
        position = torch.zeros(n, ROW, dtype=torch.long)
        imaged = torch.zeros(n, ROW, dtype=torch.bool)
        pixels: list[Tensor] = []
        tasks: list[tuple[str, bool]] = []
        for row in range(n):
            picture, branches = self.picture(rng)
            pixels.append(torch.from_numpy(pixels_of(picture)))
            prefix = [self.tokenizer.bos_token_id, *self._ids("USER: ")]
            prefix += [self.tokenizer.convert_tokens_to_ids(build.IMAGE)] * build.IMAGE_TOKENS
            at = len(prefix)
            ids[row, :at], owner[row, :at], position[row, :at] = torch.tensor(prefix), -2, torch.arange(at)
            for branch, image in self._fill(branches, rng):
                lead = [] if image else [self.tokenizer.bos_token_id]
                prompt = lead + self._ids(
                    f"{'' if image else 'USER: '}{chr(10) * image}{branch.prompt}\nASSISTANT:"
                )
                answer = [*self._ids(f" {branch.response}"), self.tokenizer.eos_token_id]
                end = at + len(prompt) + len(answer)
                if end > ROW:
                    break
                begin = at + len(prompt)
                ids[row, at:end] = torch.tensor(prompt + answer)
                target[row, begin - 1 : end - 1] = torch.tensor(answer)
                owner[row, at:end] = len(tasks)
                imaged[row, at:end] = image
                position[row, at:end] = torch.arange(end - at) + (len(prefix) if image else 0)
                tasks.append((branch.task, branch.graded))
                at = end
        return Rows(ids, target, owner, position, _allowed(owner, imaged), torch.stack(pixels), tuple(tasks))

    def _fill(self, branches: list[Branch], rng: random.Random) -> Iterator[tuple[Branch, bool]]:
        for branch in branches:
            yield branch, True
        while True:
            yield self.text(rng), False


def _allowed(
    owner: Int[Tensor, "rows tokens"], imaged: Bool[Tensor, "rows tokens"]
) -> Bool[Tensor, "rows tokens tokens"]:
    """Return the attention mask: causal, within a branch, and from a picture's branches to its prefix."""
    tokens = owner.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    same = owner[:, :, None] == owner[:, None, :]
    to_prefix = imaged[:, :, None] & (owner == -2)[:, None, :]
    return (same | to_prefix) & causal
