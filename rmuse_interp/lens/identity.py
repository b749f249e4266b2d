"""What a model's answers depend on, for results that are kept and found again."""

from rmuse_interp.edits.plan import Plan
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.parts.part import to_record


def depends(model: LensModel, plan: Plan | None = None) -> list[object]:
    """All that a model's greedy answers to a question depend on, as `store.digest` takes it.

    Args:
        model: its name, weights, dtype, chat template and generation settings count.
        plan: runs on it; its expression and tensors count.
    """
    settings = getattr(model.hf, "generation_config", None)
    found: list[object] = [
        model.name,
        str(model.fingerprint),
        str(model.dtype),
        repr(getattr(model.processor, "chat_template", None)),
        None if settings is None else settings.to_json_string(),
    ]
    return found if plan is None else [*found, *to_record(plan)]
