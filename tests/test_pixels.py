"""Pictures become tensors by one backend per family, whatever is installed; a broken torchvision does no harm."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers.tiny import picture, tiny_llava

from rmuse_interp import RMuseError, load_model
from rmuse_interp.organism import build

pytestmark = pytest.mark.slow

HIDDEN = "import sys; sys.modules['torchvision'] = None"
BROKEN = """
import torch
def refused(path):
    raise OSError(f"Could not load this library: {path}")
torch.ops.load_library = refused
"""


def seen() -> list[object]:
    """Backend, hash of pixel values, an answer and whether torchvision was imported."""
    lens = load_model("organism")
    pictures = [picture(seed).resize((50 + seed, 61)) for seed in range(5)]
    pixels = [lens.encode("Who?", each)["pixel_values"] for each in pictures]
    own = build.build_processor(lens.tokenizer).image_processor(pictures[0], return_tensors="pt")
    assert own["pixel_values"].equal(pixels[0])
    return [
        type(lens.processor.image_processor).__name__,
        hashlib.sha256(b"".join(p.numpy().tobytes() for p in pixels)).hexdigest(),
        lens.respond("Who is this person?", pictures[0])[0].text,
        sys.modules.get("torchvision") is not None,
    ]


def refusal() -> str:
    """What is said of a model whose processor needs torchvision."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(tiny_llava(), folder, dirs_exist_ok=True)
        settings = Path(folder, "processor_config.json")
        settings.write_text(settings.read_text().replace("LlavaProcessor", "PixtralProcessor"))
        try:
            return repr(load_model(folder))
        except RMuseError as error:
            return str(error).replace(folder, "FOLDER")


def elsewhere(state: str) -> list[list[object]]:
    """What is seen and what is refused in a process of its own, prepared by a statement."""
    asked = (
        "import json, sys; sys.path.insert(0, 'tests'); import test_pixels as t; "
        "print(json.dumps([t.seen(), t.refusal()]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", f"{state}\n{asked}"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_pixels_and_answers_are_the_same_bits_without_torchvision_and_with_a_broken_one():
    pytest.importorskip("torchvision")
    here, (without, refused), (broken, _) = seen(), elsewhere(HIDDEN), elsewhere(BROKEN)
    assert here[0] == "CLIPImageProcessorPil"
    assert (here[3], without[3], broken[3]) == (True, False, True)
    assert here[:3] == without[:3] == broken[:3]
    assert refused == (
        "the processor of FOLDER needs torchvision, which is not installed or does not fit torch: "
        "pip install 'rmuse-interp[families]'"
    )
