"""The prompts on which the headers of configs/synth are measured, out of public data sets; none of these travels with us.

    python benchmarks/inputs.py --to FOLDER [--halueval FILE] [--proofwriter FILE] [--cos-e FILE] [--aqua FILE] [--svamp FILE]

flaw.jsonl: the first 12 of HaluEval's general answers (general_data.json) of 20 to 80 words in which a rule finds a place for
a number and for a negation. counterfactual.jsonl: the first four questions of ProofWriter (logic-LLM's proofwriter_dev.json),
of CoS-E's dev set (dev_rand_split.jsonl) and of AQuA's (dev.json). rationales.jsonl: the first 16 problems of SVAMP with a
whole number for an answer, weak_to_strong.jsonl the first 12 of these. operations.jsonl: the first 120 of SVAMP with their
operation for an answer. reviews.jsonl: 12 reviews of our own, of a sentence each.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]  # a file beside this one would hide the package `align`

Row = dict[str, Any]
REVIEWS = [
    ("The soup was wonderful, but our waiter never came back.", "food", "positive"),
    ("The soup was wonderful, but our waiter never came back.", "service", "negative"),
    ("The staff were kind and the tables stood far too close together.", "service", "positive"),
    ("The staff were kind and the tables stood far too close together.", "room", "negative"),
    ("For that price I expected more than a cold burger.", "food", "negative"),
    ("A cosy room with candles, and the wine list is long.", "room", "positive"),
    ("The screen is bright and sharp, the battery is empty by noon.", "screen", "positive"),
    ("The screen is bright and sharp, the battery is empty by noon.", "battery", "negative"),
    ("It starts in seconds, although the fan is loud.", "speed", "positive"),
    ("It starts in seconds, although the fan is loud.", "noise", "negative"),
    ("The keyboard is a joy to type on.", "keyboard", "positive"),
    ("Support answered my question after three weeks.", "support", "negative"),
]


def read_json(path: Path) -> list[Any]:
    """Read a JSON list, or JSON lines."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]


def read_halueval(path: Path) -> Iterator[Row]:
    """Yield answers with a place for both faults."""
    from synth.faults import RULES

    for row in read_json(path):
        answer = row["chatgpt_response"].strip()
        if 20 <= len(answer.split()) <= 80 and RULES["number"](answer) and RULES["negation"](answer):
            yield {"prompt": row["user_query"], "reference": {"answer": answer}}


def choose(prompt: str, options: list[str], answer: str, context: str = "") -> Row:
    """Make a question of several options, without their letters."""
    reference = {"options": options, "answer": answer} | ({"context": context} if context else {})
    return {"prompt": prompt, "reference": reference}


def read_proofwriter(path: Path) -> Iterator[Row]:
    """Yield questions with their contexts."""
    for row in read_json(path):
        options = [text.split(") ", 1)[1] for text in row["options"]]
        yield choose(f"{row['context']}\n{row['question']}", options, row["answer"], row["context"])


def read_cos_e(path: Path) -> Iterator[Row]:
    """Yield questions."""
    for row in read_json(path):
        options = {item["label"]: item["text"] for item in row["question"]["choices"]}
        yield choose(row["question"]["stem"], list(options.values()), row["answerKey"])


def read_aqua(path: Path) -> Iterator[Row]:
    """Yield questions."""
    for row in read_json(path):
        yield choose(row["question"], [text.split(")", 1)[1] for text in row["options"]], row["correct"])


def read_svamp(path: Path) -> Iterator[Row]:
    """Yield problems; the reference has the number and the operation."""
    for row in read_json(path):
        if float(row["Answer"]).is_integer():
            body = row["Body"].rstrip(". ")
            reference = {"answer": str(int(row["Answer"])), "operation": row["Type"]}
            yield {"prompt": f"{body}. {row['Question']}", "reference": reference}


def keep(row: Row, key: str) -> Row:
    """Return a problem with one of its two answers."""
    return {"prompt": row["prompt"], "reference": {"answer": row["reference"][key]}}


def main() -> None:
    """Write what can be written of what is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    sources: dict[str, Callable[[Path], Iterator[Row]]] = {
        "halueval": read_halueval,
        "proofwriter": read_proofwriter,
        "cos_e": read_cos_e,
        "aqua": read_aqua,
        "svamp": read_svamp,
    }
    for name in sources:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path)
    given = parser.parse_args()
    found = {name: list(read(path)) for name, read in sources.items() if (path := getattr(given, name)) is not None}
    written: dict[str, list[Row]] = {
        "flaw": list(islice(found.get("halueval", []), 12)),
        "counterfactual": [row for name in ("proofwriter", "cos_e", "aqua") for row in found.get(name, [])[:4]],
        "rationales": [keep(row, "answer") for row in found.get("svamp", [])[:16]],
        "weak_to_strong": [keep(row, "answer") for row in found.get("svamp", [])[:12]],
        "operations": [keep(row, "operation") for row in found.get("svamp", [])[:120]],
        "reviews": [
            {"prompt": text, "reference": {"aspect": aspect, "polarity": side}} for text, aspect, side in REVIEWS
        ],
    }
    given.to.mkdir(parents=True, exist_ok=True)
    for name, rows in written.items():
        if rows:
            (given.to / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            print(f"{name}.jsonl: {len(rows)} prompts")


if __name__ == "__main__":
    main()
