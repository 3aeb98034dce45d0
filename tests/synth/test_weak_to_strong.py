"""Agreement, votes and demonstrations: the rules of the paper's two stages, and what is dropped by name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from counterfoil.cli import main
from counterfoil.errors import InputError
from counterfoil.job import Finished
from counterfoil.pipeline import Pipeline
from counterfoil.records import Completion, Prompt
from counterfoil.verbs import load_job
from eval.scorers.self_consistency import count_votes
from eval.split import Split
from synth.agree import Agree
from synth.demonstrate import Demonstrate
from synth.vote import Vote

QUESTIONS = [Prompt.make(f"Question {number}?", tags={"topic": "sums"}) for number in range(8)]


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> Path:
    path.write_text("".join(item.model_dump_json() + "\n" for item in prompts))
    return path


def write_answers(path: Path, answers: dict[str, Sequence[str]], *, finish: str = "stop") -> Path:
    made = [
        Completion.make(prompt_id=key, index=at, text=text, finish_reason=finish, num_prompt_tokens=1, num_tokens=1)
        for key, texts in answers.items()
        for at, text in enumerate(texts)
    ]
    path.write_text("".join(item.model_dump_json() + "\n" for item in made))
    return path


def read(done: Finished, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.path(name).read_text().splitlines()]


def test_demonstrations_are_others_answered_questions(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "q.jsonl", QUESTIONS)
    answers = write_answers(
        tmp_path / "a.jsonl", {item.id: [f" the answer is {at}"] for at, item in enumerate(QUESTIONS)}
    )
    done = Demonstrate(prompts=prompts, answers=answers, count=3).run(tmp_path / "run", quiet=True)
    rows = read(done, "prompts.jsonl")
    assert [row["tags"]["question"] for row in rows] == [item.id for item in QUESTIONS]
    for row, question in zip(rows, QUESTIONS, strict=True):
        assert row["messages"][-1]["content"] == question.messages[-1]["content"]
        asked = [turn["content"] for turn in row["messages"][:-1] if turn["role"] == "user"]
        assert len(asked) == 3
        assert question.messages[-1]["content"] not in asked
        for turn, reply in zip(row["messages"][:-1:2], row["messages"][1::2], strict=True):
            assert reply["content"] == f"the answer is {turn['content'].split()[1].rstrip('?')}"
    few = write_answers(tmp_path / "few.jsonl", {QUESTIONS[0].id: ["1"], QUESTIONS[1].id: ["2"]})
    with pytest.raises(InputError, match="2 finished answers"):
        Demonstrate(prompts=prompts, answers=few, count=3).run(tmp_path / "few", quiet=True)


def agree(tmp_path: Path, weak: Sequence[str], strong: Sequence[str], **changes: Any) -> Finished:
    prompts = write_prompts(tmp_path / "q.jsonl", QUESTIONS[: len(weak)])
    shown = [
        Prompt.make([*item.messages, *item.messages], tags={"question": item.id}) for item in QUESTIONS[: len(weak)]
    ]
    return Agree(
        prompts=prompts,
        weak=write_answers(
            tmp_path / "w.jsonl", {item.id: [text] for item, text in zip(QUESTIONS, weak, strict=False)}
        ),
        strong_prompts=write_prompts(tmp_path / "s.jsonl", shown),
        # In another order, as a run on another machine may write them.
        strong=write_answers(
            tmp_path / "sa.jsonl", {item.id: [text] for item, text in reversed(list(zip(shown, strong, strict=True)))}
        ),
        **changes,
    ).run(tmp_path / "run", quiet=True)


def test_what_agrees_is_kept_and_two_silences_do_not_agree(tmp_path: Path) -> None:
    weak = ["2 + 2, so the answer is 4", "The answer is 5", "", "#### 7.0"]
    done = agree(tmp_path, weak, ["The answer is 4.", "The answer is 6", "", "The answer is 7"])
    groups = read(done, "groups.jsonl")
    assert [[answer["text"] for answer in group["answers"]] for group in groups] == [
        ["2 + 2, so the answer is 4", "The answer is 4."],
        ["#### 7.0", "The answer is 7"],
    ]
    assert all(answer["role"] == "chosen" for group in groups for answer in group["answers"])
    assert done.figures["coverage"] == 0.5
    assert done.manifest["counts"]["dropped"] == {"agree: answers differ": 1, "agree: no final answer": 1}
    assert done.manifest["counts"]["read"] == 4


def test_the_bare_questions_may_be_what_was_asked_and_cut_off_answers_are_no_labels(tmp_path: Path) -> None:
    """A second round: the strong model's own answers; a question that comes twice is asked once."""
    prompts = write_prompts(tmp_path / "q.jsonl", [*QUESTIONS[:3], QUESTIONS[0]])
    weak = write_answers(tmp_path / "w.jsonl", {item.id: [f"It is {at}"] for at, item in enumerate(QUESTIONS[:3])})
    strong = write_answers(tmp_path / "s.jsonl", {item.id: [f"So {at}"] for at, item in enumerate(QUESTIONS[:3])})
    done = Agree(prompts=prompts, weak=weak, strong=strong).run(tmp_path / "run", quiet=True)
    assert len(read(done, "groups.jsonl")) == 3
    assert done.manifest["counts"]["dropped"] == {"join: question came before": 1}
    assert done.manifest["counts"]["read"] == 4
    cut = write_answers(
        tmp_path / "c.jsonl", {item.id: [f"So {at}"] for at, item in enumerate(QUESTIONS[:3])}, finish="length"
    )
    done = Agree(prompts=prompts, weak=weak, strong=cut).run(tmp_path / "cut", quiet=True)
    assert done.manifest["counts"]["dropped"]["agree: cut off"] == 3


@pytest.mark.parametrize(("keep", "texts"), [("weak", ["w 4"]), ("strong", ["s 4"]), ("both", ["w 4", "s 4"])])
def test_whose_texts_are_learnt(keep: Any, texts: list[str], tmp_path: Path) -> None:
    (group,) = read(agree(tmp_path, ["w 4"], ["s 4"], keep=keep), "groups.jsonl")
    assert [answer["text"] for answer in group["answers"]] == texts


def test_a_text_that_both_wrote_is_learnt_once(tmp_path: Path) -> None:
    (group,) = read(agree(tmp_path, ["It is 4"], ["It is 4 "]), "groups.jsonl")
    assert len(group["answers"]) == 1


def test_votes_count_equal_answers_however_written() -> None:
    assert count_votes(["4", "4.0", "5", ""]) == ("4", 0.5, [True, True, False, False])
    assert count_votes(["", "", "3"]) == ("", 2 / 3, [True, True, False])
    assert count_votes(["5", "3"])[:2] == ("5", 0.5), "of equally frequent ones the first"


def vote(
    tmp_path: Path, weak: str, samples: Sequence[str], **changes: Any
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    question = QUESTIONS[0]
    done = Vote(
        prompts=write_prompts(tmp_path / "q.jsonl", [question]),
        weak=write_answers(tmp_path / "w.jsonl", {question.id: [weak]}),
        samples=write_answers(tmp_path / "s.jsonl", {question.id: samples}),
        **changes,
    ).run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", quiet=True)
    return read(done, "pairs.jsonl"), done.manifest["counts"]["dropped"]


def sides(pair: dict[str, Any]) -> tuple[str, str]:
    return pair["chosen"][0]["content"], pair["rejected"][0]["content"]


def test_two_gates_and_a_weak_text_on_one_side(tmp_path: Path) -> None:
    six = [*[f"way {at}: 4" for at in range(6)], "5", "5", "6", "7"]
    (pair,), _ = vote(tmp_path, "weak 4", six)
    assert sides(pair)[0] == "weak 4"
    assert sides(pair)[1] in {"5", "6", "7"}
    assert (pair["score_chosen"], pair["recipe"]) == (0.6, "weak_to_strong")
    pairs, dropped = vote(tmp_path, "weak 5", six)
    assert (pairs, dropped) == ([], {"vote: too little confidence to overrule": 1})
    eight = [*[f"way {at}: 4" for at in range(8)], "5", "5"]
    (pair,), _ = vote(tmp_path, "weak 5", eight)
    assert sides(pair)[1] == "weak 5"
    assert sides(pair)[0].endswith(": 4")
    (pair,), _ = vote(tmp_path, "no idea at all", eight)
    assert sides(pair)[1] == "no idea at all", "a weak answer that comes to nothing else is overruled as well"


@pytest.mark.parametrize(
    ("weak", "samples", "reason"),
    [
        ("4", ["4", "4", "5", "6", "7"], "low confidence"),
        ("4", ["", "", "", "4"], "most samples come to nothing"),
        ("w 4", ["a 4", "b 4", "c 4"], "all samples agree"),
        ("4", ["4", "", ""], "most samples come to nothing"),
        ("", ["4", "4", "4"], "no sample to set against it"),
    ],
)
def test_what_makes_no_pair(weak: str, samples: list[str], reason: str, tmp_path: Path) -> None:
    assert vote(tmp_path, weak, samples) == ([], {f"vote: {reason}": 1})


def test_several_pairs_a_question_are_of_different_samples(tmp_path: Path) -> None:
    samples = [*[f"way {at}: 4" for at in range(8)], "5", "6"]
    pairs, _ = vote(tmp_path, "weak 9", samples, max_pairs=3)
    assert len({sides(pair)[0] for pair in pairs}) == 3
    again, _ = vote(tmp_path, "weak 9", samples, max_pairs=3)
    assert again == pairs


@pytest.mark.parametrize("pipeline", ["weak_to_strong", "weak_to_strong_direct"])
def test_known_answers_are_out_of_the_trainings_reach(pipeline: str) -> None:
    """Of all that a training reads, and of all that made it, nothing knows an answer to the student's questions."""
    found, _ = load_job("run", pipeline, [f"split.data={__file__}"])
    assert isinstance(found, Pipeline)
    reads = {name: [str(path) for path in found.load(name, Path("run"))[0].inputs().values()] for name in found.jobs}

    def trace(name: str) -> set[str]:
        own = [path for path in reads[name] if path.startswith("run/")]
        return set(own).union(*(trace(path.split("/")[1]) for path in own))

    known = {f"run/split/{name}.jsonl" for name in ("gold", "ceiling", "test")}
    trainings = {name for name, line in found.jobs.items() if line.startswith("align")}
    held = {"held_fit"} if pipeline == "weak_to_strong_direct" else set[str]()
    assert trainings == {"weak", "naive_fit", "stage_one_fit", "stage_two_fit", "ceiling_fit"} | held
    for name in trainings - {"ceiling_fit"}:
        assert not trace(name) & known, name
    assert trace("stage_two_fit") >= {"run/split/questions.jsonl", "run/split/weak.jsonl", "run/agreed/groups.jsonl"}
    assert trace("ceiling_fit") & known == {"run/split/ceiling.jsonl"}


def test_what_trainings_read_is_the_same_whatever_the_known_answers_are(tmp_path: Path) -> None:
    rows = [{"question": f"What is {at} + 1?", "answer": str(at + 1)} for at in range(40)]
    first = split(tmp_path / "first", rows)
    taught = {row["prompt"][0]["content"] for row in read(first, "weak.jsonl")}
    wrong = [row if row["question"] in taught else {**row, "answer": "7"} for row in rows]
    second = split(tmp_path / "second", wrong)
    for name in ("weak.jsonl", "questions.jsonl"):
        assert first.path(name).read_bytes() == second.path(name).read_bytes()
    for name in ("gold.jsonl", "ceiling.jsonl", "test.jsonl"):
        assert first.path(name).read_bytes() != second.path(name).read_bytes()
    assert all(not row["reference"] for row in read(first, "questions.jsonl"))


@pytest.mark.slow
def test_every_training_is_the_same_whatever_the_known_answers_are(tmp_path: Path, tiny_model: Path) -> None:
    """The whole loop, with right and with wrong known answers: the same adapters but for the ceiling's, to the byte."""
    rows = [{"question": f"What is {at} + 1?", "answer": str(at + 1)} for at in range(24)]
    taught = {row["prompt"][0]["content"] for row in read(split(tmp_path / "first", rows), "weak.jsonl")}
    told = [(f"What is {at} + 1?", [f"The answer is {at + 1}."] * 8 + [f"The answer is {at}."] * 2) for at in range(24)]
    script = tmp_path / "script.jsonl"
    script.write_text("".join(json.dumps({"when": asked, "replies": replies}) + "\n" for asked, replies in told))
    fits = ("weak", "naive_fit", "stage_one_fit", "stage_two_fit", "held_fit", "ceiling_fit")
    few = ["split.weak=8", "split.strong=8", "split.test=8", *(f"{name}.max_steps=2" for name in fits)]
    few += [f"model={tiny_model}", f"engine={json.dumps({'name': 'scripted', 'script': str(script)})}"]
    for name, wrong in (("right", False), ("wrong", True)):
        data = tmp_path / f"{name}.jsonl"
        known = [{**row, "answer": "7"} if wrong and row["question"] not in taught else row for row in rows]
        data.write_text("".join(json.dumps(row) + "\n" for row in known))
        words = ["run", "weak_to_strong_direct", f"split.data={data}", *few, "--to", str(tmp_path / f"run {name}")]
        assert main([*words, "--quiet"]) == 0
    for name in fits:
        path = f"{name}/adapter/adapter_model.safetensors"
        right, wrong = ((tmp_path / f"run {side}" / path).read_bytes() for side in ("right", "wrong"))
        assert (right == wrong) == (name != "ceiling_fit"), name


def split(folder: Path, rows: Sequence[dict[str, str]]) -> Finished:
    folder.mkdir()
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    weak, strong, test = {40: (15, 15, 10), 24: (8, 8, 8)}[len(rows)]
    return Split(data=data, weak=weak, strong=strong, test=test).run(folder / "run", quiet=True)
