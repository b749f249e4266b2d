"""Where a model's weights are, and whether they fit: asked before memory is taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from rmuse_interp import RMuseError

SPARE: float = 0.05
"""Share of the free memory that is left alone."""
_CGROUP = Path("/sys/fs/cgroup")


def device_of(hf_model: nn.Module) -> torch.device:
    """The device on which a model takes its inputs: also for weights that accelerate keeps elsewhere until needed."""
    embedding: nn.Module = hf_model.get_input_embeddings()  # type: ignore[operator]
    for hook in _hooks(embedding):
        found = getattr(hook, "execution_device", None)
        if found is not None:
            return torch.device(found)
    places = [weight.device for weight in (*embedding.parameters(), *hf_model.parameters())]
    return next((place for place in places if place.type != "meta"), torch.device("cpu"))


def offloaded(hf_model: nn.Module) -> bool:
    """Whether some weights lie elsewhere (memory, disk) until a module needs them."""
    return any(weight.device.type == "meta" for weight in hf_model.parameters())


def require_first_weight(hf_model: nn.Module) -> None:
    """Raise unless a model's first weight is in memory: nnsight moves inputs to its device.

    Raises:
        RMuseError: naming the places that do without.
    """
    if next(hf_model.parameters()).device.type == "meta":
        raise RMuseError(
            f"a trace needs the first weights of {type(hf_model).__name__} in memory, they lie elsewhere until needed; "
            "use respond, decide and plan.attach, or a device_map that keeps them"
        )


def _hooks(module: nn.Module) -> Iterator[object]:
    """accelerate's hooks on a module, one by one."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a device, within the limit of the container if there is one; None where it cannot be told."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    if device.type != "cpu":
        return None
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(cached.get("inactive_file", 0)))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return free


@dataclass(frozen=True)
class Room:
    """What something needs of a device's memory, and what is free there.

    Args:
        what: what needs it, for messages.
        needed: bytes.
        free: bytes; None where it cannot be told.
        device: the device.
    """

    what: str
    needed: int
    free: int | None
    device: torch.device

    @property
    def fits(self) -> bool:
        """Whether it fits, with `SPARE` left alone."""
        return self.free is None or self.needed <= self.free * (1 - SPARE)

    def __str__(self) -> str:
        free = "" if self.free is None else f", {gigabytes(self.free)} free"
        return f"{self.what}: {gigabytes(self.needed)} on {self.device}{free}"

    def require(self, instead: str) -> None:
        """Raise unless it fits.

        Args:
            instead: what would.

        Raises:
            RMuseError: needed, free, and what would fit.
        """
        if not self.fits:
            assert self.free is not None
            needed, free = gigabytes(self.needed), gigabytes(self.free)
            raise RMuseError(
                f"{self.what} needs {needed} of memory on {self.device}, {free} are free; {instead}"
            )


def gigabytes(size: int) -> str:
    """A size in GB (10⁹ bytes), or MB if it is small.

    >>> gigabytes(14_130_000_000), gigabytes(3_200_000)
    ('14.1 GB', '3.2 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
