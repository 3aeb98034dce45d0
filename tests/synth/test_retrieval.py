"""The job that makes an index of vectors; the triplets and the prompts that come out of it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterfoil.errors import ConfigError, InputError
from counterfoil.job import Finished
from counterfoil.records import Group, Message, Prompt, Triplet, content_id
from decode.embedder import Embed, Embedder
from decode.engines.scripted import Scripted
from eval.tasks.file import File
from synth.index import Index
from synth.recipes.retrieval import Retrieval
from synth.recipes.substitution import Substitution
from synth.retrieval import Pool, VectorIndex
from synth.synthesize import Synthesize


class Words(Embedder):
    """Vectors of a user's own: a dimension a word, so that a cosine can be worked out by hand."""

    calls: str = ""
    """A file that gets a line a text."""

    def identify(self) -> str:
        """It has no model."""
        return "words"

    def open(self) -> Embed:
        """Count words; the same word always falls into the same of 256 places."""

        def embed(texts: Sequence[str]) -> Any:
            found = np.zeros((len(texts), 256), np.float32)
            for at, text in enumerate(texts):
                for word in text.lower().split():
                    found[at, int(content_id(word), 16) % 256] += 1
            if self.calls:
                with Path(self.calls).open("a") as stream:
                    stream.writelines(text + "\n" for text in texts)
            return found / np.linalg.norm(found, axis=1, keepdims=True)

        return embed


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(done: Finished, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.path(file).read_text().splitlines()]


def run_index(folder: Path, rows: Sequence[dict[str, Any]], **more: Any) -> Finished:
    folder.mkdir()
    corpus = write(folder / "corpus.jsonl", rows)
    return Index(corpus=corpus, **{"embedder": Words(), **more}).run(folder / "run", quiet=True)


FRUIT = [
    {"prompt": "red apple tart", "reference": {"answer": "sweet"}},
    {"prompt": "red apple pie", "reference": {"answer": "sweet"}},
    {"prompt": "red apple salad", "reference": {"answer": "sour"}},
    {"prompt": "Red  apple tart", "reference": {"answer": "SWEET"}},
    {"prompt": "grey stone wall"},
]
"""The first has a cosine of 2/3 with the second and the third, 1 with the fourth, 0 with the last."""


def by_text(pool: Pool) -> dict[str, str]:
    return {pool.entry(key).prompt.messages[0]["content"]: key for key in pool.ids()}


def test_neighbours_are_neither_the_entry_itself_nor_its_duplicates(tmp_path: Path) -> None:
    done = run_index(tmp_path / "a", FRUIT)
    pool = Pool(done.path("index"))
    ids = by_text(pool)
    found = pool.neighbours(ids["red apple tart"], 9, cosines=(0.3, 1), wanted=lambda entry: True)
    assert sorted(item.entry.prompt.messages[0]["content"] for item in found) == ["red apple pie", "red apple salad"]
    assert [item.cosine for item in found] == pytest.approx([2 / 3, 2 / 3], abs=1e-3)
    assert done.figures == {"entries": 5, "added": 5, "removed": 0}


def test_neighbours_are_looked_for_beyond_those_that_are_not_wanted(tmp_path: Path) -> None:
    """Of 101 texts about one thing, 100 are refused: with k = 1 the first search sees 10 of them."""
    rows = [{"prompt": f"the same thing again {at}", "tags": {"user": "a"}} for at in range(100)]
    pool = Pool(run_index(tmp_path / "a", [*rows, {"prompt": "the same thing", "tags": {"user": "b"}}]).path("index"))
    key = by_text(pool)["the same thing again 7"]
    found = pool.neighbours(key, 1, cosines=(0, 1), wanted=lambda entry: entry.prompt.tags["user"] == "b")
    assert [item.entry.prompt.messages[0]["content"] for item in found] == ["the same thing"]


def test_what_is_indexed_and_what_is_not_adds_up(tmp_path: Path) -> None:
    """Held out are a prompt itself, whatever its reference, and all others of its user."""
    rows = [
        {"prompt": "one", "tags": {"user": "a"}},
        {"prompt": "two", "tags": {"user": "b"}},
        {"prompt": "one", "tags": {"user": "c"}},
        {"prompt": "three", "reference": {"answer": "x"}},
        {"text": "no prompt"},
        {"prompt": " \n"},
    ]
    heldout = write(tmp_path / "heldout.jsonl", [{"prompt": "other", "tags": {"user": "b"}}, {"prompt": "three"}])
    done = run_index(tmp_path / "a", rows, heldout=heldout)
    assert list(by_text(Pool(done.path("index")))) == ["one"]
    assert done.manifest["counts"] == {
        "read": 6,
        "kept": 1,
        "dropped": {
            "index: came before": 1,
            "index: held out": 2,
            "index: no text": 1,
            "read: no column 'prompt'": 1,
        },
    }
    with pytest.raises(InputError, match="no prompt"):
        run_index(tmp_path / "b", [{"prompt": "two"}], heldout=write(tmp_path / "all.jsonl", [{"prompt": "two"}]))


def test_descriptions_are_asked_for_once_and_embedded(tmp_path: Path) -> None:
    """Three texts that share no word are described alike, and so are neighbours; the fourth description is empty."""
    rules = [{"when": "wall", "replies": [" "]}, {"when": "person likes", "replies": ["likes old music"]}]
    engine = Scripted(script=write(tmp_path / "script.jsonl", rules))
    rows = [{"prompt": text} for text in ("fugue", "motet", "madrigal", "wall")]
    done = run_index(tmp_path / "a", rows, describe_as="history", engine=engine)
    pool = Pool(done.path("index"))
    assert {pool.entry(key).description for key in pool.ids()} == {"likes old music"}
    found = pool.neighbours(by_text(pool)["fugue"], 5, cosines=(0.9, 1), wanted=lambda entry: True)
    assert {item.entry.prompt.messages[0]["content"] for item in found} == {"motet", "madrigal"}
    assert done.manifest["counts"]["dropped"] == {"describe: empty description": 1}
    assert [row["step"] for row in read(done, "exchanges.jsonl")] == ["describe"] * 4
    assert "fugue" in read(done, "exchanges.jsonl")[0]["sent"][0]["content"]


def test_an_index_is_brought_up_to_a_corpus_without_doing_anything_twice(tmp_path: Path) -> None:
    """The second corpus lacks one text of the first and has a new one: one is embedded, one is removed."""
    log = tmp_path / "log"
    first = run_index(tmp_path / "a", [{"prompt": "a b"}, {"prompt": "a c"}, {"prompt": "d"}])
    more = {"embedder": Words(calls=str(log)), "base": first.path("index")}
    second = run_index(tmp_path / "b", [{"prompt": "a b"}, {"prompt": "a e"}, {"prompt": "a c"}], **more)
    pool = Pool(second.path("index"))
    assert second.figures == {"entries": 3, "added": 1, "removed": 1}
    assert log.read_text() == "a e\n"
    assert (len(pool.vectors), sorted(by_text(pool))) == (3, ["a b", "a c", "a e"])
    with pytest.raises(ConfigError, match=r"base.*described"):
        run_index(
            tmp_path / "c", [{"prompt": "a b"}], describe_as="passage", engine=Scripted(), base=first.path("index")
        )


def test_a_run_that_was_killed_embeds_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    whole = run_index(tmp_path / "a", [{"prompt": "a"}, {"prompt": "b"}])

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VectorIndex, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run_index(tmp_path / "b", [{"prompt": "a"}, {"prompt": "b"}], embedder=Words(calls=str(log)))
    job = Index(corpus=tmp_path / "b" / "corpus.jsonl", embedder=Words(calls=str(log)))
    again = job.run(tmp_path / "b" / "run", quiet=True)
    assert log.read_text() == "a\nb\n"
    for file in ("vectors.usearch", "entries.jsonl"):
        assert (again.path("index") / file).read_bytes() == (whole.path("index") / file).read_bytes()


def run_recipe(folder: Path, rows: Path, recipe: Retrieval | Substitution) -> Finished:
    job = Synthesize(task=File(path=rows), engine=Scripted(), recipe=recipe, filters=())
    return job.run(folder, quiet=True)


def test_triplets_are_neighbours_with_the_same_answer_and_another(tmp_path: Path) -> None:
    """Tart, pie and salad have cosines of 2/3; pie is sweet like tart, salad is not; the last two have no neighbour."""
    index = run_index(tmp_path / "a", FRUIT).path("index")
    done = run_recipe(tmp_path / "run", tmp_path / "a" / "corpus.jsonl", Retrieval(index=index))
    rows = [Triplet.model_validate(row) for row in read(done, "triplets.jsonl")]
    found = [
        [" ".join((text or "").lower().split()) for text in (row.anchor, row.positive, row.negative)] for row in rows
    ]
    assert sorted(found) == [
        ["red apple pie", "red apple tart", "red apple salad"],  # either spelling of it: a text is a neighbour once
        ["red apple tart", "red apple pie", "red apple salad"],
        ["red apple tart", "red apple pie", "red apple salad"],
    ]
    assert done.manifest["counts"]["dropped"] == {
        "retrieval: no neighbours": 1,
        "retrieval: no positive among the neighbours": 1,
    }
    assert done.manifest["counts"]["kept"] == 3


def test_a_synthetic_positive_is_the_neighbours_with_their_weights(tmp_path: Path) -> None:
    """Cosines with "a b c d": 3/4 of "a b c e", 2/4 of "a b e f"; their weights at temperature 0.25 are as e to 1."""
    rows = [{"prompt": text} for text in ("a b c d", "a b c e", "a b e f")]
    index = run_index(tmp_path / "a", rows).path("index")
    recipe = Retrieval(index=index, temperature=0.25)
    done = run_recipe(tmp_path / "run", write(tmp_path / "one.jsonl", rows[:1]), recipe)
    (group,) = [Group.model_validate(row) for row in read(done, "groups.jsonl")]
    assert (group.prompt, [(item.text, item.role) for item in group.answers]) == (
        "a b c d",
        [("a b c e", "chosen"), ("a b e f", "chosen")],
    )
    wanted = [math.e / (math.e + 1), 1 / (math.e + 1)]
    assert [item.score for item in group.answers] == pytest.approx(wanted, abs=2e-3)
    triplets = [Triplet.model_validate(row) for row in read(done, "triplets.jsonl")]
    assert [(item.positive, item.negative) for item in triplets] == [("a b c e", None), ("a b e f", None)]


def test_ones_own_histories_are_no_neighbours(tmp_path: Path) -> None:
    """The same user's longer history is the nearest of all, and never a positive."""
    rows = [
        {"prompt": "- tea\n- milk", "tags": {"user": "a"}},
        {"prompt": "- tea\n- milk\n- bread", "tags": {"user": "a"}},
        {"prompt": "- tea\n- rice", "tags": {"user": "b"}},
    ]
    index = run_index(tmp_path / "a", rows).path("index")
    done = run_recipe(tmp_path / "run", tmp_path / "a" / "corpus.jsonl", Retrieval(index=index))
    found = {(row["anchor"], row["positive"]) for row in read(done, "triplets.jsonl")}
    assert found == {
        ("- tea\n- milk", "- tea\n- rice"),
        ("- tea\n- milk\n- bread", "- tea\n- rice"),
        ("- tea\n- rice", "- tea\n- milk"),
        ("- tea\n- rice", "- tea\n- milk\n- bread"),
    }


def test_a_text_with_two_verified_answers_is_no_contrast(tmp_path: Path) -> None:
    """The pie is said to be sweet and to be sour: it is one neighbour, never a positive and a negative in one triplet."""
    rows = [*FRUIT[:2], {"prompt": "red apple pie", "reference": {"answer": "sour"}}]
    index = run_index(tmp_path / "a", rows).path("index")
    one = write(tmp_path / "one.jsonl", rows[:1])
    done = run_recipe(tmp_path / "run", one, Retrieval(index=index))
    assert {row["negative"] for row in read(done, "triplets.jsonl")} <= {None}
    assert done.manifest["counts"]["read"] == 1


def test_a_prompt_that_is_not_in_the_index_is_dropped(tmp_path: Path) -> None:
    index = run_index(tmp_path / "a", FRUIT).path("index")
    strangers = write(tmp_path / "strangers.jsonl", [{"prompt": "blue sky"}])
    done = run_recipe(tmp_path / "run", strangers, Retrieval(index=index))
    assert done.manifest["counts"]["dropped"] == {"retrieval: not in the index": 1}
    with pytest.raises(InputError, match=r"recipe\.index"):
        run_recipe(tmp_path / "none", strangers, Retrieval())
    (index / "entries.jsonl").unlink()
    with pytest.raises(InputError, match=r"no entries\.jsonl"):
        run_recipe(tmp_path / "torn", strangers, Retrieval(index=index))


def chat(*texts: str) -> list[Message]:
    return [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts)]


def test_a_share_of_the_items_gives_way_to_neighbours(tmp_path: Path) -> None:
    """Of ten lines two are replaced, each by one that shares a word with it and is not there already; the same each time."""
    rows = [{"prompt": "\n".join(f"- kind{at} {word}" for at in range(10))} for word in ("old", "new", "odd")]
    index = run_index(tmp_path / "a", rows, items="lines").path("index")
    assert len(Pool(index).vectors) == 30
    recipe = Substitution(index=index, items="lines", views=2, triplets=True)
    done = run_recipe(tmp_path / "run", tmp_path / "a" / "corpus.jsonl", recipe)
    views = read(done, "instructions.jsonl")
    assert len(views) == 6
    origins = {Prompt.make(row["prompt"]).id: row["prompt"].split("\n") for row in rows}
    for view in views:
        before, after = origins[view["tags"]["substituted"]], view["messages"][0]["content"].split("\n")
        changed = [(one, two) for one, two in zip(before, after, strict=True) if one != two]
        assert len(changed) == 2
        for one, two in changed:
            assert set(one[2:].split()) & set(two[2:].split())
            assert two not in before
    triplets = [(row["anchor"], row["positive"]) for row in read(done, "triplets.jsonl")]
    texts = [view["messages"][0]["content"] for view in views]
    assert triplets == list(zip(texts[::2], texts[1::2], strict=True))
    again = run_recipe(tmp_path / "again", tmp_path / "a" / "corpus.jsonl", recipe)
    assert read(again, "instructions.jsonl") == views


def test_a_demonstration_never_gives_the_question_away(tmp_path: Path) -> None:
    """The nearest to the demonstration is the question itself with its answer; the other neighbour is taken."""
    asked = {"messages": chat("add two and one", "3", "add two and four"), "reference": {"answer": "6"}}
    others = [{"messages": chat(*turns, "?")} for turns in (("add two and four", "6"), ("add two or six", "8"))]
    index = run_index(tmp_path / "a", [asked, *others], items="demonstrations").path("index")
    recipe = Substitution(index=index)
    done = run_recipe(tmp_path / "run", write(tmp_path / "one.jsonl", [asked]), recipe)
    (view,) = read(done, "instructions.jsonl")
    assert view["messages"] == chat("add two or six", "8", "add two and four")
    assert view["reference"] == {"answer": "6"}
    bare = write(tmp_path / "bare.jsonl", [{"prompt": "no demonstrations"}])
    dropped = run_recipe(tmp_path / "none", bare, recipe).manifest["counts"]["dropped"]
    assert dropped == {"substitution: no demonstrations": 1}


def test_an_answer_may_be_several_or_none_and_what_is_none_ends_no_run(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "red apple tart", "reference": {"answer": ["sweet", "sugary"]}},
        {"prompt": "red apple pie", "reference": {"answer": "sugary"}},
        {"prompt": "red apple salad", "reference": {"answer": ["sour"]}},
        {"prompt": "red apple cake", "reference": {"answer": None}},
        {"prompt": "red apple soup", "reference": {"answer": {"taste": "salt"}}},
    ]
    index = run_index(tmp_path / "a", rows).path("index")
    done = run_recipe(tmp_path / "run", tmp_path / "a" / "corpus.jsonl", Retrieval(index=index))
    found = {(row["anchor"], row["positive"], row["negative"]) for row in read(done, "triplets.jsonl")}
    assert ("red apple tart", "red apple pie", "red apple salad") in found
    assert all("soup" not in f"{anchor}" for anchor, _, _ in found)
    assert done.manifest["counts"]["dropped"]["retrieval: reference is no answer"] == 1
    assert done.manifest["counts"]["read"] == 5


def test_no_item_comes_into_a_prompt_twice_and_the_seed_draws(tmp_path: Path) -> None:
    """Each of two lines has the same two neighbours: they take one each, whatever is drawn, and 20 seeds draw both ways."""
    rows = [{"prompt": "- kind a\n- kind b"}, {"prompt": "- kind c\n- kind d"}]
    index = run_index(tmp_path / "a", rows, items="lines").path("index")
    one = write(tmp_path / "one.jsonl", rows[:1])
    recipe, seen = Substitution(index=index, items="lines", share=1.0), set[str]()
    for seed in range(20):
        job = Synthesize(task=File(path=one), engine=Scripted(), recipe=recipe, filters=(), seed=seed)
        (view,) = read(job.run(tmp_path / f"run{seed}", quiet=True), "instructions.jsonl")
        seen.add(view["messages"][0]["content"])
    assert seen == {"- kind c\n- kind d", "- kind d\n- kind c"}


def test_a_broken_line_of_what_is_held_out_is_an_error(tmp_path: Path) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text('{"prompt": "red apple tart"}\n{torn\n')
    with pytest.raises(InputError, match="broken JSON"):
        run_index(tmp_path / "a", FRUIT, heldout=heldout)
