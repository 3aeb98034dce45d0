"""The kinds of constraint, the scorer that checks them and the task that draws them."""

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import eval.tasks.constraints as task_module
from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt
from eval.constraints.kind import Topic
from eval.constraints.kinds import EASY, KINDS, list_combinations
from eval.constraints.structure import KEYS, LABELS
from eval.constraints.text import sentences, words
from eval.constraints.topics import HELDOUT_TOPICS, TRAIN_TOPICS
from eval.constraints.words import AVOIDED, ENDINGS, OPENINGS
from eval.plain_text import PASSAGES
from eval.scorers.verifiable import Verifiable
from eval.task import Split, Task
from eval.tasks.constraints import Constraints, assign_split

BEES = Topic("bees", ("flowers", "honey", "hive"))

# kind, parameters, a text that meets it, a text that does not
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("max_words", {"n": 6}, "Bees don't sleep for long.", "Bees do not sleep for very long."),
    ("max_words", {"n": 6}, "Bees like flowers.", "Bees!"),
    ("min_words", {"n": 5}, "Bees make honey for us.", "Bees make good honey."),
    ("words_between", {"low": 3, "high": 4}, "Bees make honey.", "Bees make honey for us."),
    ("exact_sentences", {"n": 2}, "Dr. Bee has 2.5 hives. He is glad!", "Bees are nice."),
    ("max_sentences", {"n": 1}, "Bees make honey, wax, etc. for the hive.", "Bees fly. They hum."),
    ("short_sentences", {"n": 3}, "Bees make honey. We eat it.", "Bees make much honey. We eat it."),
    ("include_word", {"word": "honey"}, "I eat Honey daily.", "Bees are honeyed animals."),
    ("include_words", {"words": ["hive", "honey"]}, "A hive has honey.", "A hive has wax."),
    ("repeat_word", {"word": "bee", "n": 2}, "One bee meets another Bee here.", "One bee meets two other bees."),
    ("avoid_word", {"word": "and"}, "Bees fly from sand to land.", "Bees fly and they also hum."),
    ("start_phrase", {"phrase": "In my view"}, "In my view, bees are fine.", "In my viewpoint bees are fine."),
    ("start_phrase", {"phrase": "In my view"}, '"In my view bees hum a lot"', "Bees are, in my view, fine."),
    ("end_phrase", {"phrase": "Try it yourself"}, "Bees make honey. Try it yourself!", "Try it yourself with bees."),
    ("end_phrase", {"phrase": "Try it yourself"}, '"Do eat honey: try it yourself."', "Try it yourself."),
    ("start_letter", {"letter": "B"}, "1. bees are small", "A bee is small."),
    ("bold_word", {"word": "honey"}, "Bees make **honey** now.", "Bees **make** honey now."),
    ("lowercase", {}, "bees are small.", "Bees are small."),
    ("uppercase", {}, "BEES ARE SMALL.", "BEES ARE small."),
    ("capital_words", {"n": 2}, "BEES are VERY small indeed.", "BEES ARE VERY SMALL INDEED."),
    ("no_commas", {}, "Bees fly to some flowers.", "Bees, as they fly, hum."),
    ("no_commas", {}, "They are what they are.", "Bees fly."),
    ("end_exclamation", {}, 'He said "Bees are great!"', "Bees are great! I like them."),
    ("end_question", {}, "Bees fly. Do you **know?**", "Do you know? I do not."),
    ("one_question", {}, "Do you know? I do not.", "Do you? Do I? Do they?"),
    ("has_number", {"n": 2}, "In 1999 I had 2.5 jars of honey.", "In 1999 I had two jars."),
    ("has_number", {"n": 1}, "The hive has six legs times 6.", "1. Bees fly\n2. Bees hum a lot"),
    ("quoted", {}, '"Bees make good honey."', '"Bees" make good "honey"'),
    ("quoted", {}, "\u201cBees make honey.\u201d", "Bees make honey."),
    ("placeholder", {"n": 1}, "Dear [name], bees are in the hive.", "Dear [1], see [bees](x) in the hive."),
    ("aside", {}, "Bees (so they say) are quite small.", "Bees (small) are in the hive today."),
    ("bullets", {"n": 2}, "Here:\n- Bees hum\n* Bees fly", "- Bees hum\n- Bees fly\n- Bees work"),
    ("bullets", {"n": 2}, "- Bees hum\n- Bees fly", "- Bees hum\n- Bees hum"),
    ("numbered", {"n": 2}, "1. Bees hum\n2) Bees fly", "1. Bees hum\n3. Bees fly"),
    ("paragraphs", {"n": 2}, "Bees hum.\n\nBees fly.", "Bees hum.\nBees fly."),
    ("lines", {"n": 2}, "Bees hum.\n\nBees fly.", "Bees hum. Bees fly."),
    ("title_line", {}, "Title: Bees\nThey fly all day.", "Bees\nTitle: they fly all day."),
    ("angle_title", {}, "<<Bees>>\nThey fly all day.", "<<Bees that fly all day>>"),
    ("json_keys", {"keys": ["name", "tip"]}, '{"name": "bee", "tip": ["fly high"]}', '{"name": "bee fly high"}'),
    ("json_keys", {"keys": ["name"]}, '```json\n{"name": "a small bee"}\n```', 'Here it is: {"name": "a bee"}'),
    ("json_keys", {"keys": ["name", "tip", "detail"]}, '{"name":"b","tip":"x","detail":1}', "name tip detail"),
    ("two_parts", {}, "Bees hum.\n***\nBees fly.", "Bees hum.\n\nBees fly."),
    ("postscript", {}, "Bees make honey.\n\nP.S. They hum.", "P.S. Bees make honey."),
    ("labels", {"labels": ["Pro", "Con"]}, "Pro: sweet honey\nCon: it stings", "Pro: sweet honey, con: it stings"),
]


def make_completion(prompt: Prompt, text: str, *, finish_reason: str = "stop") -> Completion:
    return Completion.make(
        prompt_id=prompt.id, index=0, text=text, finish_reason=finish_reason, num_prompt_tokens=1, num_tokens=1
    )


def draw(split: Split, **fields: Any) -> list[Prompt]:
    return list(Constraints(**fields).prompts(split))


def list_kinds(prompt: Prompt) -> frozenset[str]:
    return frozenset(constraint["kind"] for constraint in prompt.reference["constraints"])


@pytest.mark.parametrize(("name", "params", "good", "bad"), CASES)
def test_check_tells_good_from_bad(name: str, params: dict[str, Any], good: str, bad: str) -> None:
    assert KINDS[name].check(good, params)
    assert KINDS[name].check(f"\n {good} \n", params)
    assert not KINDS[name].check(bad, params)


def test_every_kind_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(KINDS)
    assert len(KINDS) >= 24


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("text", ["", "  \n", ".", "* * *", '""', "\ufeff"])
def test_empty_text_meets_nothing(name: str, text: str) -> None:
    assert not KINDS[name].check(text, KINDS[name].sample(Random(0), BEES))


@given(text=st.text() | st.text(alphabet="aB .,!?*-\n\"[](){}<>1:'#`"), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None, database=None)
def test_check_never_raises(text: str, seed: int) -> None:
    for kind in KINDS.values():
        assert kind.check(text, kind.sample(Random(seed), BEES)) in {True, False}


def test_check_survives_deep_json() -> None:
    assert not KINDS["json_keys"].check("[" * 200_000 + "a b c", {"keys": ["name"]})


@pytest.mark.parametrize("name", sorted(KINDS))
def test_phrase_says_the_params(name: str) -> None:
    kind = KINDS[name]
    for seed in range(20):
        params = kind.sample(Random(seed), BEES)
        said = {kind.phrase(params, variant=variant) for variant in range(len(kind.wordings))}
        assert len(said) == len(kind.wordings) >= 2
        for value in params.values():
            for part in value if isinstance(value, list) else [value]:
                assert all(str(part) in phrase for phrase in said)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Mr. Smith paid 3.50 at 5 p.m. on Monday. It was late.", 2),
        ("We met at 5 p.m. It was late.", 2),
        ("Well... maybe not. Or so... He left.", 3),
        ('"Stop!" he said. Then he left', 2),
        ("bees fly. bees hum! do they? yes", 4),
        ("Use tools, e.g. Hammers, by J. Smith and I. You see?", 2),
        ("1. Bees fly\n2. Bees hum", 2),
        ("See www.example.com for more.", 1),
        ("Wait?! No!!", 2),
        ("... !", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(sentences(text)) == count


def test_words_keep_hyphens_and_leave_numbering_out() -> None:
    assert words("1. Don't re-use it\n2) a 2.5") == ["Don't", "re-use", "it", "a", "2", "5"]


def test_fixed_texts_have_no_avoided_word() -> None:
    """A pair such as avoid_word with start_phrase must be possible to meet for every topic."""
    fixed = {word.casefold() for text in (*OPENINGS, *ENDINGS, *KEYS, *sum(LABELS, ())) for word in words(text)}
    firsts = {topic.words[0] for topic in (*TRAIN_TOPICS, *HELDOUT_TOPICS)}
    assert fixed.isdisjoint({*AVOIDED, *firsts})


def test_topics_are_many_and_disjoint() -> None:
    train, heldout = ({topic.name for topic in topics} for topics in (TRAIN_TOPICS, HELDOUT_TOPICS))
    assert len(train) == len(TRAIN_TOPICS) >= 80
    assert len(heldout) == len(HELDOUT_TOPICS) >= 50
    assert train.isdisjoint(heldout)
    assert all(len(set(topic.words)) == 3 for topic in (*TRAIN_TOPICS, *HELDOUT_TOPICS))


def test_combinations_never_share_a_group() -> None:
    pairs = list_combinations(2)
    assert len(pairs) > 200
    assert all(KINDS[first].groups.isdisjoint(KINDS[second].groups) for first, second in pairs)
    assert ("lowercase", "uppercase") not in pairs


def test_every_kind_is_in_both_splits() -> None:
    for split in ("train", "heldout"):
        found = {name for names in (*list_combinations(1), *list_combinations(2)) if assign_split(names) == split
                 for name in names}  # fmt: skip
        assert found == set(KINDS)
        assert set().union(*map(list_kinds, draw(split, count=400))) == set(KINDS)


def test_splits_share_neither_topic_nor_combination() -> None:
    seen: dict[str, set[Any]] = {"train": set(), "heldout": set()}
    for seed in range(4):
        for split in ("train", "heldout"):
            for prompt in draw(split, count=150, seed=seed):
                assert prompt.tags["split"] == split
                assert prompt.tags["kinds"] == "+".join(sorted(list_kinds(prompt)))
                seen[split] |= {prompt.tags["topic"], list_kinds(prompt)}
    assert seen["train"].isdisjoint(seen["heldout"])


def test_same_config_same_prompts_and_prefix() -> None:
    full = [prompt.model_dump_json() for prompt in draw("train", count=100)]
    assert full == [prompt.model_dump_json() for prompt in draw("train", count=100)]
    assert full[:50] == [prompt.model_dump_json() for prompt in draw("train", count=50)]
    assert full != [prompt.model_dump_json() for prompt in draw("train", count=100, seed=1)]
    assert len({prompt.id for prompt in draw("train", count=2000)}) == 2000


def test_prompts_are_short_and_say_their_constraints() -> None:
    for prompt in draw("heldout", count=100):
        (message,) = prompt.messages
        assert message["role"] == "user"
        assert 1 <= len(prompt.reference["constraints"]) <= 2
        assert len(words(message["content"])) < 80
        for constraint in prompt.reference["constraints"]:
            kind = KINDS[constraint["kind"]]
            assert any(
                kind.phrase(constraint, variant=variant) in message["content"] for variant in range(len(kind.wordings))
            )


@pytest.mark.parametrize("size", [1, 2])
def test_number_of_constraints(size: int) -> None:
    assert {len(list_kinds(prompt)) for prompt in draw("train", min_constraints=size, max_constraints=size)} == {size}


@pytest.mark.parametrize("fields", [{"count": 0}, {"max_constraints": 3}, {"min_constraints": 2, "max_constraints": 1}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Constraints(**fields)


def test_count_beyond_what_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "TEMPLATES", ("Write about {topic}.",))
    monkeypatch.setattr(task_module, "TRAIN_TOPICS", (BEES,))
    monkeypatch.setattr(task_module, "MAX_TRIES", 50)
    with pytest.raises(InputError, match="could be drawn"):
        draw("train", count=100_000, max_constraints=1)


def test_task_is_found_by_name_and_has_its_scorer() -> None:
    task = Task.model_validate({"name": "constraints", "count": 3})
    assert isinstance(task, Constraints)
    assert task.scorer() == Verifiable()


PROMPT = Prompt.make("Write.", reference={"constraints": [{"kind": "lowercase"}, {"kind": "max_words", "n": 14}]})


@pytest.mark.parametrize(
    ("text", "value", "detail"),
    [
        ("bees make honey", 1.0, {"lowercase": True, "max_words": True, "all": True}),
        ("Bees make honey", 0.5, {"lowercase": False, "max_words": True, "all": False}),
        ("Bees " * 15, 0.0, {"lowercase": False, "max_words": False, "all": False, "degenerate": True}),
        ("bees hum " * 6, 0.0, {"lowercase": True, "max_words": True, "all": False, "degenerate": True}),
        ("", 0.0, {"lowercase": False, "max_words": False, "all": False}),
    ],
)
def test_score(text: str, value: float, detail: dict[str, bool]) -> None:
    score = Verifiable().score(PROMPT, make_completion(PROMPT, text))
    assert (score.value, score.detail, score.scorer) == (value, detail, "verifiable")


def test_score_keeps_the_checks_of_a_cut_off_answer() -> None:
    completion = make_completion(PROMPT, "bees make honey", finish_reason="length")
    score = Verifiable().score(PROMPT, completion)
    assert score.value == 1.0
    assert score.detail["cut_off"] is True
    assert score.completion_id == completion.id


def test_score_counts_a_kind_given_twice() -> None:
    twice = [{"kind": "include_word", "word": "hive"}, {"kind": "include_word", "word": "wax"}]
    prompt = Prompt.make("Write.", reference={"constraints": twice})
    score = Verifiable().score(prompt, make_completion(prompt, "The hive is empty."))
    assert score.value == 0.5
    assert score.detail == {"include_word": True, "include_word#2": False, "all": False}


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        ({}, "missing"),
        ({"constraints": []}, "constraints"),
        ({"constraints": ["lowercase"]}, "constraints"),
        ({"constraints": [{"n": 3}]}, "kind None"),
        ({"constraints": [{"kind": "rhymes"}]}, "rhymes"),
        ({"constraints": [{"kind": "max_words"}]}, "KeyError"),
        ({"constraints": [{"kind": "max_words", "n": "ten"}]}, "TypeError"),
    ],
)
def test_bad_reference_is_an_input_error(reference: dict[str, Any], match: str) -> None:
    prompt = Prompt.make("Write.", reference=reference)
    with pytest.raises(InputError, match=match) as caught:
        Verifiable().score(prompt, make_completion(prompt, "bees make honey"))
    assert caught.value.do


def test_plain_text_passages() -> None:
    assert len(set(PASSAGES)) == len(PASSAGES) == 60
    for passage in PASSAGES:
        assert 35 <= len(words(passage)) <= 60, passage
        assert passage.isascii()
    assert all(first.split()[:4] != second.split()[:4] for first, second in pairwise(sorted(PASSAGES)))


def test_easy_prompts_have_twenty_kinds_in_both_splits_and_no_combination_in_common() -> None:
    found: dict[Split, set[str]] = {}
    for split in ("train", "heldout"):
        prompts = list(Constraints(count=400, difficulty="easy").prompts(split))
        found[split] = {item.tags["kinds"] for item in prompts}
        assert {kind for names in found[split] for kind in names.split("+")} == EASY
    assert len(EASY) >= 20
    assert found["train"].isdisjoint(found["heldout"])
