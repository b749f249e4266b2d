"""The TransformerLens bridge of a loaded model; a plan's hooks for it are `plan.fwd_hooks(bridge)`."""

from typing import Any

from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.loading import load_checkpoint


def to_bridge(lens: LensModel) -> Any:
    """The `TransformerBridge` of a model's checkpoint, with its vision tower, processor, device and dtype.

    The checkpoint is loaded a second time, because a bridge rebuilds the modules of its model. It computes attention
    eagerly, so its logits agree with those of `lens` up to rounding.

    Args:
        lens: the model.

    Raises:
        ValueError: a family that TransformerLens has no adapter for.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    # Not `boot_transformers`: it looks for the processor by itself, and installs torchvision where that fails.
    hf_model, processor = load_checkpoint(lens.name, lens.device, lens.hf.dtype)
    bridge = build_bridge_from_module(
        hf_model,
        type(hf_model).__name__,
        hf_config=hf_model.config,
        tokenizer=getattr(processor, "tokenizer", processor),
        model_name=lens.name,
    )
    bridge.processor = processor
    return bridge
