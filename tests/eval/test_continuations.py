"""Texts of methods compared: what is cut, what is left out, what is refused; texts written by hand, a random model reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterfoil.errors import InputError
from counterfoil.job import Finished
from decode.engines.scripted import Scripted
from decode.generate import Generate
from eval.continuations import Continuations
from eval.repetition import diversity

HUMAN = [
    "the mill stood by the river",
    "a grey cat slept all day",
    "snow fell on the hills",
    "we sang until morning came",
]
Compare = Callable[..., Finished]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Once, in year {at},", "reference": {"text": f" {text}"}} for at, text in enumerate(HUMAN)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def compare(tmp_path: Path, prompts: Path, tiny_model: Path) -> Compare:
    def run(*parts: Path, **settings: Any) -> Finished:
        job = Continuations(prompts=prompts, parts=parts, model=str(tiny_model), **settings)
        return job.run(tmp_path / f"compared_{len(list(tmp_path.iterdir()))}", quiet=True)

    return run


def write(prompts: Path, folder: Path, texts: list[str]) -> Path:
    """Make a finished run whose answers are `texts`, in the order of the prompts."""
    part = Generate(prompts=prompts, engine=Scripted(), chat=False).run(folder, quiet=True).folder
    path = part / "completions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"text": text}) + "\n" for row, text in zip(rows, texts, strict=False)))
    return part


def read(done: Finished, name: str = "summary.json") -> Any:
    return json.loads((done.folder / name).read_text(), parse_constant=pytest.fail)


def test_all_texts_are_cut_before_anything_is_measured(tmp_path: Path, prompts: Path, compare: Compare) -> None:
    part = write(prompts, tmp_path / "part", [" round and round and round and round"] * 4)
    methods = read(compare(part, max_tokens=3))["methods"]
    assert methods["part"]["diversity"]["mean"] == 1, "what repeats itself is cut off"
    assert methods["part"]["tokens"]["mean"] == methods["human"]["tokens"]["mean"] == 3
    whole = read(compare(part))["methods"]
    assert whole["part"]["diversity"]["mean"] == pytest.approx(
        diversity(["round and round and round and round"]), abs=1e-4
    )


def test_empty_texts_are_counted_and_have_no_coherence(tmp_path: Path, prompts: Path, compare: Compare) -> None:
    texts = [" a b", " c d", " e f", " g h"]
    some = write(prompts, tmp_path / "some", ["", *texts[1:]])
    none = write(prompts, tmp_path / "none", ["", "", " \n", ""])
    done = compare(some, none, embedder=None)
    summary = read(done)
    assert summary["empty"] == {"human": 0, "some": 1, "none": 4}
    empty = {"mean": None, "low": None, "high": None}
    for key in ("coherence, log-prob", "perplexity"):
        assert summary["methods"]["none"][key] == summary["differences"]["none"][key] == empty
    assert summary["methods"]["none"]["rep-2"]["mean"] == 0 and summary["methods"]["none"]["diversity"]["mean"] == 1
    read(done, "manifest.json")
    assert (done.folder / "table.md").read_text().splitlines()[4].startswith("| none | 1 | 4 | 1.000")
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    fewer = read(compare(some))["methods"]["some"]
    for key in ("coherence, log-prob", "perplexity"):
        assert summary["methods"]["some"][key]["mean"] == pytest.approx(fewer[key]["mean"], abs=1e-3)


def test_what_does_not_go_on_is_kept_with_its_reason(tmp_path: Path, prompts: Path, compare: Compare) -> None:
    part, less = write(prompts, tmp_path / "part", HUMAN), write(prompts, tmp_path / "less", HUMAN[:3])
    path = part / "completions.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    more = [first | {"id": "1", "index": 1}, first | {"id": "2", "prompt_id": "another"}]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in more))
    prompts.write_text(prompts.read_text() + prompts.read_text().splitlines()[0] + '\n{"prompt": "alone"}\n')
    done = compare(part, less)
    dropped = [json.loads(line) for line in (done.folder / "dropped.jsonl").read_text().splitlines()]
    assert sorted((row["stage"], row["reason"], row["detail"]) for row in dropped) == [
        ("compare", "not in all parts", "less"), ("read", "answer to another prompt", ""),
        ("read", "duplicate prompt", ""), ("read", "no reference text", ""), ("read", "not the first sample", ""),
    ]  # fmt: skip
    assert done.manifest["counts"]["kept"] == 3


def test_what_cannot_be_compared_is_refused_before_anything_is_read(tmp_path: Path, prompts: Path) -> None:
    human, part = (write(prompts, tmp_path / name, HUMAN) for name in ("human_1", "part"))
    for said, settings in (
        ("manifest", {"parts": (tmp_path,)}),
        ("a part named human", {"parts": (part, human)}),
        ("baseline", {"parts": (part,), "baseline": "other"}),
        ("embedder", {"parts": (part,), "embedder": str(tmp_path / "nowhere")}),
    ):
        with pytest.raises(InputError, match=said):
            Continuations(prompts=prompts, model="none", **settings).check()


def test_mauves_resamples_are_moved_onto_its_figure(prompts: Path) -> None:
    job = Continuations(prompts=prompts, parts=(prompts,))
    column = np.concatenate([[0.9], np.random.default_rng(0).normal(0.6, 0.1, 1000)])
    found = job._interval("MAUVE", column)
    assert found["mean"] == 0.9 and found["high"] == 1 and found["low"] == pytest.approx(0.7, abs=0.02)
    moved = job._interval("MAUVE", column, difference=True)
    assert moved["high"] == pytest.approx(1.1, abs=0.02) and job._interval("diversity", column)["high"] < 0.9
