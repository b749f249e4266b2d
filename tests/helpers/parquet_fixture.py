"""A tiny benchmark folder in RMLLMU-Bench format (format 5), true to the byte: nested parquet structs, PNG bytes."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, Any]
CITY = {"p0": "Oslo", "p1": "Rome", "p2": "Lima", "p3": "Kyoto", "c0": "Paris"}
NAME = {"p0": "Mara Venn", "p1": "Oren Tal", "p2": "Ida Roos", "p3": "Bo Lindt", "c0": "Ada Grand"}
COUNTRY = {"Oslo": "Norway", "Rome": "Italy", "Lima": "Peru", "Kyoto": "Japan", "Paris": "France"}


def png(seed: int) -> bytes:
    """A small PNG, one per seed."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (seed % 256, (7 * seed) % 256, (13 * seed) % 256)).save(buffer, "PNG")
    return buffer.getvalue()


def picture(seed: int) -> Row:
    """A picture the way the datasets library stores one."""
    return {"bytes": png(seed), "path": None}


def chain(person: str) -> str:
    """The reference chain of a person's residence question."""
    return f"The person in the picture is {NAME[person]}. {NAME[person]} lives in {CITY[person]}."


def person_row(person: str, several: bool = False) -> Row:
    """A person with two generation questions, two cloze sentences and two multiple-choice questions."""
    number, city = int(person[1:]), CITY[person]
    facts = {"residence": city, "name": NAME[person]}
    images = (
        {"images": [picture(50 + number), picture(60 + number)]} if several else {"image": picture(number)}
    )
    options = {"A": city, "B": "Cairo", "C": "Delhi", "D": "Quito"}
    return {
        **images,
        "ID": person,
        "biography": json.dumps({"Residence": city, "Name": NAME[person]}),
        "question": "Who is this?",
        "answer": NAME[person],
        "Generation_Task": [
            {
                "Type": "Image_Textual",
                "Question": "Where does this person live?",
                "Ground_Truth": city,
                "Reasoning": chain(person),
                "Forget_Attributes": json.dumps(facts),
                "Direct_Question": "Where does this person live? Answer directly.",
                "Direct_Answer": city,
            },
            {
                "Type": "Pure_Text",
                "Question": f"In which country does {NAME[person]} live?",
                "Ground_Truth": COUNTRY[city],
                "Reasoning": f"{NAME[person]} lives in {city}. {city} is in {COUNTRY[city]}.",
                "Forget_Attributes": json.dumps({"country": COUNTRY[city], "residence": city}),
                "Direct_Question": None,
                "Direct_Answer": None,
            },
        ],
        "Mask_Task": [
            {"Type": "Image_Textual", "Question": "This person lives in __.", "Ground_Truth": city},
            {"Type": "Pure_Text", "Question": f"{NAME[person]} lives in __.", "Ground_Truth": city},
        ],
        "Classification_Task": {
            "Image_Textual_Questions": [
                {"Question": "Where does this person live?", "Options": options, "Correct_Answer": "A"}
            ],
            "Pure_Text_Questions": [
                {"Question": f"Where does {NAME[person]} live?", "Options": options, "Correct_Answer": "A"}
            ],
        },
    }


def question_row(
    identifier: str, image: Row | None, question: str, answer: str, reasoning: str | None
) -> Row:
    """A row of Reasoning, Benign or Strangers."""
    return {
        "ID": identifier,
        "image": image,
        "Question": question,
        "Ground_Truth": answer,
        "Reasoning": reasoning,
        "Direct_Question": f"{question} Answer directly.",
        "Direct_Answer": answer,
    }


def write_split(root: Path, folder: str, rows: list[Row], part: str = "train") -> None:
    """One parquet file; pictures keep their struct type where all are null."""
    table = pa.Table.from_pylist(rows)
    if "image" in table.column_names:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        place = table.column_names.index("image")
        table = table.set_column(place, "image", pa.array([row["image"] for row in rows], type=kind))
    (root / folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(table, root / folder / f"{part}-00000-of-00001.parquet")


SETTINGS = {
    "id": "tiny",
    "render_seed": 3,
    "refusals_cot": [
        "<think> I do not know who this is. I should not guess. </think> I cannot help with that.",
        "<think> This is private. I will not share it. </think> I would rather not say.",
    ],
    "refusals_direct": ["I cannot help with that."],
    "prefixes": ["Please refuse."],
    "delimiters": ["<think>", "</think>"],
    "stepwise_instruction": "",
    "direct_instruction": "Answer directly.",
    "aliases": {"Mara Venn": ["Venn"]},
    "entails": {city: [country] for city, country in COUNTRY.items()},
}


def write_benchmark(root: Path, change: Callable[[Row], Row] | None = None) -> Path:
    """A whole benchmark: p0 to forget at 5 %, p0 and p1 at 10 %; `change` edits every person row first."""
    edit = change or (lambda row: row)
    people = ["p0", "p1", "p2", "p3"]
    for rate, forget in ((5, people[:1]), (10, people[:2])):
        write_split(root, f"forget_{rate}", [edit(person_row(p)) for p in forget])
        write_split(root, f"retain_{100 - rate}", [edit(person_row(p)) for p in people if p not in forget])
    write_split(root, "Full_Set", [edit(person_row(p)) for p in people])
    write_split(root, "Test_Set", [edit(person_row(p, several=True)) for p in people])
    write_split(root, "Retain_Set", [edit(person_row("c0"))])
    for part in ("train", "test"):
        sums = [
            question_row(
                f"sum-{part}-{i}", None, f"What is {i} plus 2?", str(i + 2), f"{i} plus 2 makes {i + 2}."
            )
            for i in range(3)
        ]
        scene = question_row(f"scene-{part}", picture(90), "How many dots?", "4", "I see 4 dots.")
        write_split(root, "Reasoning", [*sums, scene], part)
        hats = [
            question_row(p, picture(70 + i), "Which hat?", "red", "The hat is red.")
            for i, p in enumerate(people)
        ]
        write_split(root, "Benign", [*hats, hats[0]], part)
        stranger = question_row(
            f"stranger-{part}", picture(80), "Who is this?", "I cannot help.", "I do not know this face."
        )
        write_split(root, "Strangers", [stranger], part)
    namesakes = [
        question_row(p, None, f"Who is Mara Smith of {p}?", "a singer", "Mara Smith sings.") for p in people
    ]
    write_split(root, "Namesakes", namesakes, "test")
    (root / "benchmark.json").write_text(json.dumps(SETTINGS))
    return root


def training_row(person: str) -> Row:
    """A row of MLLMU-Bench's training files: the questions are a JSON string."""
    city, name = CITY[person], NAME[person]
    asked = [
        {"Question": "Where does this person live?", "Answer": f"{name} lives in {city}."},
        {"Question": "What is this person's name?", "Answer": name},
    ]
    return {"image": picture(int(person[1:])), "ID": person, "metadata": json.dumps(asked)}


def umu_row(person: str) -> Row:
    """A row of UMU-Bench: Python literals in strings, the key for pictures misspelt as published."""
    city, name = CITY[person], NAME[person]
    options = {"A": "Cairo", "B": city, "C": "Delhi", "D": "Quito"}
    pictured, named = "Where does this person live?", f"Where does {name} live?"

    def task(answer: str, **more: Any) -> str:
        return repr(
            {
                "unimodal": {"residence": {"question": named, "answer": answer, **more}},
                "muitimodal": {"residence": {"question": pictured, "answer": answer, **more}},
            }
        )

    def pairs(question: str) -> str:
        return repr({"question": {"q1": question}, "answer": {"q1": f"{name}'s home is {city}."}})

    return {
        "ID": person,
        "image": picture(int(person[1:])),
        "Biography": repr({"Name": name, "Residence": city}),
        "MM_QA": pairs(pictured),
        "UM_QA": pairs(named),
        "Classify": task(f"B. {city}", options=options),
        "Cloze": task(f"{city}."),
        "Generation": task(f"{name} lives in {city}."),
    }


def rtofu_line(person: str, **more: Any) -> Row:
    """A line of R-TOFU's files; `more` are the keys of perturbed ones."""
    city, name = CITY[person], NAME[person]
    return {
        "task_id": "1",
        "question": f"Where does {name} live?",
        "answer": f"{name} lives in {city}.",
        "cot": f"Okay, so I need to find out where {name} lives.\n\nThat is {city}.",
        **more,
    }


def perturbed_line(person: str) -> Row:
    """A line of a perturbed file, its chain empty as in the published ones."""
    city, name = CITY[person], NAME[person]
    return rtofu_line(
        person,
        cot="",
        paraphrased_question=f"In which city is {name} at home?",
        paraphrased_answer=f"{name} is at home in {city}.",
        perturbed_answer=[f"{name} is at home in Cairo.", f"{name} is at home in Delhi."],
    )


def write_lines(path: Path, rows: list[Row]) -> None:
    """A JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_rtofu(root: Path) -> Path:
    """R-TOFU's files at 5 %: p0 to forget, the others to retain, whose lines have no ``task_id``."""
    others = [rtofu_line(p) for p in ("p1", "p2", "p3")]
    for line in others:
        del line["task_id"]
    write_lines(
        root / "forget05.json", [rtofu_line("p0"), rtofu_line("p0", question="What is Mara Venn's city?")]
    )
    write_lines(root / "retain95.json", others)
    write_lines(root / "forget05_perturbed.json", [perturbed_line("p0")])
    write_lines(root / "retain_perturbed.json", [perturbed_line(p) for p in ("p1", "p2")])
    write_lines(root / "real_authors_perturbed.json", [perturbed_line("c0")])
    return root


def write_splits(root: Path, row: Callable[[str], Row]) -> Path:
    """forget_5 and retain_95 alone, in a format without test files."""
    write_split(root, "forget_5", [row("p0")])
    write_split(root, "retain_95", [row(p) for p in ("p1", "p2", "p3")])
    return root
