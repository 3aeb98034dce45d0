"""Rows of every format that users have become the same groups; what is none is dropped by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from align.data import encode
from align.examples import encode_group, find_fault
from counterfoil.records import Answer, Completion, Dropped, Group, Message, Pair, Prompt, Span
from decode.chat import load_tokenizer
from eval.groups import read_groups

ASKED = [{"role": "user", "content": "Hi?"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def read(tmp_path: Path, *rows: Any) -> list[Group | Dropped]:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_groups(path))


PAIR = (("good", "chosen", None), ("bad", "rejected", None))
FORMATS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "messages": ({"prompt": ASKED, "chosen": said("good"), "rejected": said("bad")}, ASKED, PAIR),
    "texts": ({"prompt": "Hi?", "chosen": "good", "rejected": "bad"}, "Hi?", PAIR),
    "implicit prompt": ({"chosen": ASKED + said("good"), "rejected": ASKED + said("bad")}, ASKED, PAIR),
    "turns go on": (
        {
            "prompt": ASKED,
            "chosen": [*said("a"), *ASKED, *said("good")],
            "rejected": [*said("a"), *ASKED, *said("bad")],
        },
        [*ASKED, *said("a"), *ASKED],
        PAIR,
    ),
    "scores of ours": (
        {"prompt": "Hi?", "chosen": "good", "rejected": "bad", "score_chosen": 2, "score_rejected": 1},
        "Hi?",
        (("good", "chosen", 2.0), ("bad", "rejected", 1.0)),
    ),
    "scores of others": (
        {"prompt": "Hi?", "chosen": "good", "rejected": "bad", "chosen_score": 2, "rejected_score": 1},
        "Hi?",
        (("good", "chosen", 2.0), ("bad", "rejected", 1.0)),
    ),
    "completion": ({"prompt": ASKED, "completion": said("good")}, ASKED, (("good", "chosen", None),)),
    "unpaired": ({"prompt": "Hi?", "completion": "bad", "label": False}, "Hi?", (("bad", "rejected", None),)),
    "completions": (
        {"prompt": "Hi?", "completions": ["a", "b", "c"], "scores": [1, 0.5, -1]},
        "Hi?",
        (("a", "", 1.0), ("b", "", 0.5), ("c", "", -1.0)),
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_becomes_a_group(kind: str, tmp_path: Path) -> None:
    row, prompt, answers = FORMATS[kind]
    (group,) = read(tmp_path, row)
    assert isinstance(group, Group)
    assert (group.prompt if isinstance(group.prompt, str) else list(group.prompt)) == prompt
    assert tuple((item.text, item.role, item.score) for item in group.answers) == answers


def test_our_own_records_are_read_as_they_are(tmp_path: Path) -> None:
    group = Group.make(ASKED, [Answer(text="a b", spans=[{"start": 2, "stop": 3, "label": "x"}], final="b")])
    prompt = Prompt.make("Hi?")
    good, bad = (
        Completion.make(
            prompt_id=prompt.id, index=at, text=text, finish_reason="stop", num_prompt_tokens=1, num_tokens=1
        )
        for at, text in enumerate(("good", "bad"))
    )
    pair = Pair.make(prompt, good, bad, scores=(1.0, 0.0), recipe="test")
    found = read(tmp_path, group.model_dump(mode="json"), pair.model_dump(mode="json"))
    assert found[0] == group
    assert isinstance(found[1], Group)
    assert found[1].id == pair.id
    assert [item.score for item in found[1].answers] == [1.0, 0.0]


WRONG: dict[str, tuple[Any, str]] = {
    "no answers": ({"text": "a"}, "missing column"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "missing column"),
    "no prompt in messages": ({"chosen": said("a"), "rejected": said("b")}, "missing column"),
    "text beside messages": ({"prompt": ASKED, "chosen": "a", "rejected": said("b")}, "mixed texts and message lists"),
    "messages after text": (
        {"prompt": "a", "chosen": said("a"), "rejected": said("b")},
        "mixed texts and message lists",
    ),
    "answers all texts": ({"prompt": ASKED, "chosen": "a", "rejected": "b"}, "mixed texts and message lists"),
    "other talks": (
        {"chosen": [*ASKED, *said("a")], "rejected": [{"role": "user", "content": "Ho?"}, *said("b")]},
        "answers to different conversations",
    ),
    "scores": ({"prompt": "a", "completions": ["b"], "scores": []}, "as many scores as completions are needed"),
    "no completions": ({"prompt": "a", "completions": []}, "no answers"),
    "a score that is none": ({"prompt": "a", "completions": ["b"], "scores": ["high"]}, "not a group"),
    "an unknown key": ({"prompt": "a", "answers": [{"text": "b", "colour": 1}]}, "not a group"),
    "half a surrogate pair": ({"prompt": "a", "completion": "b \ud800"}, "broken text"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_group_is_dropped_by_name(kind: str, tmp_path: Path) -> None:
    row, reason = WRONG[kind]
    (found,) = read(tmp_path, row)
    assert isinstance(found, Dropped)
    assert (found.stage, found.reason) == ("data", reason)


@pytest.mark.parametrize("prompt", ["The sum is", tuple(ASKED)])
@pytest.mark.parametrize("answer", [" twelve, I think.", "No.\n\nYes: é 漢字 🙂", "  padded  "])
def test_offsets_lead_from_tokens_to_the_answers_characters(prompt: Any, answer: str, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    found = encode(tokenizer, prompt, answer)
    assert len(found.offsets) == len(found.ids) - found.start
    pieces = [answer[max(first, 0) : last] for first, last in found.offsets if last > 0 and first < len(answer)]
    seen: set[int] = set()
    for first, last in found.offsets:
        seen.update(range(max(first, 0), min(last, len(answer))))
    kept = {at for at, letter in enumerate(answer) if not letter.isspace()}
    assert kept <= seen, pieces
    for (first, last), token in zip(found.offsets, found.ids[found.start :], strict=True):
        if first >= 0 and last <= len(answer) and answer[first:last].isascii():
            assert answer[first:last] == tokenizer.decode([token])


def test_a_prompts_token_that_changes_with_the_answer_is_the_answers(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    alone = tokenizer("He ran t")["input_ids"]
    found = encode(tokenizer, "He ran t", "hrough")
    assert found.ids[: found.start] == alone[: found.start]
    assert found.start < len(alone)
    assert tokenizer.decode(found.ids) == f"He ran through{tokenizer.eos_token}"


def test_chats_are_encoded_as_trl_encodes_them(tiny_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    tokenizer = load_tokenizer(str(tiny_model))
    rows = [
        {"prompt": ASKED, "chosen": said("good one"), "rejected": said("bad")},
        {"prompt": [{"role": "system", "content": "Be."}, *ASKED], "chosen": said("x"), "rejected": said("y z")},
    ]
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=DPOConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    for row, theirs in zip(rows, trainer.train_dataset, strict=True):  # pyright: ignore
        for side in ("chosen", "rejected"):
            found = encode(tokenizer, tuple(row["prompt"]), row[side][0]["content"])  # pyright: ignore
            assert found.ids == theirs["prompt_ids"] + theirs[f"{side}_ids"]
            assert found.start == len(theirs["prompt_ids"])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Hi?", "completion": "a", "label": None}, "label is neither true nor false"),
        ({"prompt": "Hi?", "completion": "a", "label": "false"}, "label is neither true nor false"),
        ({"prompt": "", "completion": "a"}, "empty prompt"),
        ({"chosen": ASKED + ASKED, "rejected": ASKED + ASKED}, "the last turn is not the assistant's"),
        ({"prompt": "Hi?", "completions": ["a", "b"], "scores": [1.0, float("nan")]}, "not a group"),
    ],
)
def test_rows_that_say_two_things_are_dropped(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    (found,) = read(tmp_path, row)
    assert isinstance(found, Dropped)
    assert found.reason == why


def test_a_prompt_alone_is_a_group_without_answers(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"prompt": ASKED, "reference": {"answer": "1"}})
    assert isinstance(found, Group)
    assert found.answers == ()
    assert found.reference == {"answer": "1"}


def test_a_cut_answer_has_no_end_and_drawn_tokens_stand_as_they_are(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    whole, cut, drawn = encode_group(
        tokenizer,
        Group.make(
            [Message(role="user", content="Hi?")],
            [Answer(text="Good day"), Answer(text="Good day", is_cut=True), Answer(text="x", token_ids=(7, 8))],
        ),
    ).rows
    end = tokenizer.eos_token_id
    assert end in whole.ids[whole.start :]
    assert end not in cut.ids[cut.start :]
    assert cut.ids == whole.ids[: len(cut.ids)]
    assert tokenizer.decode(cut.ids[cut.start :]) == "Good day"
    assert drawn.ids == [*whole.ids[: whole.start], 7, 8]
    assert drawn.start == whole.start


def test_what_is_lost_in_tokens_is_said(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    both = (Span(start=0, stop=4), Span(start=1, stop=3))
    for spans, fault in ((both, "a span without a token of its own"), (both[:1], "")):
        group = Group.make([Message(role="user", content="Hi?")], [Answer(text="Good day", spans=spans)])
        assert find_fault(encode_group(tokenizer, group)) == fault
