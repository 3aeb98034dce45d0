"""Texts that a limit of tokens cut off: no objective learns that they end there."""

import json
from pathlib import Path
from typing import Any

import pytest

from align import trainers
from align.objective import Objective
from align.objectives.decoupled import Decoupled
from align.objectives.dpo import Dpo
from align.objectives.ipo import Ipo
from align.objectives.pairwise import Pairwise
from align.objectives.sft import Sft
from align.train import Lora, Train
from counterfoil.job import read_manifest
from counterfoil.records import Completion, Pair, Prompt
from decode.chat import load_tokenizer

GOOD, BAD = "It is a fine number.", "No idea, none"


def write_pairs(path: Path) -> Path:
    """Write a pair whose chosen answer was cut off, one whose rejected answer was, and a whole one."""
    with path.open("w") as stream:
        for at, cut in enumerate(("chosen", "rejected", "")):
            prompt = Prompt.make(f"Say something about {at}.")
            sides = [
                Completion.make(
                    prompt_id=prompt.id, index=index, text=text, num_prompt_tokens=9, num_tokens=5,
                    finish_reason="length" if side == cut else "stop",
                )
                for index, (side, text) in enumerate((("chosen", GOOD), ("rejected", BAD)))
            ]  # fmt: skip
            pair = Pair.make(prompt, sides[0], sides[1], scores=(1.0, 0.0), recipe="test")
            assert pair.cut == ((cut,) if cut else ())
            stream.write(pair.model_dump_json() + "\n")
    return path


def train(objective: Objective, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[Any]:
    """Train, on pairs unless other `data` is given; return the data set of each trainer, as it was trained on."""
    found: list[Any] = []
    real = trainers.make_trainer

    def spy(*given: Any, **rest: Any) -> Any:
        trainer = real(*given, **rest)
        found.append(trainer.train_dataset)
        return trainer

    monkeypatch.setattr(trainers, "make_trainer", spy)
    data = {"data": write_pairs(folder / "pairs.jsonl")} | more
    job = Train(model=str(model), objective=objective, batch_size=3, epochs=1, lora=Lora(rank=2), **data)
    job.run(folder / "run", quiet=True)
    return found


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("objective", [Dpo(), Ipo(), Pairwise(loss_type="hinge")], ids=["dpo", "ipo", "pairwise"])
def test_a_pair_loss_sees_no_end_after_a_side_that_was_cut_off(
    objective: Objective, cached: bool, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rows,) = train(objective, tmp_path, tiny_model, monkeypatch, cache_reference=cached)
    tokenizer = load_tokenizer(str(tiny_model))
    texts = [tuple(tokenizer.decode(row[f"{side}_ids"]) for side in ("chosen", "rejected")) for row in rows]
    end = texts[2][0].removeprefix(GOOD)
    assert end.startswith("<|im_end|>")
    assert texts == [(GOOD, BAD + end), (GOOD + end, BAD), (GOOD + end, BAD + end)]


def test_cross_entropy_leaves_out_an_answer_that_was_cut_off(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name; `decoupled` says how many each of its two trainings learns from."""
    (rows,) = train(Sft(), tmp_path, tiny_model, monkeypatch)
    assert len(rows) == 2
    manifest = read_manifest(tmp_path / "run")
    assert manifest is not None
    assert manifest["counts"]["dropped"] == {"objective: cut off": 1}
    (tmp_path / "two").mkdir()
    positive, negative = train(Decoupled(), tmp_path / "two", tiny_model, monkeypatch)
    assert (len(positive), len(negative)) == (2, 2)
    manifest = read_manifest(tmp_path / "two/run")
    assert manifest is not None
    assert manifest["counts"] == {"read": 3, "kept": 3, "positive": 2, "negative": 2, "dropped": {}}


def test_pairs_and_groups_of_the_same_answers_are_the_same(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What synthesis says of a cut in pairs.jsonl, and in groups.jsonl."""
    (rows,) = train(Dpo(), tmp_path, tiny_model, monkeypatch)
    groups = tmp_path / "groups.jsonl"
    with groups.open("w") as stream:
        for line in (tmp_path / "pairs.jsonl").read_text().splitlines():
            pair = json.loads(line)
            answers = [
                {"text": pair[side][0]["content"], "score": pair[f"score_{side}"], "is_cut": side in pair["cut"]}
                for side in ("chosen", "rejected")
            ]
            stream.write(json.dumps({"prompt": pair["prompt"], "answers": answers}) + "\n")
    (tmp_path / "other").mkdir()
    (other,) = train(Dpo(), tmp_path / "other", tiny_model, monkeypatch, data=groups)
    for side in ("chosen_ids", "rejected_ids", "prompt_ids"):
        assert other[side] == rows[side]
