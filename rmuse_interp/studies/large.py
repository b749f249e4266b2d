"""Time and memory of the whole method on a random checkpoint in the shape of a large model."""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from rmuse_interp.data import Example, load_benchmark, sample
from rmuse_interp.data.store import write_json, write_tensors
from rmuse_interp.edits.plan import Plan
from rmuse_interp.fitting import assemble, gather
from rmuse_interp.lens.lens import LensModel, load_model
from rmuse_interp.method.rmuse import PRESETS
from rmuse_interp.models.loading import shipped
from rmuse_interp.studies.common import Record, print_table, provenance

Sizes = Mapping[str, int]
SHAPES: Final[dict[str, tuple[Sizes, Sizes]]] = {
    "7b": (
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "vocab_size": 32064,
        },
    ),
    "tiny": (
        {
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "projection_dim": 24,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            "vocab_size": 2048,
        },
    ),
}
"""Name → settings of the vision tower and of the decoder; `7b` is `llava-hf/llava-1.5-7b-hf`."""

SHARD: Final = 3_000_000_000
"""Most bytes of weights in a file."""


def run(given: argparse.Namespace) -> Record:
    """Make the record of `large.json`.

    Raises:
        RMuseError: a benchmark that is missing, or too little memory for the model.
    """
    began = time.monotonic()
    benchmark = load_benchmark(given.data, forget=given.forget)
    pooled = [e for split in (benchmark.fit_forget, benchmark.fit_retain) for e in split]
    questions = sample(pooled, given.limit, given.seed)
    stages: dict[str, Record] = {}
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".large-", dir=given.out) as scratch:
        folder = Path(scratch)
        with stage(stages, "write the checkpoint"):
            make(given.shape, folder, given.seed)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        with stage(stages, "load"):
            lens = load_model(folder, device=given.device, dtype=given.dtype or "bfloat16")
        with stage(stages, "answer, unsteered"):
            answers = {"none": answered(lens, questions, None, given.max_new_tokens)}
        with stage(stages, "gather states"):
            evidence = gather(
                lens, benchmark, limit=given.fit_limit, batch_size=given.batch_size, seed=given.seed
            )
        for preset in PRESETS:
            with stage(stages, f"fit {preset}"):
                fitted = assemble(lens, benchmark, evidence, preset, seed=given.seed)
            with stage(stages, f"answer, {preset}"):
                answers[preset] = answered(lens, questions, fitted.plan, given.max_new_tokens)
    origin = provenance(given, lens, benchmark, began, shape=given.shape, dtype=str(lens.dtype))
    return {
        "schema": "rmuse-large/1",
        "provenance": origin,
        "checkpoint_bytes": size,
        "stages": stages,
        "answers": answers,
    }


def answered(
    lens: LensModel, questions: Sequence[Example], plan: Plan | None, max_new_tokens: int
) -> list[str]:
    """Answers to some questions, one at a time."""
    return [lens.respond(e.prompt(), e.image, plan, max_new_tokens=max_new_tokens)[0].text for e in questions]


@contextmanager
def stage(stages: dict[str, Record], name: str) -> Iterator[None]:
    """Note the seconds of a stage, and the highest memory of the process until its end."""
    began = time.monotonic()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    stages[name] = {"seconds": round(time.monotonic() - began, 1), "peak_bytes": peak}
    print(f"{name}: {stages[name]['seconds']} s, {peak / 1e9:.1f} GB at most", file=sys.stderr, flush=True)


def make(shape: str, folder: Path, seed: int) -> None:
    """Write a random LLaVA of a shape in bfloat16, in shards, one in memory at a time.

    Matrices are drawn from N(0, 0.02²), norms are 1, biases 0. Tokenizer and chat template are the organism's.
    """
    import transformers

    vision, text = SHAPES[shape]
    side = {"height": vision["image_size"], "width": vision["image_size"]}
    processor = transformers.AutoProcessor.from_pretrained(shipped("organism"))
    processor.image_processor = transformers.CLIPImageProcessorPil(size=side, crop_size=side)
    processor.patch_size = vision["patch_size"]
    processor.save_pretrained(folder)
    own = processor.tokenizer
    ids = {
        "pad_token_id": own.pad_token_id,
        "bos_token_id": own.bos_token_id,
        "eos_token_id": own.eos_token_id,
    }
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision),
        text_config=transformers.LlamaConfig(**text, rms_norm_eps=1e-5, **ids),
        image_token_index=processor.image_token_id,
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlavaForConditionalGeneration"],
    )
    config.save_pretrained(folder)
    transformers.GenerationConfig(**ids).save_pretrained(folder)
    with torch.device("meta"):
        wanted = transformers.LlavaForConditionalGeneration(config).to(torch.bfloat16).state_dict()
    generator = torch.Generator().manual_seed(seed)
    shards: list[list[str]] = [[]]
    held = 0
    for name, weight in wanted.items():
        if held + weight.nbytes > SHARD:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += weight.nbytes
    places: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, {n: drawn(n, wanted[n], generator) for n in names}, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    total = sum(weight.nbytes for weight in wanted.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)


def drawn(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """A tensor's first value, by its name and shape."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(like.shape, dtype=like.dtype)
    if like.ndim < 2 and "class_embedding" not in name:
        return torch.zeros(like.shape, dtype=like.dtype)
    return torch.randn(like.shape, dtype=like.dtype, generator=generator).mul_(0.02)


def show(record: Record) -> None:
    """Print the stages."""
    rows = [
        [name, f"{one['seconds']:.1f}", f"{one['peak_bytes'] / 1e9:.2f}"]
        for name, one in record["stages"].items()
    ]
    print_table("time and memory", ["stage", "seconds", "GB at most"], rows)
