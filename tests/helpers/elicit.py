"""A model that says what it is told to say."""

from rmuse_interp.fitting.elicit import TEMPLATES
from rmuse_interp.lens.respond import Response

THINK = ("<think>", "</think>")
VIEWS = ("fit_forget", "fit_retain", "fit_reasoning", "fit_benign")


def bare(row):
    """A person as MLLMU-Bench has them: no reasoning, no facts, no direct form."""
    added = ("Reasoning", "Forget_Attributes", "Direct_Question", "Direct_Answer")
    tasks = [{k: v for k, v in task.items() if k not in added} for task in row["Generation_Task"]]
    return {**row, "Generation_Task": tasks}


def scripted(lens, monkeypatch, say):
    """Has the model say `say(prompt, image)`; the list it returns holds the prompts asked unsteered, batch by batch."""
    batches: list[list[str]] = []

    def respond(prompts, images=None, plan=None, *_rest, **_settings):
        if plan is None:  # trials of a plan ask too
            batches.append(list(prompts))
        return [Response(say(p, i), None, None) for p, i in zip(prompts, images, strict=True)]

    monkeypatch.setattr(lens, "respond", respond, raising=False)
    return batches


def spoken(prompt, _image=None):
    """What a model that follows the template `reasoning` says."""
    if prompt.endswith(TEMPLATES["reasoning"].direct):
        return "Lima"
    return f"Reasoning: I was asked {len(prompt)} letters.\nAnswer: Lima"
