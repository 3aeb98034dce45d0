"""The filters: what each drops, with which words, and what it keeps, by hand."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from counterfoil.errors import ConfigError, InputError
from counterfoil.records import Completion, Dropped, Pair, Prompt
from synth.filter import LocalFilter
from synth.filters.copies_prompt import CopiesPrompt
from synth.filters.fuzzy_duplicate import FuzzyDuplicate
from synth.filters.language import Language
from synth.filters.length_gap import LengthGap
from synth.filters.margin import Margin
from synth.filters.overlap import Overlap
from synth.filters.refusal import Refusal
from synth.filters.truncated import Truncated

Alone = Callable[[LocalFilter], Callable[[Pair], Dropped | None]]


def make_pair(
    chosen: str,
    rejected: str = "Another answer.",
    *,
    prompt: str = "Say something.",
    scores: tuple[float, float] = (1.0, 0.0),
    cut: Sequence[Literal["chosen", "rejected"]] = (),
) -> Pair:
    asked = Prompt.make(prompt)
    sides = [
        Completion.make(
            prompt_id=asked.id, index=at, text=text, finish_reason="length" if name in cut else "stop",
            num_prompt_tokens=1, num_tokens=1,
        )
        for at, (name, text) in enumerate((("chosen", chosen), ("rejected", rejected)))
    ]  # fmt: skip
    return Pair.make(asked, sides[0], sides[1], scores=scores, recipe="test")


def why(item: LocalFilter, pair: Pair) -> str:
    """Return the reason for which a filter drops a pair, empty for none; its stage is the filter's own name."""
    found = item.open()(pair)
    if found is None:
        return ""
    assert (found.id, found.stage) == (pair.id, type(item).__module__.rsplit(".", 1)[1])
    return found.reason


# copies_prompt


def test_an_answer_that_says_the_prompt_again_is_dropped() -> None:
    """Case and spaces do not count; 10 letters of which one is another are similar by 1 - 2/20 = 0.9."""
    prompt = "Name a  Colour"
    assert why(CopiesPrompt(), make_pair("name a colour", prompt=prompt)) == "the chosen answer copies the prompt"
    assert (
        why(CopiesPrompt(), make_pair("Red.", "NAME A COLOUR", prompt=prompt))
        == "the rejected answer copies the prompt"
    )
    assert why(CopiesPrompt(), make_pair("Name a colour: red, the colour of love.", prompt=prompt)) == ""
    assert why(CopiesPrompt(), make_pair("abcdefghiX", prompt="abcdefghij")) != ""
    assert why(CopiesPrompt(), make_pair("abcdefghXY", prompt="abcdefghij")) == ""


# margin


@pytest.mark.parametrize(
    ("scores", "most", "reason"),
    [
        ((1.0, 0.5), None, ""),
        ((1.0, 0.75), None, "margin too small"),
        ((0.5, 0.5), None, "margin too small"),
        ((0.0, 1.0), None, "margin too small"),
        ((1.0, 0.0), 0.75, "margin too large"),
        ((1.0, 0.25), 0.75, ""),
    ],
)
def test_scores_are_a_margin_apart(scores: tuple[float, float], most: float | None, reason: str) -> None:
    assert why(Margin(least=0.5, most=most), make_pair("x", scores=scores)) == reason


def test_bounds_of_a_margin_have_something_between_them() -> None:
    with pytest.raises(ValidationError, match="no pair would be kept"):
        Margin(least=0.5, most=0.4)


# length_gap


@pytest.mark.parametrize(
    ("lengths", "longer", "reason"),
    [
        ((10, 5), "either", ""),  # a gap of just a half
        ((11, 5), "either", "the chosen answer is much longer"),
        ((5, 11), "either", "the rejected answer is much longer"),
        ((5, 11), "chosen", ""),
        ((11, 5), "chosen", "the chosen answer is much longer"),
        ((11, 5), "rejected", ""),
    ],
)
def test_lengths_are_alike(lengths: tuple[int, int], longer: Any, reason: str) -> None:
    pair = make_pair("x" * lengths[0] + "  ", "y" * lengths[1])
    assert why(LengthGap(longer=longer), pair) == reason


# truncated


@pytest.mark.parametrize(
    ("cut", "sides", "reason"),
    [
        ((), "either", ""),
        (("chosen",), "chosen", "the chosen answer was cut off"),
        (("rejected",), "chosen", ""),
        (("rejected",), "either", "the rejected answer was cut off"),
        (("chosen", "rejected"), "either", "the chosen answer was cut off"),
    ],
)
def test_answers_have_an_end(cut: Any, sides: Any, reason: str) -> None:
    assert why(Truncated(sides=sides), make_pair("x", cut=cut)) == reason


# refusal

REFUSALS = """I'm sorry, but I can't help with that.
I\u2019m sorry, I cannot assist with this request.
I am sorry, but as an AI language model, I cannot provide medical advice.
As an AI language model, I do not have personal opinions.
I cannot fulfill this request.
**I can't** provide that.
Sorry, but I can't do that.
Sorry, I'm unable to help.
Unfortunately, I am not able to browse the internet.
I apologize, but I cannot write that.
My apologies, but I am unable to do so.
I'm sorry for any confusion, but I don't have access to real-time data.
I'm sorry. I can't help with that.
I won't help with this.
I must decline this request.
It is not appropriate to provide such details.
This would be against my guidelines.
I'm not able to open links.
I understand that you are upset, but I can't help you hurt anyone.
I'm sorry, but that's not something I can do.
I do not have access to your files."""

NO_REFUSALS = """I'm sorry to hear that your cat died, here is how to bury it.
I'm so sorry for your loss. Here is a poem.
I'm sorry to hear that. You can try the following steps.
Sorry I was late yesterday; it will not happen again.
I apologize for the delay in my reply. The parcel was sent today.
Apologize to your friend first, then explain.
I can't wait to tell you about Rome!
I cannot recommend this book enough.
I cannot stress enough how vital sleep is.
I will not only list them but explain them.
I don't have siblings, but my father has three.
It is not appropriate to wear white at someone else's wedding.
It is illegal to give alcohol to minors.
As an AI assistant, I am happy to help: here it is.
Unfortunately, the last dinosaurs died 66 million years ago.
Unfortunately, I missed the bus and had to walk.
I understand. Here are three options.
I can help with that.
Paris"""


@pytest.mark.parametrize("text", REFUSALS.splitlines())
def test_a_refusal_is_dropped(text: str) -> None:
    assert why(Refusal(), make_pair(text)) == "the chosen answer refuses"
    assert why(Refusal(), make_pair("Yes.", text)) == ""
    assert why(Refusal(sides="either"), make_pair("Yes.", text)) == "the rejected answer refuses"


@pytest.mark.parametrize("text", NO_REFUSALS.splitlines())
def test_regret_that_refuses_nothing_is_kept(text: str) -> None:
    assert why(Refusal(sides="either"), make_pair(text, text + " Indeed.")) == ""


def test_openings_are_regular_expressions() -> None:
    assert why(Refusal(openings=("nein",)), make_pair("Nein, danke.")) == "the chosen answer refuses"
    with pytest.raises(ValidationError, match="no regular expression"):
        Refusal(openings=("(",))


# language

SENTENCES = {
    "en": "The old lighthouse keeper climbed the stairs every evening to light the lamp above the harbour.",
    "de": "Der alte Mann ging jeden Abend am Fluss entlang und dachte an die Jahre seiner Jugend.",
    "fr": "Chaque matin, la boulangère ouvrait sa boutique et saluait les premiers clients du quartier.",
    "es": "Los niños jugaban en la plaza mientras sus abuelos conversaban a la sombra de los árboles.",
    "ru": "Каждое утро старый рыбак выходил в море и возвращался только к вечеру с полной лодкой.",  # noqa: RUF001  (it is Russian)
    "ja": "毎朝、彼女は駅まで歩いて行き、同じ電車に乗って会社へ向かいます。今日は雨が降っているので傘を持って行きました。",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_sentences_are_of_their_language(code: str) -> None:
    pair = make_pair(SENTENCES[code], prompt="?")
    assert why(Language(wanted=(code,)), pair) == ""
    other = "de" if code == "en" else "en"
    assert why(Language(wanted=(other,)), pair) == "the chosen answer is in another language"


def test_a_language_is_not_taken_for_its_relative() -> None:
    """The library gives this Spanish sentence 0.61 of Spanish; the rest goes to its neighbours."""
    assert (
        why(Language(), make_pair("El zorro marrón salta rápidamente sobre el perro perezoso.", prompt=SENTENCES["es"]))
        == ""
    )
    assert why(Language(wanted=("en",)), make_pair(SENTENCES["es"])) != ""


def test_the_language_is_the_prompts_unless_one_is_wanted() -> None:
    german, english = SENTENCES["de"], SENTENCES["en"]
    assert why(Language(), make_pair(english, prompt=german)) == "the chosen answer is in another language"
    assert why(Language(), make_pair(german, english, prompt=german)) == "the rejected answer is in another language"
    assert why(Language(), make_pair(english, prompt="Na?")) == "", "a short prompt does not tell"
    assert why(Language(), make_pair("Yes, of course.", prompt=german)) == "", "nor does a short answer"
    assert why(Language(wanted=("de", "en")), make_pair(english, german)) == ""
    with pytest.raises(ConfigError, match="'english'"):
        Language(wanted=("english",)).open()


@pytest.mark.parametrize("text", ["1. 2. 3. 4. 5. 6. 7. 8. 9. 10. 11. 12. 13. 14. 15.", "x" * 60, "\x00\ud7ff" * 30])
def test_what_is_no_language_is_of_any(text: str) -> None:
    assert why(Language(wanted=("ja",)), make_pair(text)) == ""


# overlap

LONG = "when the ship had left the harbour the captain opened the letter that his brother had sent him from the islands"
SHORT = "which river flows through the city of Vienna"


def overlap(folder: Path, rows: Sequence[Any], **fields: Any) -> Overlap:
    path = folder / "heldout.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Overlap(sets=(path,), **fields)


def test_words_of_an_evaluation_set_are_found_wherever_they_stand(tmp_path: Path) -> None:
    """13 words in a row; of LONG's 21 words the last 13 do, however they are written, and 12 do not."""
    item = overlap(tmp_path, [{"a": [{"b": LONG}]}, {"answer": "yes"}])
    words = LONG.split()
    tail = "So: " + ", ".join(words[-13:]).upper() + "!"
    assert why(item, make_pair(tail)) == "the chosen shares words with an evaluation set"
    assert why(item, make_pair("Yes", tail)) == "the rejected shares words with an evaluation set"
    assert why(item, make_pair("Yes", "No", prompt=tail)) == "the prompt shares words with an evaluation set"
    assert why(item, make_pair(" ".join(words[-12:]))) == ""
    assert why(item, make_pair(" ".join(reversed(words)))) == ""
    found = item.open()(make_pair(tail))
    assert found is not None
    assert found.detail == f"heldout.jsonl: {' '.join(words[-13:])}"


def test_a_short_text_is_found_whole(tmp_path: Path) -> None:
    """SHORT has 8 words; labels and single answers, of fewer, are everywhere and mean nothing."""
    item = overlap(tmp_path, [{"question": SHORT, "answer": "the Danube", "label": "yes"}])
    assert why(item, make_pair(f"You ask: {SHORT}? A fine question.")) != ""
    assert why(item, make_pair(SHORT.rsplit(" ", 1)[0])) == ""
    assert why(item, make_pair("the Danube", "yes")) == ""
    assert why(overlap(tmp_path, [{"answer": "the Danube"}], least_words=2), make_pair("It is the Danube.")) != ""


def test_the_index_says_the_same_as_a_plain_search(tmp_path: Path) -> None:
    """Random texts of few words, against sets of tuples."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcd", k=rng.randint(1, 12))) for _ in range(60)]
    item = overlap(tmp_path, [{"text": text} for text in texts], ngram=5, least_words=3)
    judge = item.open()

    def grams(text: str, size: int) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}

    known = {gram for text in texts for gram in grams(text, min(5, len(text.split()))) if len(gram) >= 3}
    outcomes = []
    for at in range(200):
        asked = " ".join(rng.choices("abcdef", k=rng.randint(3, 20)))
        expected = any(grams(asked, size) & known for size in range(3, 6))
        assert (judge(make_pair(asked, f"rejected {at}", prompt="?")) is not None) == expected
        outcomes.append(expected)
    assert 20 < sum(outcomes) < 180


def test_a_set_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="broken JSON"):
        overlap(tmp_path, [{"text": LONG}, "{torn"]).open()
    with pytest.raises(InputError, match="no text of 8 words or more"):
        overlap(tmp_path, [{"text": "too short"}]).open()
    with pytest.raises(InputError, match="no such file"):
        Overlap(sets=(tmp_path / "nowhere.jsonl",)).open()


@pytest.mark.slow
def test_what_was_reworded_is_found_by_its_meaning(tmp_path: Path) -> None:
    """MiniLM; the words differ, so that without it nothing is found."""
    rows = [{"question": "How many legs does a spider have?"}, {"question": "What is the capital city of Australia?"}]
    item = overlap(tmp_path, rows, embedder={"name": "sentence_transformers"}, similarity=0.8, least_words=4)
    reworded = make_pair("Canberra.", prompt="Which city is Australia's capital?")
    found = item.open()(reworded)
    assert found is not None
    assert found.reason == "the prompt rewords an evaluation text"
    assert found.detail.endswith("with: What is the capital city of Australia?")
    assert why(item, make_pair("Red.", prompt="Name a colour that you like.")) == ""
    assert why(item.model_copy(update={"embedder": None}), reworded) == ""


def test_scripts_without_spaces_overlap_by_characters(tmp_path: Path) -> None:
    """Chinese and Japanese part no words: else a question of an evaluation set would be one word, and never found."""
    text = "\u5317\u4eac\u662f\u54ea\u4e2a\u56fd\u5bb6\u7684\u9996\u90fd\uff1f"
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"question": text}) + "\n")
    judged = Overlap(sets=(path,))
    assert why(judged, make_pair("It is.", prompt=f"Q: {text} A:")) == "the prompt shares words with an evaluation set"
    assert why(judged, make_pair("It is.", prompt=text[1:])) == ""


# fuzzy_duplicate


def jaccard(one: str, other: str, size: int = 3) -> float:
    sets = [
        {tuple(text.split()[at : at + size]) for at in range(len(text.split()) - size + 1)} for text in (one, other)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_near_duplicates_are_those_of_high_similarity(alone: Alone) -> None:
    """Texts of 100 words with some replaced, against exact Jaccard: beyond 4 standard errors (0.16) none is wrong."""
    rng = random.Random(0)
    judge = alone(FuzzyDuplicate(similarity=0.6))
    clear = {True: 0, False: 0}
    for at in range(60):
        words = [f"w{rng.randrange(10**6)}" for _ in range(100)]
        first = " ".join(words)
        assert judge(make_pair(first, f"r{at}", prompt=f"Say {at}.")) is None
        for place in rng.sample(range(100), rng.choice([1, 2, 4, 20, 30])):
            words[place] = "new"
        again = " ".join(words)
        exact = jaccard(first, again)
        if abs(exact - 0.6) > 0.16:
            dropped = judge(make_pair(again, f"s{at}"))
            assert (dropped is not None) == (exact > 0.6), exact
            clear[exact > 0.6] += 1
            assert dropped is None or (dropped.stage, dropped.reason) == ("fuzzy_duplicate", "the chosen came before")
    assert min(clear.values()) >= 15


def test_a_text_repeats_itself_and_names_what_it_repeats(alone: Alone) -> None:
    judge = alone(FuzzyDuplicate())
    first = make_pair("Just two", "x")
    assert judge(first) is None
    found = judge(make_pair("just  TWO", "y", prompt="Say more."))
    assert isinstance(found, Dropped)
    assert found.detail == f"similarity 1.00 with {first.id}"
    assert judge(make_pair("just two", "z")) is None, "two pairs of one prompt may share the better answer"
    assert alone(FuzzyDuplicate())(first) is None, "each opening begins anew"
    judge = alone(FuzzyDuplicate(of="prompt"))
    assert judge(make_pair("a", "b", prompt="one two three four")) is None
    assert judge(make_pair("c", "d", prompt="one two three four")) is None, "two pairs of one prompt do not repeat it"
    assert judge(make_pair("c", "d", prompt="One two  three four")) is not None
    assert judge(make_pair("a", "b", prompt="entirely other words here")) is None
