"""Loading a checkpoint and its processor with transformers, on a device, in a dtype."""

import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch

from rmuse_interp import RMuseError
from rmuse_interp.data.store import cache_folder
from rmuse_interp.models import checkpoint
from rmuse_interp.models.devices import Room, free_memory, gigabytes
from rmuse_interp.models.pixels import backend_of
from rmuse_interp.models.pretrained import SMOLLM2, require_smollm2

SHIPPED: Final = ("organism", "organism-gold")
"""Checkpoints that travel with the package."""

DeviceMap = str | Mapping[str, str | int]
"""accelerate's `device_map`: `auto`, or a module's path → a device, `cpu` or `disk`."""

Loaded = tuple[Any, Any]
"""A model in evaluation mode, and its processor (or tokenizer)."""


def load_checkpoint(
    name: str,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: DeviceMap | None = None,
    check: bool = True,
) -> Loaded:
    """The model at a path, hub id or shipped name, in evaluation mode, and its processor (or tokenizer).

    Args:
        name: a folder (of a model, or of a peft adapter, which is merged into its base model), a hub id, `organism`,
            `organism-gold` or `smollm2`.
        device: target device; by default a GPU if there is one; `auto` stands for ``device_map="auto"``.
        dtype: by default the checkpoint's own on a GPU or with a device map, and float32 elsewhere.
        device_map: spreads the model over several devices, memory and disk, as in transformers; excludes `device`.
        check: whether weights missing, left over or of another shape are an error.

    Raises:
        RMuseError: no checkpoint there, or none that is whole; an unknown dtype or device; memory that does not suffice
            (names what would fit); a library missing that its processor or quantisation needs.
    """
    if device == "auto":
        device, device_map = None, device_map or "auto"
    if device is not None and device_map is not None:
        raise RMuseError(f"one of device and device_map was required, got {device!r} and {device_map!r}")
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise RMuseError(f"a device such as 'cpu' or 'cuda' was required, got {device!r}: {error}") from error
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(kind, torch.dtype):
        raise RMuseError(f"a dtype such as 'float32' or 'bfloat16' was required, got {dtype!r}")
    if kind is None and place.type == "cpu" and device_map is None:
        kind = torch.float32
    source = _source(name)
    base = checkpoint.adapter_base(Path(source)) if Path(source).is_dir() else None
    if base is None:
        model, processor = _load(source, place, kind, device_map, check)
    else:
        if device_map is not None:
            raise RMuseError(
                f"an adapter is merged on one device, got device_map={device_map!r} for {name}; leave it out, or merge "
                "the adapter, save the whole model and load that"
            )
        model, processor = _adapted(_load(_source(base), place, kind, None, check), Path(source))
    tokenizer = processor.tokenizer if hasattr(processor, "tokenizer") else processor
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), processor


def shipped(name: str) -> Path:
    """The folder of a shipped checkpoint: `organism`, or `organism-gold` (trained without the 5 % forget set)."""
    if name not in SHIPPED:
        raise RMuseError(f"a shipped checkpoint is one of {', '.join(SHIPPED)}; got {name!r}")
    return Path(__file__).parents[1] / "organism" / "weights" / name


def _source(name: str) -> str:
    if name in SHIPPED:
        return str(shipped(name))
    if name == SMOLLM2:
        return str(require_smollm2())
    looks_local = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    folder = Path(name).expanduser()
    if folder.exists() and not any(
        (folder / kind).exists() for kind in ("config.json", "adapter_config.json")
    ):
        raise RMuseError(
            f"a checkpoint folder with a config.json was required, {name} has none; save the model there"
        )
    if looks_local and not folder.exists():
        raise RMuseError(
            f"a checkpoint folder, a hub id or 'organism' was required, {name} does not exist; check the path"
        )
    return str(folder) if folder.exists() else name


def _load(
    source: str, place: torch.device, dtype: torch.dtype | None, device_map: DeviceMap | None, check: bool
) -> Loaded:
    import transformers

    if Path(source).is_dir():
        checkpoint.require_real(Path(source))
    offload = None if device_map is None else _scratch()
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(source)
            sees = type(config) in transformers.AutoModelForImageTextToText._model_mapping
            kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
            processor = (transformers.AutoProcessor if sees else transformers.AutoTokenizer).from_pretrained(
                source
            )
            if backend_of(processor) is not None:  # PIL for every family that has it, whatever is installed
                processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
                    source, backend="pil"
                )
            _fill_in(processor, config)
            quantised = getattr(config, "quantization_config", None)
            if quantised and not transformers.quantizers.AutoHfQuantizer.supports_quant_method(quantised):
                raise ValueError(f"transformers does not know its quantisation, {quantised}")
            if device_map is None:
                _require_room(source, place, None if quantised else dtype, getattr(config, "dtype", None))
                device_map = {"": str(place)} if quantised else None
            model, info = kind.from_pretrained(
                source,
                dtype=dtype if dtype is not None else "auto",
                device_map=device_map,
                offload_folder=None if offload is None else offload.name,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
            )
            if device_map is None:
                model.to(place)
            elif hasattr(model, "hf_device_map"):  # pipelines take the first for a device
                model.hf_device_map = dict(
                    sorted(model.hf_device_map.items(), key=lambda one: one[1] == "disk")
                )
    except RMuseError:
        raise
    except Exception as error:  # transformers and the libraries of each quantisation raise what they like
        if lacking := [name for name in ("torchvision", "num2words") if name in str(error).lower()]:
            raise RMuseError(
                f"the processor of {source} needs {lacking[0]}, which is not installed or does not fit torch: "
                "pip install 'rmuse-interp[families]'"
            ) from error
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RMuseError(f"{source} could not be loaded as an image-text or text model: {reason}") from error
    if offload is not None:
        weakref.finalize(model, offload.cleanup)
    if check:
        checkpoint.require_whole(source, info)
    return model, processor


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for weights left on the disk that the checkpoint's own files do not hold as the model needs them."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="offload-", dir=cache_folder())


def _fill_in(processor: object, config: object) -> None:
    """Give a processor saved by an old version what it needs to count image tokens; the model's config knows it."""
    vision = getattr(config, "vision_config", None)
    if getattr(processor, "patch_size", 0) is not None or vision is None:
        return
    vars(processor).update(
        patch_size=vision.patch_size,
        vision_feature_select_strategy=getattr(config, "vision_feature_select_strategy", None),
        num_additional_image_tokens=int(vision.model_type.startswith("clip")),  # CLIP's class token
    )


def room(source: str, place: torch.device, dtype: torch.dtype | None) -> Room:
    """What the weights of a checkpoint need on a device in a dtype (None: as they are), and what is free there.

    They need the bytes that the headers of their files announce, floating-point values counted in the target dtype.
    Weights that are not on this machine yet count as 0.
    """
    itemsize = None if dtype is None else dtype.itemsize
    needed = checkpoint.size_in(checkpoint.weight_files(_folder(source)), itemsize)
    kept = "" if dtype is None else f" as {str(dtype).removeprefix('torch.')}"
    return Room(f"{source}{kept}", needed, free_memory(place), place)


def _folder(source: str) -> Path:
    """The folder of a checkpoint's files; that of a hub checkpoint in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    if Path(source).is_dir():
        return Path(source)
    found = try_to_load_from_cache(source, "config.json")
    return Path(found).parent if isinstance(found, str) else Path(source)


def _require_room(
    source: str, place: torch.device, dtype: torch.dtype | None, own: torch.dtype | None
) -> None:
    """Raise unless a checkpoint fits; the message names the dtype or device in which it would."""
    half = own if own in (torch.float16, torch.bfloat16) else torch.bfloat16
    instead = "device_map='auto' leaves on the disk what does not fit, which is slow; a GPU or a smaller model is better"
    cuda = torch.device("cuda")
    if dtype is not None and dtype.itemsize > 2 and room(source, place, half).fits:
        needed = gigabytes(room(source, place, half).needed)
        instead = f"dtype={str(half).removeprefix('torch.')!r} needs {needed}"
    elif place.type == "cpu" and torch.cuda.is_available() and room(source, cuda, half).fits:
        instead = "it fits with device='cuda'"
    room(source, place, dtype).require(instead)


def _adapted(loaded: Loaded, folder: Path) -> Loaded:
    """A model with a peft adapter merged into it, and the adapter's own processor if it was saved with one."""
    import transformers

    try:
        import peft
    except ImportError as error:
        raise RMuseError(
            f"the adapter in {folder} needs the package peft, got none; pip install 'rmuse-interp[baselines]'"
        ) from error
    checkpoint.require_real(folder)
    model, processor = loaded
    try:
        with _quiet(transformers):
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
            own = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
            there = set(checkpoint.header(folder / "adapter_model.safetensors"))
            extra = {name for name in there - own if "embed" not in name and "lm_head" not in name}
            checkpoint.require_whole(str(folder), {"missing_keys": own - there, "unexpected_keys": extra})
            model = adapted.merge_and_unload()
            kinds = ("processor_config.json", "preprocessor_config.json")
            if backend_of(processor) is None and (folder / "tokenizer_config.json").is_file():
                processor = transformers.AutoTokenizer.from_pretrained(folder)
            elif any((folder / kind).is_file() for kind in kinds):
                processor = transformers.AutoProcessor.from_pretrained(folder)
                processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
                    folder, backend="pil"
                )
    except RMuseError:
        raise
    except Exception as error:  # peft raises what it likes, and has adapters that cannot be merged
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RMuseError(
            f"the adapter in {folder} could not be merged into its base model: {reason}; merge it by hand, save the "
            "whole model and load that"
        ) from error
    model.config._name_or_path = str(folder)  # a fingerprint must not take it for its base
    return model, processor


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Context without transformers' progress bars and advice."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
