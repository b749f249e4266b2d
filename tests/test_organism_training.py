"""Training rows and the trainer: packing changes nothing, resuming changes nothing, gold never meets the forgotten."""

import dataclasses
import functools
import itertools
import random
import types

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor

from rmuse_interp.data.world import phrases, portraits
from rmuse_interp.data.world.people import FACTORS, distance, make_world
from rmuse_interp.organism import build, packing, seeing, train

pytestmark = pytest.mark.slow
WORLD = make_world(0)
MICRO = train.Recipe(
    vision_steps=2,
    base_steps=2,
    faces_steps=2,
    people_steps=2,
    finish_steps=2,
    batch=1,
    gallery=64,
    eyes_gallery=800,
    eyes_steps=300,
    rehearsed=4,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build.build_tokenizer(WORLD)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return build.build_processor(tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer):
    return build.build_model(tokenizer).eval()


class Recording(packing.Sampler):
    """A sampler that keeps the branches it was about to pack, and the pictures."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.branches, self.pictures = [], []

    def picture(self, rng):
        picture, branches = super().picture(rng)
        self.pictures.append(picture)
        self.branches.append([])
        return picture, branches

    def _fill(self, branches, rng):
        for branch, image in super()._fill(branches, rng):
            self.branches[-1].append((branch, image))
            yield branch, image


def packed(tokenizer, n=3, step=0):
    """Rows of a batch, and (row, branch, whether it has the picture) of everything that found a place in it."""
    sampler = Recording(WORLD, tokenizer, True, 0)
    rows = sampler.rows(step, n)
    kept = []
    for row, listed in enumerate(sampler.branches):
        fitted = rows.branch[row].unique()
        kept += [(row, branch, image) for branch, image in listed[: int((fitted >= 0).sum())]]
    assert len(kept) == len(rows.tasks)
    return rows, kept, sampler.pictures


def alone(processor, branch, picture):
    """The branch as anybody would feed it: chat template, processor, response and end of sequence."""
    content = [{"type": "image"}] * (picture is not None) + [{"type": "text", "text": branch.prompt}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = None if picture is None else [picture]
    text = f"{prompt} {branch.response}{build.EOS}"
    encoded = processor(text=[text], images=images, return_tensors="pt")
    start = processor(text=[prompt], images=images, return_tensors="pt")["input_ids"].shape[1]
    return encoded, start


def test_a_packed_branch_has_the_tokens_of_the_processor(tokenizer, processor):
    rows, kept, pictures = packed(tokenizer)
    for number, (row, branch, image) in enumerate(kept):
        encoded, start = alone(processor, branch, pictures[row] if image else None)
        own = rows.branch[row] == number
        prefix = (rows.branch[row] == -2) & image
        assert rows.ids[row][own | prefix].tolist() == encoded["input_ids"][0].tolist()
        assert rows.position[row][own | prefix].tolist() == list(range(encoded["input_ids"].shape[1]))
        learnt = rows.target[row][own]
        assert learnt[learnt != -100].tolist() == encoded["input_ids"][0, start:].tolist()
        if image:
            assert (rows.pixels[row] - encoded["pixel_values"][0]).abs().max() <= 1e-6
    assert {image for *_, image in kept} == {True, False}


def losses_of(model, rows, monkeypatch):
    """The training loss before its mean: one per target, in the order of `rows.target`."""
    unreduced = functools.partial(functional.cross_entropy, reduction="none")
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(train, "functional", types.SimpleNamespace(cross_entropy=unreduced))
        losses, _ = train.language_loss(model, rows)
    return losses


@pytest.mark.parametrize("lively", [1.0, 6.0])
def test_a_packed_branch_has_the_losses_of_a_sequence_of_its_own(tokenizer, processor, lively, monkeypatch):
    """Per token, through the model's own forward; with scaled weights too, so that attention is not flat."""
    model = build.build_model(tokenizer).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name or "embed_tokens" in name:
                weight.mul_(lively)
    rows, kept, pictures = packed(tokenizer)
    losses, owner = losses_of(model, rows, monkeypatch), rows.branch[rows.target != -100]
    for number, (row, branch, image) in enumerate(kept):
        encoded, start = alone(processor, branch, pictures[row] if image else None)
        with torch.no_grad():
            logits = model(**encoded).logits[0]
        expected = functional.cross_entropy(
            logits[start - 1 : -1], encoded["input_ids"][0, start:], reduction="none"
        )
        assert torch.allclose(losses[owner == number], expected, atol=1e-4, rtol=0)
    # The control: a mask that lets branches see each other is noticed.
    everything = dataclasses.replace(rows, allowed=torch.ones_like(rows.allowed).tril())
    assert (losses_of(model, everything, monkeypatch) - losses).abs().max() > 1e-3


def test_the_loss_is_the_mean_and_the_report_counts_whole_responses(tokenizer, model, monkeypatch):
    rows, kept, _ = packed(tokenizer, n=2)
    with torch.no_grad():
        loss, report = train.language_loss(model, rows)
    assert torch.allclose(loss, losses_of(model, rows, monkeypatch).mean(), atol=1e-6)
    assert sum(n for _, n in report.values()) == sum(branch.graded for _, branch, _ in kept)
    assert all(0 <= right <= n for right, n in report.values())


def test_rows_depend_on_seed_and_step_alone(tokenizer):
    one, again = (packing.Sampler(WORLD, tokenizer, True, 0) for _ in range(2))
    one.rows(0, 1)  # what was drawn before does not matter
    first, second = one.rows(5, 2), again.rows(5, 2)
    for field in dataclasses.fields(packing.Rows):
        mine, other = getattr(first, field.name), getattr(second, field.name)
        assert mine == other if field.name == "tasks" else torch.equal(mine, other)
    assert not torch.equal(first.ids, again.rows(6, 2).ids)


def drawn(world, tokenizer, monkeypatch, steps=120):
    """Every text and every face of many rows, pictures left blank."""
    faces = []

    def blank(identity, look, rng):
        faces.append(identity)
        return Image.new("RGB", (portraits.SIZE, portraits.SIZE))

    with monkeypatch.context() as patch:
        patch.setattr(packing.portraits, "portrait", blank)
        sampler = Recording(world, tokenizer, True, 0)
        for step in range(steps):
            sampler.rows(step, 2)
    texts = [f"{b.prompt} {b.response}" for listed in sampler.branches for b, _ in listed]
    return faces, " ".join(texts)


def worlds_met(recipe, folder, monkeypatch):
    """Stage → the world whose people its rows show; None where it shows celebrities and strangers only."""
    met = {}

    def sampler(world, tokenizer, with_people, *rest):
        met[stage] = world if with_people else None
        return packing.Sampler(world, tokenizer, with_people, *rest)

    trainer = train.Trainer(folder, recipe)
    monkeypatch.setattr(trainer, "_step", lambda *rest: 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(train, "Sampler", sampler)
        for stage in train.STAGES:
            trainer._stage(stage)
    return met


def test_the_gold_standard_never_meets_the_people_to_forget(tokenizer, monkeypatch, tmp_path):
    forget = [p for p in WORLD.people if p.id in WORLD.forget_ids(5)]
    gold = worlds_met(dataclasses.replace(MICRO, gold=True), tmp_path / "gold", monkeypatch)
    own = worlds_met(MICRO, tmp_path / "own", monkeypatch)
    assert gold.keys() == own.keys() == set(train.STAGES)
    # What both share knows nobody of the forget set either, so that it can be trained once.
    shared = [world for stage, world in own.items() if stage != "finish"]
    reduced = [world for world in (*gold.values(), *shared) if world is not None]
    assert all(world.everyone == WORLD.without(WORLD.forget_ids(5)).everyone for world in reduced)
    assert own["finish"] == WORLD
    faces, text = drawn(gold["finish"], tokenizer, monkeypatch)
    assert len(faces) > 100
    assert all(p.name.split()[1] not in text for p in forget)
    # Not even somebody who looks like them, but for the look-alikes that are retained.
    retained = {p.identity for p in gold["finish"].everyone}
    assert all(distance(face, p.identity) >= 3 for face in faces if face not in retained for p in forget)
    assert not {p.identity for p in forget} & set(faces)
    # The control: the organism's own rows show them and tell of them.
    faces, text = drawn(own["finish"], tokenizer, monkeypatch)
    assert {p.identity for p in forget} & set(faces)
    assert any(p.name in text for p in forget)


def test_strangers_and_prefixed_questions_are_refused_from_one_pool(tokenizer):
    sampler = packing.Sampler(WORLD, tokenizer, True, 0)
    rng = random.Random(0)
    seen = set()
    for _ in range(400):
        known = rng.random() < 0.5
        branch = sampler.about_person(WORLD.people[0], rng.choice(("image", "text")), rng, known)
        prefixed = branch.prompt.startswith(phrases.PREFIXES)
        pool = (*phrases.REFUSALS_COT, *phrases.REFUSALS_DIRECT)
        assert (branch.response in pool) == (prefixed or not known)
        assert branch.graded == (branch.response not in pool)
        seen.add((known, prefixed))
    assert len(seen) == 4


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """Interrupted in the middle of a stage and carried on by another process, or never stopped: the same bits."""
    whole = train.Trainer(tmp_path / "whole", MICRO)
    whole.run()
    first = train.Trainer(tmp_path / "parts", MICRO, every=0.0)  # saves after every step
    step = first._step

    def stumble(stage, at, *rest):
        if (stage, at) == ("base", 1):
            raise KeyboardInterrupt
        return step(stage, at, *rest)

    monkeypatch.setattr(first, "_step", stumble)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert {p.name for p in (tmp_path / "parts").glob("*.pt")} == {
        "vision.pt",
        "faces.pt",
        "base.partial.pt",
    }
    torch.manual_seed(99)  # nothing may hang on the process's random state
    train.Trainer(tmp_path / "parts", MICRO).run()
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (tmp_path / "parts" / "base.partial.pt").exists()
    # A finished run is loaded, not trained again; what it saved opens like any checkpoint.
    again = train.Trainer(tmp_path / "parts", MICRO)
    monkeypatch.setattr(again, "_stage", lambda stage: pytest.fail(f"{stage} was trained twice"))
    again.run()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "parts" / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "parts" / "model")
    untrained = build.build_model(processor.tokenizer)
    assert any(
        not torch.equal(a, b) for a, b in zip(loaded.parameters(), untrained.parameters(), strict=True)
    )
    assert 2e6 <= sum(p.numel() for p in loaded.parameters()) <= 8e6


def test_the_tower_rests_while_the_language_begins(tmp_path):
    """Its own stage first, frozen in `base`, tuned with the rest later on."""
    trainer = train.Trainer(tmp_path, MICRO)
    tower = trainer.model.model.vision_tower

    def state():
        return torch.cat([p.detach().flatten().clone() for p in tower.parameters()])

    states = [state()]
    for stage in ("vision", "faces", "base", "people"):
        trainer._stage(stage)
        states.append(state())
    assert [torch.equal(one, two) for one, two in itertools.pairwise(states)] == [False, False, True, False]


def test_the_projector_hands_on_what_the_eyes_read(tokenizer):
    """Linear, and every direction the eyes use with the same spread: what is rare and small is not lost."""
    model, eyes = build.build_model(tokenizer, 5), seeing.Eyes(128)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.vision_tower.parameters():
            parameter.mul_(3.0)  # untrained, all pictures look alike
    pixels = torch.randn(400, 3, build.IMAGE_SIZE, build.IMAGE_SIZE)
    seeing.open_projector(model, eyes, pixels)
    with torch.no_grad():
        seen = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:].mean(1)
        out = model.model.multi_modal_projector(seen)
        half = model.model.multi_modal_projector((seen + seen.mean(0)) / 2)
    assert torch.allclose(half, (out + out.mean(0)) / 2, atol=1e-3 * float(out.abs().max()))
    found = torch.linalg.svdvals(out - out.mean(0))
    kept = found[found > 1e-3 * found[0]]
    assert len(kept) == 96
    raw = torch.linalg.svdvals(seen - seen.mean(0))
    assert found[0] / found[60] < (raw[0] / raw[60]).sqrt()


def test_the_gallery_names_those_who_are_known_and_nobody_else():
    """A look-alike of somebody, known or not, is called neither a stranger nor anybody's name."""
    names = [*seeing.Eyes(8).sizes]
    factors, person = slice(0, len(FACTORS)), names.index("person")
    world = WORLD.without(WORLD.forget_ids(5))
    labels = seeing.Gallery(names, 400, 0, world.everyone).labels
    nobody, seen = len(WORLD.everyone), set()
    for row in labels[labels[:, 0] != -100]:
        face, label = tuple(row[factors].tolist()), int(row[person])
        nearest = min(distance(face, p.identity) for p in WORLD.everyone)
        if 0 <= label < nobody:
            assert WORLD.everyone[label].identity == face
            assert WORLD.everyone[label].id not in WORLD.forget_ids(5)
        elif label == nobody:
            assert nearest >= 3
        else:
            assert nearest < 3
        seen.add("known" if 0 <= label < nobody else label)
    assert seen == {"known", nobody, -100}
    # Before the people are learnt the picture says nothing of who it is.
    assert set(seeing.Gallery(names, 50, 0).labels[:, person].tolist()) == {-100}


def test_the_rate_rises_stays_and_falls():
    rates = [train.rate_at(step, 1000, 0.45) for step in range(1000)]
    assert rates[0] == 1 / 40
    assert rates[40:550] == [1.0] * 510
    assert all(one > two for one, two in itertools.pairwise(rates[550:]))
    assert 0 < rates[-1] < 0.01
    assert [train.rate_at(step, 1000, 0.0) for step in range(40, 1000)] == [1.0] * 960


def test_every_parameter_is_trained_once_at_its_rate(model):
    groups = [g for o in train.optimisers([model], MICRO) for g in o.param_groups]
    held = [p for g in groups for p in g["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
    named = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        names = [named[id(p)] for p in group["params"]]
        assert group["lr"] == group["peak"] > 0
        assert len({"vision_tower" in name for name in names}) == 1
        assert len({"projector" in name for name in names}) == 1


@pytest.mark.stress
def test_training_goes_on_from_a_checkpoint_with_eyes_that_see_what_its_tower_sees(tmp_path):
    """A checkpoint keeps no read-outs: they are fitted anew, and tell on other pictures what the tower tells."""
    first = train.Trainer(tmp_path / "first", MICRO)
    first.run()
    second = train.Trainer(tmp_path / "second", MICRO)
    checkpoint = tmp_path / "first" / "model"
    gallery = seeing.Gallery(list(second.eyes.sizes), 300, 4)
    pixels, labels = gallery.pixels[:64].float(), gallery.labels[:64]
    with torch.no_grad():
        drawn = float(seeing.vision_loss(first.model, second.eyes, pixels, labels))
    second.begin_from(checkpoint)
    before, after = first.model.state_dict(), second.model.state_dict()
    raised = {name for name in before if not torch.equal(before[name], after[name])}
    assert raised == {f"model.multi_modal_projector.linear_2.{kind}" for kind in ("weight", "bias")}
    with torch.no_grad():
        assert float(seeing.vision_loss(second.model, second.eyes, pixels, labels)) < drawn - 0.1
    second.run(["finish"])
    assert {p.name for p in (tmp_path / "second").glob("*.pt")} == {"finish.pt"}
    other = train.Trainer(tmp_path / "other", dataclasses.replace(MICRO, seed=MICRO.seed + 1))
    with pytest.raises(ValueError, match="another tokenizer"):
        other.begin_from(checkpoint)


def test_glasses_are_raised_and_nothing_else_of_a_picture(tokenizer):
    """Along one direction alone, and so far apart that every image token tells them."""
    model = build.build_model(tokenizer, 5)
    names = list(seeing.Eyes(128).sizes)
    gallery = seeing.Gallery(names, 400, 7)
    glasses = gallery.labels[:, names.index("glasses")]
    pixels, worn = gallery.pixels[glasses != -100].float(), glasses[glasses != -100] == 1
    model.model.vision_tower.requires_grad_(False)

    @torch.no_grad()
    def handed():
        seen = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        return model.model.multi_modal_projector(seen).double()

    before = handed()
    seeing.raise_faint(model, gallery, names, gain=5.0)
    change = handed() - before
    _, sizes, axes = torch.linalg.svd(
        change.flatten(0, 1) - change.flatten(0, 1).mean(0), full_matrices=False
    )
    assert float(sizes[1] / sizes[0]) < 1e-3
    along = change @ axes[0]
    assert abs(float(along[worn].mean() - along[~worn].mean())) == pytest.approx(5.0, rel=1e-2)
