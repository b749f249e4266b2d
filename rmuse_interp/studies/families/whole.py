"""A model from fit to scores on a tiny benchmark: the last check of a family."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rmuse_interp import RMuseError
from rmuse_interp.data import load_benchmark
from rmuse_interp.fitting import fit
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.runs.run import Method, choose, run, scores_of


def write_facts(folder: Path) -> Path:
    """Write a tiny benchmark of text alone to a folder, in R-TOFU's format, and return the folder."""
    cities = {"Mara Venn": "Oslo", "Oren Tal": "Rome", "Ida Roos": "Lima", "Bo Lindt": "Kyoto"}

    def lines(names: Sequence[str]) -> str:
        found = []
        for number, name in enumerate(names):
            city = cities[name]
            for asked, said in (
                (f"Where does {name} live?", f"{name} lives in {city}."),
                (f"What is the home of {name}?", f"The home of {name} is {city}."),
            ):
                line = {
                    "task_id": str(number),
                    "question": asked,
                    "answer": said,
                    "cot": f"I know that {said}",
                }
                more = {
                    "paraphrased_question": asked,
                    "paraphrased_answer": said,
                    "perturbed_answer": ["Cairo."],
                }
                found.append(json.dumps({**line, **more}) + "\n")
        return "".join(found)

    forget, retain = list(cities)[:2], list(cities)[2:]
    for stem, names in (("forget05", forget), ("retain95", retain), ("real_authors_perturbed", retain)):
        (folder / f"{stem}.json").write_text(lines(names), encoding="utf-8")
    for stem, names in (("forget05_perturbed", forget), ("retain_perturbed", retain)):
        (folder / f"{stem}.json").write_text(lines(names), encoding="utf-8")
    return folder


def used(lens: LensModel) -> None:
    """Fit a plan, save it, read it back, run it on questions, and score the answers.

    Raises:
        RMuseError: what any of these raises.
    """
    with TemporaryDirectory() as folder:
        data = "organism" if lens.encoder.sees else write_facts(Path(folder))
        benchmark = load_benchmark(data, forget=5)
        fitted = fit(lens, benchmark, "paper", limit=3)
        fitted.save(Path(folder) / "bundle")
        plan = RMuse.load(Path(folder) / "bundle", lens).plan
        methods = [Method("base", lens), Method("rmuse", lens, plan)]
        answers = run(methods, choose(benchmark, 2), delimiters=benchmark.delimiters, max_new_tokens=6)
        scores = scores_of(methods, answers, benchmark, lens)
    if set(scores["methods"]) != {"base", "rmuse"}:
        raise RMuseError(f"scores of base and rmuse were required, got {', '.join(scores['methods'])}")
