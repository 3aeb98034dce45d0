"""The engine `scripted`: replies, seeds, tokens, log-probabilities and failures, as users are told."""

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.errors import ConfigError, InputError
from counterfoil.records import Completion, Message
from decode.engine import Given, GivenLogprobs, Request, Result, Sampling
from decode.engines.scripted import Scripted


def ask(engine: Scripted, prompt: str = "Say it.", *, adapter: str | None = None, **sampling: Any) -> Result:
    with engine.open("any") as session:
        (result,) = session.complete([Request("id", prompt, Sampling(**sampling), adapter)])
    return result


def texts(engine: Scripted, prompt: str = "Say it.", **options: Any) -> list[str]:
    return [item.text for item in ask(engine, prompt, **options).completions]


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(0, ["a", "b", "c", "a"]), (1, ["b", "c", "a", "b"]), (5, ["c", "a", "b", "c"]), (None, ["a"])],
)
def test_sample_i_with_seed_s_is_reply_s_plus_i(seed: int | None, expected: list[str]) -> None:
    """Modulo their number, three."""
    assert texts(Scripted(replies=("a", "b", "c")), seed=seed, n=len(expected)) == expected


def test_places_are_filled_and_the_prompts_own_braces_are_left() -> None:
    engine = Scripted(replies=("{index} of {adapter}: {prompt} {other}",))
    assert texts(engine, "Say {index}.", n=2, adapter="lora") == [
        "0 of lora: Say {index}. {other}",
        "1 of lora: Say {index}. {other}",
    ]
    assert texts(engine) == ["0 of : Say it. {other}"]


def test_of_a_chat_the_last_message_counts() -> None:
    chat: tuple[Message, ...] = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Say it."})
    with Scripted(replies=("{prompt}",)).open("any") as session:
        (result,) = session.complete([Request("id", chat, Sampling())])
        assert session.num_tokens(chat) == 4
        assert session.num_tokens("Say it.") == 2
    assert result.completions[0].text == "Say it."
    assert result.completions[0].num_prompt_tokens == 4


def test_the_first_rule_that_fits_is_used(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text('{"when": "cat", "replies": ["Miaow."]}\n{"when": "a", "replies": ["A.", "B."]}\n')
    engine = Scripted(script=script, replies=("Else.",))
    assert texts(engine, "a cat") == ["Miaow."]
    assert texts(engine, "a dog", n=2) == ["A.", "B."]
    assert texts(engine, "Hello.") == ["Else."]


@pytest.mark.parametrize(
    "line", ["{torn", "[]", '{"when": "a"}', '{"when": "a", "replies": "text"}', '{"replies": []}']
)
def test_a_broken_script_is_named_by_its_line(line: str, tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text(f'{{"when": "a", "replies": ["b"]}}\n{line}\n')
    with pytest.raises(InputError, match=r"script\.jsonl: line 2"):
        Scripted(script=script).open("any")


def test_no_replies_are_no_script() -> None:
    with pytest.raises(ConfigError, match="replies"):
        build(Scripted, {"replies": []}, source="test")


@pytest.mark.parametrize(
    ("sampling", "text", "reason", "num_tokens"),
    [
        ({}, "one two three four", "stop", 4),
        ({"max_new_tokens": 4}, "one two three four", "stop", 4),
        ({"max_new_tokens": 3}, "one two three", "length", 3),
        ({"stop": ("three",)}, "one two ", "stop", 3),
        ({"stop": ("four", "two")}, "one ", "stop", 2),
        ({"stop": ("three",), "max_new_tokens": 1}, "one", "length", 1),
        ({"stop": ("one",)}, "", "stop", 0),
        ({"stop": ("zzz",)}, "one two three four", "stop", 4),
    ],
)
def test_a_reply_is_cut_and_counted(sampling: dict[str, Any], text: str, reason: str, num_tokens: int) -> None:
    """A token is a word with the space before it; spaces at the end are one more."""
    (found,) = ask(Scripted(replies=("one two three four",)), **sampling).completions
    assert (found.text, found.finish_reason, found.num_tokens) == (text, reason, num_tokens)


def test_log_probabilities_come_when_asked_for() -> None:
    """Two tokens of -0.5 nats; the same word has the same token id."""
    engine = Scripted(replies=(" word word",), logprob_nats=-0.5)
    (plain,), (given,) = ask(engine).completions, ask(engine, logprobs=True).completions
    assert plain.token_logprobs is plain.token_ids is None
    assert given.token_logprobs == (-0.5, -0.5)
    assert given.token_ids is not None
    assert given.token_ids[0] == given.token_ids[1]


def test_given_text_is_scored() -> None:
    """After a prompt every token has a log-probability; without one, every token but the first."""
    given = [
        Given("a", "Say:", "one two three"),
        Given("b", "", "one two three"),
        Given("c", "", "one"),
        Given("d", "", ""),
    ]
    with Scripted(logprob_nats=-2).open("any") as session:
        assert [item.token_logprobs for item in session.logprobs(given)] == [(-2.0,) * 3, (-2.0,) * 2, (), ()]


def test_failures_are_results() -> None:
    result = ask(Scripted(fail_when="bad"), "a bad one")
    assert (result.completions, result.failure) == ((), "scripted failure")
    assert ask(Scripted(fail_when="bad"), "a good one").failure is None


def test_requests_are_read_one_at_a_time_and_can_be_cancelled() -> None:
    asked: list[int] = []

    def requests() -> Iterator[Request]:
        for at in itertools.count():
            asked.append(at)
            yield Request(str(at), "Say it.", Sampling())

    with Scripted().open("any") as session:
        session.cancel("1")
        results = session.complete(requests())
        assert [next(results).failure for _ in range(3)] == [None, "cancelled", None]
        assert asked == [0, 1, 2]
    session.close()


def test_a_latency_is_waited() -> None:
    started = time.monotonic()
    ask(Scripted(latency_s=0.05))
    assert time.monotonic() - started >= 0.05


def test_a_request_has_a_key_of_all_that_is_sent() -> None:
    """Another id is the same question; another text, sampling, adapter, engine or model is not."""
    base = Request("a", "Say it.", Sampling())
    engine = Scripted()
    same = engine.key(Request("b", "Say it.", Sampling()), "m")
    assert engine.key(base, "m") == same
    others = {
        engine.key(base, "other"),
        engine.key(Request("a", "Say more.", Sampling()), "m"),
        engine.key(Request("a", "Say it.", Sampling(seed=1)), "m"),
        engine.key(Request("a", "Say it.", Sampling(), "lora"), "m"),
        engine.key(Request("a", ({"role": "user", "content": "Say it."},), Sampling()), "m"),
    }
    assert len(others | {same}) == 6


def test_the_model_is_known_by_its_replies() -> None:
    found = [engine.identify(model) for engine in (Scripted(), Scripted(replies=("x",))) for model in ("a", "b")]
    assert len(set(found)) == 4
    assert found[0] == Scripted(latency_s=1).identify("a")


def test_what_is_no_log_probability_is_a_failure_of_its_request_alone() -> None:
    """NaN, which a half-precision overflow makes, would win or lose every comparison; minus infinity is what cannot be."""
    given = GivenLogprobs("x", (-1.0, math.nan))
    assert (given.token_logprobs, given.failure) == ((), "the log-probability of a token is no number")
    assert GivenLogprobs("x", (-1.0, -math.inf)).token_logprobs == (-1.0, -math.inf)

    def answer(*values: float) -> Result:
        made = Completion.make(
            prompt_id="x",
            index=0,
            text="t",
            finish_reason="stop",
            num_prompt_tokens=1,
            num_tokens=2,
            token_logprobs=values,
        )
        return Result("x", (made,))

    for bad in (math.nan, math.inf):
        assert answer(-1.0, bad) == Result("x", (), "the log-probability of a token is no number")
    (kept,) = answer(-1.0, -math.inf).completions
    assert kept.token_logprobs == (-1.0, -1e4), "and can be written down"
    assert answer(-1.0, -2.0).failure is None
