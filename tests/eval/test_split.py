"""Three disjoint parts of a data set, and pseudo-labels counted against the known answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from counterfoil.errors import ConfigError, InputError
from counterfoil.job import Finished
from counterfoil.records import Answer, Group, Prompt
from eval.labels import Labels
from eval.puzzles import Puzzles
from eval.split import Split
from eval.stats import recovered_gap

ROWS = [{"Body": f"Tom has {at} eggs", "Question": "How many more for 50?", "Answer": 50.0 - at} for at in range(30)]
SVAMP: dict[str, Any] = {
    "question": "{Body}. {Question}",
    "answer": "{Answer}",
    "solution": "So the answer is {Answer}.",
}


def split(tmp_path: Path, rows: list[Any], *, name: str = "data.jsonl", **changes: Any) -> Finished:
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"weak": 8, "strong": 9, "test": 10, **SVAMP} | changes
    return Split(data=path, **settings).run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", quiet=True)


def read(done: Finished, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.path(name).read_text().splitlines()]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_parts_share_no_question_and_the_students_have_no_answer(name: str, tmp_path: Path) -> None:
    done = split(tmp_path, ROWS, name=name)
    weak, questions, ceiling, gold, test = (
        read(done, f"{part}.jsonl") for part in ("weak", "questions", "ceiling", "gold", "test")
    )
    assert [len(part) for part in (weak, questions, ceiling, gold, test)] == [8, 9, 9, 9, 10]
    asked = [json.dumps(row.get("messages") or row["prompt"]) for part in (weak, questions, test) for row in part]
    assert len(set(asked)) == 27
    text = done.path("questions.jsonl").read_text()
    assert "answer" not in text
    assert all(row["reference"] == {} for row in questions)
    for question, known, learnt in zip(questions, gold, ceiling, strict=True):
        assert question["messages"] == known["messages"] == learnt["prompt"]
        assert learnt["answers"][0]["text"] == f"So the answer is {known['reference']['answer']}."
        number = int(question["messages"][0]["content"].split()[2])
        assert known["reference"]["answer"] == str(50 - number)
    again, other = split(tmp_path, ROWS, name=name), split(tmp_path, ROWS, name=name, seed=1)
    assert read(again, "test.jsonl") == test
    assert read(other, "test.jsonl") != test


def test_what_cannot_be_used_is_dropped_by_name(tmp_path: Path) -> None:
    bad: list[Any] = [
        {"Body": "x"},
        ROWS[0],
        {"Body": " ", "Question": "", "Answer": ""},
        {"Body": "a", "Question": "b", "Answer": "c d"},
        5,
    ]
    done = split(tmp_path, ROWS + bad, solution="The answer is {Answer}. Or 3.")
    assert done.manifest["counts"]["dropped"] == {
        "read: not a mapping": 1,
        "split: empty question or answer": 1,
        "split: missing column": 1,
        "split: question came before": 1,
        "split: the solution comes to another answer": 1,
    }
    with pytest.raises(InputError, match="30 usable questions"):
        split(tmp_path, ROWS, test=20)
    with pytest.raises(InputError, match="0 usable"):
        split(tmp_path, ROWS, solution="It is {Answer}, or 1000")


def test_a_solution_with_its_answer_in_one_column_is_split(tmp_path: Path) -> None:
    """GSM8K's form."""
    rows = [{"question": f"{at} + 1?", "answer": f"{at} and 1 are {at + 1}.\n#### {at + 1}"} for at in range(30)]
    done = split(tmp_path, rows, question="{question}", answer="{answer}", solution="{answer}")
    line = json.loads(done.path("gold.jsonl").read_text().splitlines()[0])
    number = int(line["messages"][0]["content"].split()[0])
    assert line["reference"]["answer"] == str(number + 1)


def test_a_template_reaches_nothing_but_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 usable"):
        split(tmp_path, ROWS, question="{Body.__class__}")


def test_labels_are_counted_against_what_is_known(tmp_path: Path) -> None:
    prompts = [Prompt.make(f"Question {at}?", reference={"answer": str(at)}) for at in range(10)]
    gold = tmp_path / "gold.jsonl"
    gold.write_text("".join(item.model_dump_json() + "\n" for item in prompts))
    groups = [
        Group.make(prompt.messages, [Answer(text=f"The answer is {at if at < 3 else 99}", role="chosen")])
        for at, prompt in enumerate(prompts[:5])
    ]
    stranger = Group.make("Another?", [Answer(text="The answer is 1", role="chosen")])
    labels = tmp_path / "agreed" / "groups.jsonl"
    labels.parent.mkdir()
    labels.write_text("".join(item.model_dump_json() + "\n" for item in [*groups, stranger]))
    done = Labels(labels=(labels,), gold=gold).run(tmp_path / "run", quiet=True)
    found = done.figures["agreed"]
    assert (found["coverage"]["mean"], found["precision"]["mean"]) == (0.5, 0.6)
    assert found["precision"]["low"] < 0.6 < found["precision"]["high"]
    assert done.manifest["counts"]["dropped"] == {"labels: no such question": 1}


def test_labels_of_no_known_question_and_names_that_come_twice_are_refused(tmp_path: Path) -> None:
    gold, labels = tmp_path / "gold.jsonl", tmp_path / "groups.jsonl"
    gold.write_text(Prompt.make("Question?", reference={"answer": "1"}).model_dump_json() + "\n")
    labels.write_text(Group.make("Other?", [Answer(text="1", role="chosen")]).model_dump_json() + "\n")
    with pytest.raises(InputError, match="no label of the 1 questions"):
        Labels(labels=(labels,), gold=gold).run(tmp_path / "run", quiet=True)
    with pytest.raises(InputError, match="a folder each"):
        Labels(labels=(labels, labels), gold=gold).run(tmp_path / "twice", quiet=True)


def test_the_recovered_share_of_a_gap() -> None:
    """Floor 0.2, ceiling 0.8, found 0.5: half of the gap. The floor recovers 0 and the ceiling 1, with no width at all."""
    floor, ceiling, found = ([1.0] * count + [0.0] * (10 - count) for count in (2, 8, 5))
    half = recovered_gap(floor, ceiling, found)
    assert half.mean == pytest.approx(0.5)
    assert half.low < 0.5 < half.high
    assert recovered_gap(floor, ceiling, floor) == (0, 0, 0)
    assert recovered_gap(floor, ceiling, ceiling) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match="equal"):
        recovered_gap(floor, floor, found)
    with pytest.raises(ValueError, match="same items"):
        recovered_gap(floor, ceiling, found[:3])


def test_a_column_of_a_column_and_a_list_are_filled_in(tmp_path: Path) -> None:
    """What puzzles say of themselves makes another question: `metadata` holds the numbers as a list."""
    data = tmp_path / "data.jsonl"
    rows = [{"metadata": {"numbers": [str(at), 2.5, 4.0], "way": "up"}, "answer": [4.0, str(at)]} for at in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = Split(data=data, question="Sort {metadata[way]}: {metadata[numbers]}", weak=1, strong=1, test=1).run(
        tmp_path / "run", quiet=True
    )
    tests = [Prompt.model_validate_json(line) for line in (done.folder / "test.jsonl").read_text().splitlines()]
    asked = tests[0].messages[0]["content"]
    number = asked.removeprefix("Sort up: ").split(",")[0]
    assert asked == f"Sort up: {number}, 2.5, 4"
    assert tests[0].reference == {"answer": f"4, {number}"}


def test_puzzles_need_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="reasoning_gym"):
        Puzzles().run(tmp_path / "run", quiet=True)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of a package that the library loads
def test_puzzles_are_drawn_by_their_seed(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")  # an extra: one of its packages needs a C compiler
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    runs = [
        Puzzles(options=options, count=30, seed=seed).run(tmp_path / str(at), quiet=True)
        for at, seed in enumerate((0, 0, 1))
    ]
    texts = [(run.folder / "questions.jsonl").read_text() for run in runs]
    assert texts[0] == texts[1] != texts[2]
    for line in texts[0].splitlines():
        row = json.loads(line)
        first, sign, second = row["question"].removesuffix(" =").rsplit(" ", 3)[1:]
        assert int(row["answer"]) == int(first) + (1 if sign == "+" else -1) * int(second)
        assert row["metadata"]["source_dataset"] == "chain_sum"
    with pytest.raises(ConfigError, match="no_such"):
        Puzzles(generator="no_such", count=1).run(tmp_path / "bad", quiet=True)
