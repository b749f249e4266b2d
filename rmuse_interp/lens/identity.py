"""What a model's answers depend on, as a key for cached results."""

from rmuse_interp.edits.plan import Plan
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.parts.part import to_record


def depends(model: LensModel, plan: Plan | None = None) -> list[object]:
    """List everything a model's greedy answers to a question depend on, for `store.digest`.

    Args:
        model: the model; its name, weights, dtype, chat template and generation settings are included.
        plan: the plan that runs on it, if any; its expression and tensors are included.
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
