"""`rmuse generate`: one question, its answer shown token by token, and the gate's decision."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rmuse_interp import RMuseError
from rmuse_interp.cli import options as o
from rmuse_interp.cli import support
from rmuse_interp.data.pictures import rgb

if TYPE_CHECKING:
    from rmuse_interp.edits.trace import SteeringTrace
    from rmuse_interp.lens.respond import Response
    from rmuse_interp.runs.run import Method


def generate(
    prompt: Annotated[
        str, typer.Option("--prompt", help="The question in plain words; the chat template is added.")
    ],
    model: o.Model = "organism",
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="BUNDLE",
            help="A bundle written by `rmuse fit`; without it, the model answers as it is.",
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="X", help="A picture to ask about.")
    ] = None,
    max_new_tokens: o.MaxNewTokens = 128,
    device: o.Device = None,
    dtype: o.Dtype = None,
    blocks: o.Blocks = None,
    debug: o.Debug = False,
) -> None:
    """Answer one question, steered by a bundle or not, and say what the gate decided."""
    if bundle is not None:
        support.require_bundle(bundle)
    if image is not None:
        rgb(image, "--image")  # before the model is loaded
    if not prompt.strip():
        raise RMuseError("--prompt: required a question, got an empty text")
    lens = support.open_model(model, device, dtype, blocks)
    from rmuse_interp.runs.run import Method, stream

    plan, recorder = None, None
    if bundle is not None:
        from rmuse_interp.edits.trace import Recorder
        from rmuse_interp.fitting.elicit import asked_with

        fitted = support.open_bundle(bundle, lens)
        plan, template = fitted.plan, asked_with(fitted.report)
        recorder = Recorder(fitted.subspaces)
        if template is not None and template.stepwise:
            prompt = template.put(prompt)
            support.notes.print(
                escape(f"asked as the bundle expects it: {prompt}"), style="dim", soft_wrap=True
            )
    response = stream(
        lens,
        prompt,
        None if image is None else str(image),
        plan,
        max_new_tokens=max_new_tokens,
        write=lambda words: typer.echo(words, nl=False),
        recorder=recorder,
    )
    typer.echo()
    if plan is not None:
        modality = "text" if image is None else "image"
        support.out.print(
            escape(verdict_line(Method("rmuse", lens, plan), modality, response)), style="dim", soft_wrap=True
        )
        if response.fired and response.trace is not None:
            for line in trace_lines(response.trace):
                support.out.print(escape(line), style="dim", soft_wrap=True)


def trace_lines(trace: "SteeringTrace") -> list[str]:
    """The effect of steering on the response's tokens: a line per block that it acted on, medians over those tokens."""
    found = []
    for i, site in enumerate(trace.sites):
        acted = trace.acted[0, i]
        if not bool(acted.any()):
            continue
        angle, share, before, after = (
            getattr(trace, name)[0, i][acted].nanmedian().item()
            for name in ("angle", "rrs_share", "norm_before", "norm_after")
        )
        inside = "" if math.isnan(share) else f", {100 * share:.2g} % of the update inside the RRS"
        found.append(
            f"block {site.layer}: {int(acted.sum())} of {acted.numel()} tokens steered, turned by "
            f"{math.degrees(angle):.0f}°, norm {before:.3g} → {after:.3g}{inside} (medians)"
        )
    return found


def verdict_line(method: "Method", modality: str, response: "Response") -> str:
    """The gate's decision, in one line."""
    gate = method.gates.get(modality)
    if gate is None or response.fired is None:
        return f"gate: none for {modality} questions, nothing was steered"
    said = "fired, the answer was steered" if response.fired else "did not fire, the model answered as it is"
    if response.score is None:
        return f"gate: {said} (decided token by token)"
    sign = ">" if response.score > gate.threshold else "≤"
    compared = f"score {response.score:.4g} {sign} threshold {gate.threshold:.4g}"
    return f"gate: {said} ({compared}, block {gate.layer}, {gate.readout})"
