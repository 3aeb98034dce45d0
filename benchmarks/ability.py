"""Pairs of a right and a wrong text of tasks that no preference pair is about: what a training may have cost.

    python benchmarks/ability.py --cos-e FOLDER --wikitext FOLDER --svamp FILE --to FOLDER
    counterfoil eval preferences pairs=FOLDER/cos_e.jsonl adapters=RUN,RUN         # and wiki.jsonl, svamp.jsonl

cos_e.jsonl: 200 questions of CommonsenseQA's dev set, each right option against each wrong one. wiki.jsonl: 100 paragraphs of
WikiText-2's test set, the 26th to 65th word against those of another paragraph, after the first 25. svamp.jsonl: 200 sums and
differences of SVAMP, the right number against what the other operation gives.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]  # a file beside this one would hide the package `align`

QUESTIONS, PARAGRAPHS, SUMS = 200, 100, 200
BEGINNING, REST = 25, 40
"""Words."""

Row = dict[str, Any]


def ask(question: str, right: str, wrong: str) -> Row:
    """Set two answers to a question against each other, as plain text."""
    return {"prompt": f"Question: {question}\nAnswer:", "chosen": f" {right}", "rejected": f" {wrong}"}


def read_cos_e(folder: Path) -> Iterator[Row]:
    """Set each right option against each wrong one."""
    lines = (folder / "dev_rand_split.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines[:QUESTIONS]:
        row = json.loads(line)
        options = {item["label"]: item["text"] for item in row["question"]["choices"]}
        right = options.pop(row["answerKey"])
        yield from (ask(row["question"]["stem"], right, wrong) for wrong in options.values())


def read_wikitext(folder: Path) -> Iterator[Row]:
    """Set a paragraph's words against those of the one 50 further on."""
    from eval.prefixes import read_paragraphs

    texts = [item.text.split() for item in read_paragraphs(folder / "test.txt")]
    texts = [words for words in texts if len(words) >= BEGINNING + REST][: 2 * PARAGRAPHS]
    for at, words in enumerate(texts[:PARAGRAPHS]):
        other = texts[(at + PARAGRAPHS // 2) % len(texts)]
        begin, rest = " ".join(words[:BEGINNING]), slice(BEGINNING, BEGINNING + REST)
        yield {"prompt": begin, "chosen": " " + " ".join(words[rest]), "rejected": " " + " ".join(other[rest])}


def read_svamp(path: Path) -> Iterator[Row]:
    """Set the right number against that of the other operation, where both are whole and not below 0."""
    count = 0
    for row in json.loads(path.read_text(encoding="utf-8")):
        found = re.fullmatch(r"\( (\d+)\.0 ([+-]) (\d+)\.0 \)", row["Equation"])
        if found is None or count == SUMS:
            continue
        one, sign, other = int(found[1]), found[2], int(found[3])
        right, wrong = (one + other, one - other) if sign == "+" else (one - other, one + other)
        if min(right, wrong) >= 0 and right != wrong:
            count += 1
            body = row["Body"].rstrip(". ")
            yield ask(f"{body}. {row['Question']}", str(right), str(wrong))


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cos-e", type=Path)
    parser.add_argument("--wikitext", type=Path)
    parser.add_argument("--svamp", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    parts = {
        "cos_e": (read_cos_e, given.cos_e),
        "wiki": (read_wikitext, given.wikitext),
        "svamp": (read_svamp, given.svamp),
    }
    for name, (read, path) in parts.items():
        if path is not None:
            rows = list(read(path))
            (given.to / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            print(f"{name}.jsonl: {len(rows)} pairs")


if __name__ == "__main__":
    main()
