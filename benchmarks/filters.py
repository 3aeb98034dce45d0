"""What filters that remember cost, and what `semantic_duplicate` takes for the same.

    python benchmarks/filters.py speed               # CPU time of fuzzy_duplicate and overlap, one thread
    python benchmarks/filters.py semantic STS.tsv    # SemEval's scored pairs: columns genre, score, sentence1, sentence2

`speed`: 5,000 pairs with answers of 100 words drawn from 20,000, against 100,000 evaluation texts of 100 words; minimum of 5,
each in a filter opened anew, and peak memory of the process. `semantic`: 200 pairs that people gave 4.5 or more of 5, and 200
that they gave 2.5 or less, drawn evenly: how many of either have at least the filter's cosine.
"""

import csv
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]  # a file beside this one would hide the package `align`

ROUNDS, NUM_PAIRS, NUM_TEXTS, NUM_WORDS, VOCABULARY = 5, 5_000, 100_000, 100, 20_000
SAME, OTHER, EACH = 4.5, 2.5, 200
THRESHOLDS = (0.75, 0.80, 0.85, 0.90, 0.95)


def make_pair(prompt: str, chosen: str, rejected: str) -> Any:
    """Make a pair of texts."""
    from counterfoil.records import Completion, Pair, Prompt

    asked = Prompt.make(prompt)
    sides = [
        Completion.make(
            prompt_id=asked.id, index=at, text=text, finish_reason="stop", num_prompt_tokens=1, num_tokens=1
        )
        for at, text in enumerate((chosen, rejected))
    ]
    return Pair.make(asked, sides[0], sides[1], scores=(1.0, 0.0), recipe="benchmark")


def run(judge: Any, pairs: list[Any]) -> int:
    """Judge all, remembering those that pass; return how many are dropped."""
    from counterfoil.records import Dropped

    num_dropped = 0
    for pair in pairs:
        found = judge(pair)
        if isinstance(found, Dropped):
            num_dropped += 1
        elif found is not None:
            found()
    return num_dropped


def measure_speed() -> None:
    """Print pairs a second of CPU time."""
    from synth.filters.fuzzy_duplicate import FuzzyDuplicate
    from synth.filters.overlap import Overlap

    draw = random.Random(0)
    words = [f"word{number}" for number in range(VOCABULARY)]

    def text() -> str:
        return " ".join(draw.choices(words, k=NUM_WORDS))

    pairs = [make_pair(f"Ask {number}.", text(), text()) for number in range(NUM_PAIRS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluation.jsonl"
        path.write_text("".join(json.dumps({"text": text()}) + "\n" for _ in range(NUM_TEXTS)))
        for name, item in (("fuzzy_duplicate", FuzzyDuplicate()), ("overlap", Overlap(sets=(path,)))):
            opened: list[float] = []
            judged: list[float] = []
            for _ in range(ROUNDS):
                started = time.process_time()
                judge = item.open()
                opened.append(time.process_time() - started)
                started = time.process_time()
                run(judge, pairs)
                judged.append(time.process_time() - started)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{name}: opens in {min(opened):.2f} s, {NUM_PAIRS / min(judged):,.0f} pairs a second; peak {peak:.0f} MB"
            )


def measure_semantic(path: Path) -> None:
    """Print the share of near-paraphrases and of others that is dropped, by threshold: those whose cosine is as large."""
    from decode.embedders.sentence_transformers import SentenceTransformers

    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [row for row in rows if row["sentence1"].strip() != row["sentence2"].strip()]
    draw = random.Random(0)
    kinds = {
        "near-paraphrases": draw.sample([row for row in rows if float(row["score"]) >= SAME], EACH),
        "others": draw.sample([row for row in rows if float(row["score"]) <= OTHER], EACH),
    }
    embed = SentenceTransformers().open()
    cosines = [
        (embed([row["sentence1"] for row in chosen]) * embed([row["sentence2"] for row in chosen])).sum(1)
        for chosen in kinds.values()
    ]
    print("| `similarity` | near-paraphrases dropped | others dropped |\n|--:|--:|--:|")
    for similarity in THRESHOLDS:
        shares = [100 * float((own >= similarity).mean()) for own in cosines]
        print(f"| {similarity:.2f} | {shares[0]:.1f} % | {shares[1]:.1f} % |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["speed"]:
        measure_speed()
    elif sys.argv[1:2] == ["semantic"] and len(sys.argv) == 3:
        measure_semantic(Path(sys.argv[2]))
    else:
        print(__doc__)
