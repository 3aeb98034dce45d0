"""An embedder before and after training on pairs, by loss and seed: similarity of sentences, and paragraphs found again.

    python benchmarks/embedder.py --sts STS.tsv --cos-e FOLDER --wikitext FOLDER [--losses info_nce ...] [--seeds 0 1 2]

sts: SemEval's scored pairs (a TSV with the columns genre, score, sentence1, sentence2). Rows are put into two sides by the
sentences that they share, so that no sentence is on both. Trained on: pairs of the one side that people scored 4 of 5 or
more. Measured: Spearman's correlation of cosines with the scores of the other side.

wiki: paragraphs of WikiText-2. The anchor is a sentence from the middle of a paragraph, the positive is the paragraph
without it (for `pooled` its sentences, pooled). Trained on valid.txt. Measured on test.txt: the reciprocal rank of a
sentence's own paragraph among all, 0 below rank 10.

cos_e: CommonsenseQA's questions and people's explanations of the right answer. The anchor is a question without its
choices, the positive is the explanation, of five words or more and nobody else's. Trained on the training split. Measured
on the other one: the reciprocal rank of a question's explanation among all, 0 below rank 10.

Every training is a run of `align embed` in a folder of its own, so an interrupted benchmark goes on. Differences are after
minus before on the same rows, averaged over seeds; their 95 % intervals come from drawing rows anew, and say nothing of
other seeds.
"""

import argparse
import csv
import json
import random
import re
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]  # a file beside this one would hide the package `align`

LOSSES: dict[str, dict[str, Any]] = {
    "info_nce": {"name": "info_nce"},
    "info_nce both sides": {"name": "info_nce", "sides": "both"},
    "guided": {"name": "guided", "temperature": 0.05},
    "whitened": {"name": "whitened"},
    "inverse_propensity": {"name": "inverse_propensity"},
    "hard_mixing": {"name": "hard_mixing"},
    "own_temperatures": {"name": "own_temperatures"},
    "weighted_targets": {"name": "weighted_targets"},
    "weighted_targets, paper": {"name": "weighted_targets", "sharpness": 1.0},
    "momentum_queue": {"name": "momentum_queue"},
    "pooled": {"name": "pooled"},
}
TRAINED = {"sts": 256, "cos_e": 768, "wiki": 256}
MEASURED = {"sts": 600, "cos_e": 600, "wiki": 300}
"""Rows."""
SETTINGS: dict[str, Any] = {"batch_size": 32, "epochs": 1, "learning_rate": 5e-5, "max_tokens": 64}
POSITIVE = 4.0
SENTENCES = re.compile(r"(?<=[.!?]) +(?=[A-Z\"])")
MIN_SENTENCES, MIN_WORDS, MIN_EXPLANATION = 3, 8, 5
RESAMPLES = 1999


class Task(NamedTuple):
    """What is trained on, and what is measured."""

    pairs: list[tuple[str, str]]
    left: list[str]
    right: list[str]
    gold: list[float] | None
    """Scores of (left, right); None where left i is to find right i."""


def read_sts(path: Path) -> Task:
    """Put rows into two sides that share no sentence."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [
            (row["sentence1"], row["sentence2"], float(row["score"]))
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    root: dict[str, str] = {}

    def find(text: str) -> str:
        while root.setdefault(text, text) != text:
            text = root[text]
        return text

    for one, other, _ in rows:
        root[find(one)] = find(other)
    groups: dict[str, list[tuple[str, str, float]]] = {}
    for row in rows:
        groups.setdefault(find(row[0]), []).append(row)
    order = list(groups.values())
    random.Random(0).shuffle(order)
    measured: list[tuple[str, str, float]] = []
    while len(measured) < MEASURED["sts"]:
        measured += order.pop()
    pairs = [(one, other) for group in order for one, other, score in group if score >= POSITIVE and one != other]
    seen = {text for one, other, _ in measured for text in (one, other)}
    assert not seen & {text for pair in pairs for text in pair}
    left, right, gold = (list(column) for column in zip(*measured, strict=True))
    return Task(pairs[: TRAINED["sts"]], left, right, gold)


def read_wiki(folder: Path) -> Task:
    """Take a sentence out of the middle of each paragraph."""
    return _find(_ask(folder / "valid.txt"), _ask(folder / "test.txt"), "wiki")


def read_cos_e(folder: Path) -> Task:
    """Join questions and explanations."""
    return _find(_explain(folder, "train"), _explain(folder, "dev"), "cos_e")


def _find(pairs: list[tuple[str, str]], asked: list[tuple[str, str]], name: str) -> Task:
    """Let the left of what is asked find its right; what is trained on shares no text with it."""
    asked = asked[: MEASURED[name]]
    seen = {text for pair in asked for text in pair}
    pairs = [pair for pair in pairs if not seen & set(pair)][: TRAINED[name]]
    return Task(pairs, [one for one, _ in asked], [other for _, other in asked], None)


def _explain(folder: Path, split: str) -> list[tuple[str, str]]:
    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    said = {
        row["id"]: " ".join(row["explanation"]["open-ended"].split())
        for row in read(f"cose_{split}_v1.0_processed.jsonl")
    }
    asked = {row["id"]: row["question"]["stem"] for row in read(f"{split}_rand_split.jsonl")}
    times = Counter(said.values())
    kept = {name: text for name, text in said.items() if times[text] == 1 and len(text.split()) >= MIN_EXPLANATION}
    return [(asked[name], text) for name, text in kept.items() if text != asked[name]]


def _ask(path: Path) -> list[tuple[str, str]]:
    from eval.prefixes import read_paragraphs

    found: list[tuple[str, str]] = []
    for paragraph in dict.fromkeys(read_paragraphs(path)):
        sentences = SENTENCES.split(paragraph.text)
        if len(sentences) >= MIN_SENTENCES:
            at = len(sentences) // 2
            if len(sentences[at].split()) >= MIN_WORDS:
                found.append((sentences[at], " ".join(sentences[:at] + sentences[at + 1 :])))
    return found  # neighbours: paragraphs of one article are the hardest to tell apart


def measure(task: Task, model: str, keep: Path) -> list[float]:
    """Return a number a measured row: the cosine, or the reciprocal rank."""
    if keep.is_file():
        return json.loads(keep.read_text())
    import numpy as np

    from decode.embedders.sentence_transformers import SentenceTransformers

    embed = SentenceTransformers(model=model).open()
    texts = sorted({*task.left, *task.right})
    at = {text: number for number, text in enumerate(texts)}
    vectors = embed([" ".join(text.split()[:48]) for text in texts])  # as long as what is read in training
    left, right = (vectors[[at[text] for text in side]] for side in (task.left, task.right))
    if task.gold is not None:
        values = (left * right).sum(1)
    else:
        cosines = left @ right.T
        ranks = 1 + (cosines > cosines.diagonal()[:, None]).sum(1)
        values = np.where(ranks <= 10, 1 / ranks, 0.0)
    keep.parent.mkdir(parents=True, exist_ok=True)
    keep.write_text(json.dumps([float(value) for value in values]))
    return json.loads(keep.read_text())


def train(name: str, task: Task, loss: str, seed: int, to: Path) -> list[float]:
    """Train and measure, or find it done."""
    from align.embed import Embed
    from counterfoil.config import build

    pools = name == "wiki" and loss == "pooled"
    data = to / name / ("pools.jsonl" if pools else "pairs.jsonl")
    data.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"anchor": one, "positive": other} | (_pool(one, other) if pools else {}) for one, other in task.pairs]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = to / name / loss.replace(" ", "_").replace(",", "") / str(seed)
    keep = folder.with_suffix(".json")
    if not keep.is_file():
        job = build(Embed, {"data": str(data), "loss": LOSSES[loss], "seed": seed, **SETTINGS}, source="benchmark")
        done = job.run(folder, quiet=True)
        measure(task, str(done.path("model")), keep)
    return json.loads(keep.read_text())


def _pool(anchor: str, paragraph: str) -> dict[str, Any]:
    """Return a paragraph as one positive out of its sentences, all of one weight."""
    parts = [part for part in dict.fromkeys(SENTENCES.split(paragraph)) if part.strip() not in ("", anchor.strip())]
    return {"positive": parts[0], "shares": dict.fromkeys(parts, 1 / len(parts))}


def compare(task: Task, before: list[float], after: list[list[float]]) -> tuple[float, Any, list[float]]:
    """Return the figure before, the mean difference over seeds with its interval, and each seed's difference."""
    import numpy as np
    from scipy.stats import bootstrap, rankdata

    from eval.stats import Interval, paired_difference

    if task.gold is None:
        mean = np.mean(after, axis=0).tolist()
        each = [float(np.mean(one) - np.mean(before)) for one in after]
        return float(np.mean(before)), paired_difference(before, mean), each

    def correlate(one: Any, other: Any) -> float:
        return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])

    def difference(gold: Any, first: Any, *others: Any) -> float:
        return float(np.mean([correlate(gold, other) for other in others])) - correlate(gold, first)

    given = (task.gold, before, *after)
    found = bootstrap(
        given, difference, paired=True, vectorized=False, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    each = [correlate(task.gold, one) - correlate(task.gold, before) for one in after]
    return correlate(task.gold, before), Interval(difference(*given), float(found.low), float(found.high)), each


def main() -> None:
    """Print the table, a row as soon as it is known."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--sts", type=Path)
    ask.add_argument("--cos-e", type=Path)
    ask.add_argument("--wikitext", type=Path)
    ask.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    ask.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    ask.add_argument("--to", type=Path, default=Path("runs/embedder"))
    given = ask.parse_args()
    sources = {"sts": (given.sts, read_sts), "cos_e": (given.cos_e, read_cos_e), "wiki": (given.wikitext, read_wiki)}
    print("| task | loss | before | difference (95 %) | by seed |\n|---|---|---|---|---|")
    for name, (source, read) in sources.items():
        if source is None:
            continue
        task = read(source)
        before = measure(task, "minilm", given.to / name / "before.json")
        for loss in given.losses:
            after = [train(name, task, loss, seed, given.to) for seed in given.seeds]
            base, found, each = compare(task, before, after)
            shown = f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
            print(f"| {name} | {loss} | {base:.3f} | {shown} | {' '.join(f'{one:+.3f}' for one in each)} |", flush=True)
    used = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"\n{used:.0f} CPU seconds in this process (runs that were found done took theirs before)")


if __name__ == "__main__":
    main()
