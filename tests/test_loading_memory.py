"""Memory is asked before it is taken: by a checkpoint, a fit, and questions."""

import pytest
import torch
from helpers.plans import lens_of
from helpers.tiny import tiny_llama, tiny_llava

from rmuse_interp import RMuseError, load_model
from rmuse_interp.fitting import gather
from rmuse_interp.models import demand, devices, loading
from rmuse_interp.models.checkpoint import size_in, weight_files
from rmuse_interp.models.demand import bytes_per_token
from rmuse_interp.models.devices import Room
from rmuse_interp.runs.run import Method, run


def test_the_size_is_that_of_the_weights_in_their_dtype():
    model = lens_of(tiny_llama()).hf
    files = weight_files(tiny_llama())
    values = sum(weight.numel() for weight in model.state_dict().values())
    assert size_in(files, None) == size_in(files, 4) == 4 * values
    assert size_in(files, 2) == 2 * values


@pytest.mark.parametrize(
    ("free", "asked", "said"),
    [
        (
            1.2,
            {},
            r"as float32 needs 0\.\d MB of memory on cpu, 0\.\d MB are free; dtype='bfloat16' needs 0\.\d MB",
        ),
        (0.7, {"dtype": "bfloat16"}, r"as bfloat16 needs .* device_map='auto' leaves on the disk"),
        (1.2, {"dtype": "float16"}, None),
    ],
)
def test_memory_is_asked_before_it_is_taken(monkeypatch, free, asked, said):
    half = size_in(weight_files(tiny_llama()), 2)
    monkeypatch.setattr(loading, "free_memory", lambda device: int(free * half))
    if said is None:
        assert load_model(tiny_llama(), device="cpu", **asked).dtype == torch.float16
        return
    with pytest.raises(RMuseError, match=said):
        load_model(tiny_llama(), device="cpu", **asked)


def test_free_memory_keeps_to_the_limit_of_a_container(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    unlimited = devices.free_memory(torch.device("cpu"))
    for name, text in {
        "max": "3000000",
        "current": "2500000",
        "stat": "anon 5\ninactive_file 100000\n",
    }.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert devices.free_memory(torch.device("cpu")) == 600_000 < unlimited
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.free_memory(torch.device("cpu")) > 600_000


def test_room_says_what_is_needed_and_free():
    assert str(Room("x as float32", 28_200_000_000, 22_000_000_000, torch.device("cpu"))) == (
        "x as float32: 28.2 GB on cpu, 22.0 GB free"
    )


def test_a_batch_is_counted_by_its_longest_question():
    lens = lens_of(tiny_llama())
    # 4 bytes · (2 · 4 blocks · 2 heads · 8 + 4 · 32 + 3 · 64), and 449 logits
    assert bytes_per_token(lens, logits=False) == 4 * (128 + 128 + 192)
    assert bytes_per_token(lens, logits=True) == 4 * (448 + 449)


def test_fitting_and_asking_need_room_for_a_batch(monkeypatch, benchmark):
    lens = lens_of(tiny_llava())
    token = bytes_per_token(lens, logits=False)
    monkeypatch.setattr(demand, "free_memory", lambda device: 500 * token)
    with pytest.raises(RMuseError, match=r"a batch of \d+ rows of \d+ tokens .* fits; one row needs"):
        gather(lens, benchmark)
    asked = {"forget": benchmark.fit_forget}
    with pytest.raises(RMuseError, match=r"batch_size=(\d+) \(--batch-size \1\) fits"):
        run([Method("vanilla", lens)], asked, delimiters=("<think>", "</think>"), max_new_tokens=96)
    assert run(
        [Method("vanilla", lens)], asked, delimiters=("<think>", "</think>"), max_new_tokens=2, batch_size=2
    )
