"""One contract for every engine: the same tests run on scripted, hf, vLLM in process, a real vLLM server, and over Ray."""

import json
import math
from collections import deque
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest

from counterfoil.models import find_model
from counterfoil.records import Message
from decode.chat import load_tokenizer
from decode.engine import Given, GivenLogprobs, Request, Result, Sampling, Session
from decode.engines.hf import Hf, HfSession
from decode.engines.openai_api import OpenaiApi
from decode.engines.ray import Ray
from decode.engines.scripted import Scripted
from eval.tasks.constraints import Constraints

pytestmark = pytest.mark.slow

DRAW = Sampling(temperature=1.0, max_new_tokens=12, seed=7)


REPLIES = ("one two three, four five six", "red green{adapter} blue, black white", "so it goes, on and on")


@pytest.fixture(scope="module")
def ray_session() -> Iterator[Session]:
    """Start a Ray of this machine with one replica, once; its answers take a moment, in which they can be cancelled."""
    inner = Scripted(replies=REPLIES, fail_when="word word", latency_s=0.1)
    with Ray(engine=inner, replicas=1).open("any") as session:
        yield session


@pytest.fixture(params=["scripted", "hf", "vllm", "openai_api", "ray"])
def subject(request: pytest.FixtureRequest) -> Iterator[Session]:
    """Open each engine; the heavy ones are shared by the whole test session."""
    if request.param == "scripted":
        yield Scripted(replies=REPLIES, fail_when="word word").open("any")
    elif request.param == "ray":
        yield request.getfixturevalue("ray_session")
    elif request.param == "hf":
        yield request.getfixturevalue("hf_session")
    elif request.param == "vllm":
        yield request.getfixturevalue("vllm_session")
    else:
        base_url: str = request.getfixturevalue("vllm_server")
        with OpenaiApi(base_url=base_url, timeout_s=120).open("smollm2") as session:
            yield session


def chat(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def ask(session: Session, *requests: Request) -> dict[str, tuple[str, ...]]:
    results = list(session.complete(requests))
    assert sorted(item.id for item in results) == sorted(item.id for item in requests)
    assert all(item.failure is None for item in results), results
    return {item.id: tuple(part.text for part in item.completions) for item in results}


def test_seed_fixes_the_text_and_another_changes_it(subject: Session) -> None:
    again = DRAW.model_copy(update={"seed": 8})
    texts = ask(
        subject,
        Request("a", chat("Name a colour and an animal."), DRAW),
        Request("b", chat("Name a colour and an animal."), DRAW),
        Request("c", chat("Name a colour and an animal."), again),
    )
    assert texts["a"] == texts["b"]
    assert texts["a"] != texts["c"]
    assert ask(subject, Request("alone", chat("Name a colour and an animal."), DRAW))["alone"] == texts["a"]


def test_n_samples_come_in_order_and_differ(subject: Session) -> None:
    sampling = DRAW.model_copy(update={"n": 3})
    (result,) = subject.complete([Request("n", chat("Write a line about rain."), sampling)])
    assert [part.index for part in result.completions] == [0, 1, 2]
    assert len({part.text for part in result.completions}) > 1
    assert all(part.prompt_id == "n" for part in result.completions)


def test_stop_string_ends_the_text_before_it(subject: Session) -> None:
    plain = Sampling(max_new_tokens=24)
    (full,) = ask(subject, Request("full", chat("Count: one, two, three, and on."), plain))["full"]
    stop = next(part for part in (",", ".", " ") if part in full.strip())
    (result,) = subject.complete(
        [Request("cut", chat("Count: one, two, three, and on."), plain.model_copy(update={"stop": (stop,)}))]
    )
    assert stop not in result.completions[0].text
    assert full.startswith(result.completions[0].text)
    assert result.completions[0].finish_reason == "stop"


def test_length_cuts_off_and_says_so(subject: Session) -> None:
    (result,) = subject.complete([Request("short", chat("Tell a long story."), Sampling(max_new_tokens=3))])
    assert result.completions[0].finish_reason == "length"
    assert result.completions[0].num_tokens == 3


def test_generated_logprobs_equal_the_given_ones(subject: Session) -> None:
    sampling = Sampling(max_new_tokens=6, logprobs=True)
    (result,) = subject.complete([Request("g", chat("Say hello to the sea."), sampling)])
    part = result.completions[0]
    assert part.token_ids is not None and part.token_logprobs is not None
    assert len(part.token_ids) == len(part.token_logprobs) == part.num_tokens
    assert all(value <= 0 and math.isfinite(value) for value in part.token_logprobs)
    (scored,) = subject.logprobs([Given("g", chat("Say hello to the sea."), part.text)])
    assert scored.failure is None
    assert scored.num_prompt_tokens == part.num_prompt_tokens
    shared = min(len(scored.token_logprobs), part.num_tokens)
    assert shared >= 5
    assert scored.token_logprobs[:shared] == pytest.approx(part.token_logprobs[:shared], abs=2e-3)


def test_plain_text_is_scored_from_its_second_token(subject: Session) -> None:
    whole, part = subject.logprobs(
        [Given("whole", "", "The cat sat on the mat"), Given("part", "The cat sat", " on the mat")]
    )
    by_id = {item.id: item for item in (whole, part)}
    assert by_id["whole"].token_logprobs[-3:] == pytest.approx(by_id["part"].token_logprobs[-3:], abs=2e-3)
    assert len(by_id["whole"].token_logprobs) > len(by_id["part"].token_logprobs)
    assert by_id["whole"].num_prompt_tokens == 1
    assert by_id["part"].num_prompt_tokens == subject.num_tokens("The cat sat")


@pytest.mark.parametrize("subject", ["hf", "vllm", "openai_api"], indirect=True)
def test_token_ids_are_sent_as_they_are(subject: Session) -> None:
    """And a text that greedy decoding wrote is known as such."""
    tokenizer = load_tokenizer(str(find_model("smollm2")))
    prompt, ids = "The river behind the mill", tuple(tokenizer.encode("The river behind the mill"))
    plain = Sampling(max_new_tokens=6, logprobs=True)
    texts, (result,) = ask(subject, Request("t", prompt, plain)), subject.complete([Request("i", ids, plain)])
    assert result.completions[0].text == texts["t"][0]
    assert subject.num_tokens(ids) == len(ids)
    written = result.completions[0].token_ids
    assert written is not None
    other = (written[0] + 1, *written[1:])
    found = {item.id: item for item in subject.logprobs([Given("w", ids, written), Given("o", ids, other)])}
    assert found["w"].is_greedy and not found["o"].is_greedy
    assert found["w"].token_logprobs == pytest.approx(result.completions[0].token_logprobs, abs=1e-3)
    assert len(found["o"].token_logprobs) == len(other)


def test_chat_template_and_token_counts(subject: Session) -> None:
    prompt = chat("How many tokens is this?")
    (result,) = subject.complete([Request("t", prompt, Sampling(max_new_tokens=2))])
    assert result.completions[0].num_prompt_tokens == subject.num_tokens(prompt)
    assert subject.num_tokens(prompt) >= subject.num_tokens("How many tokens is this?")


def test_one_failing_request_among_many_that_succeed(subject: Session) -> None:
    good = [Request(f"good{at}", chat(f"Say {at}."), Sampling(max_new_tokens=2)) for at in range(6)]
    bad = Request("bad", chat("word " * 3000), Sampling(max_new_tokens=2))
    results = {item.id: item for item in subject.complete([*good[:3], bad, *good[3:]])}
    assert len(results) == 7
    assert results["bad"].failure and not results["bad"].completions
    assert all(results[item.id].failure is None for item in good)


def test_requests_are_read_lazily_and_closing_cancels(subject: Session) -> None:
    read = count()

    def endless() -> Iterator[Request]:
        for number in read:
            yield Request(str(number), chat("Say yes."), Sampling(max_new_tokens=2))

    stream = subject.complete(endless())
    assert len(list(islice(stream, 3))) == 3
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]  (a generator)
    assert next(read) < 2000
    assert ask(subject, Request("after", chat("Say yes."), Sampling(max_new_tokens=2)))["after"]


@pytest.mark.parametrize("subject", ["vllm", "openai_api"], indirect=True)
def test_answers_keep_to_a_schema(subject: Session) -> None:
    """At temperature 1 a small model never writes such JSON by itself; beside them plain requests stay plain."""
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    sampling = Sampling(temperature=1.0, max_new_tokens=60, json_schema=schema)
    asked = [
        Request(str(at), chat("Name a colour and a number."), sampling.model_copy(update={"seed": at}))
        for at in range(8)
    ]
    plain = Request("plain", chat("Say yes."), Sampling(max_new_tokens=4))
    texts = ask(subject, *asked[:4], plain, *asked[4:])
    assert texts["plain"] == ask(subject, plain)["plain"]
    for request in asked:
        found = json.loads(texts[request.id][0])
        assert set(found) == {"colour", "count"} and found["colour"] in {"red", "blue"} and 1 <= found["count"] <= 9


def test_a_source_with_nothing_at_present_is_asked_again(subject: Session) -> None:
    """What is asked next depends on the answer before it; meanwhile the source has nothing, and says so."""
    short, answered = Sampling(max_new_tokens=2), list[Result | GivenLogprobs]()
    waiting: deque[Request | Given] = deque([Request("0", chat("Say yes."), short)])

    def source() -> Iterator[Request | Given | None]:
        while len(answered) < 4:
            yield waiting.popleft() if waiting else None

    for reply in subject.stream(source()):
        if reply is None:
            continue
        answered.append(reply)
        name = str(len(answered))
        waiting.append(
            Given(name, chat("Say no."), "No, never.") if len(answered) % 2 else Request(name, chat("Again."), short)
        )
    assert [(type(reply), reply.id) for reply in answered] == [
        (GivenLogprobs if at % 2 else Result, str(at)) for at in range(4)
    ]
    assert all(reply.failure is None for reply in answered)


def test_one_request_can_be_cancelled(subject: Session) -> None:
    long = Sampling(max_new_tokens=200, temperature=1.0)
    requests = [Request("first", chat("Say yes."), Sampling(max_new_tokens=1)), Request("gone", chat("Go on."), long)]
    if isinstance(subject, HfSession):
        subject.cancel("gone")  # one batch at a time: it must be known before the batch begins
    results = {}
    for result in subject.complete(requests):
        results[result.id] = result
        subject.cancel("gone")
    assert results["first"].failure is None
    assert results["gone"].failure == "cancelled"


@pytest.mark.parametrize("subject", ["scripted", "hf"], indirect=True)  # the others: tests/decode/test_vllm_adapters.py
def test_adapter_changes_the_answer_of_its_request_alone(subject: Session, adapter: Path) -> None:
    sampling = Sampling(max_new_tokens=10, seed=1)  # the scripted reply that names its adapter
    texts = ask(
        subject,
        Request("plain", chat("What is a river?"), sampling),
        Request("tuned", chat("What is a river?"), sampling, str(adapter)),
        Request("plain again", chat("What is a river?"), sampling),
    )
    assert texts["plain"] == texts["plain again"] != texts["tuned"]


def test_an_adapter_that_is_none_fails_its_requests_alone(hf_session: Session, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    requests = [
        Request(str(at), chat("Hi."), Sampling(max_new_tokens=2), str(tmp_path / "empty") if at % 2 else None)
        for at in range(40)
    ]
    results = {item.id: item.failure for item in hf_session.complete(requests)}
    assert len(results) == 40
    assert all(("adapter" in (results[str(at)] or "")) == bool(at % 2) for at in range(40)), results


def test_a_row_is_cut_at_its_own_length() -> None:
    """A short prompt gets as many tokens beside a long one as alone."""
    with Hf(max_model_len=64, batch_size=4, dtype="float32").open("smollm2") as session:
        sampling = Sampling(max_new_tokens=40)
        long = Request("long", "word " * 50, sampling)
        short = Request("short", "Count to a hundred: one, two, three,", sampling)
        together = {item.id: item.completions[0] for item in session.complete([long, short])}
        (alone,) = session.complete([short])
    assert together["short"].text == alone.completions[0].text
    assert together["long"].num_tokens <= 64 - together["long"].num_prompt_tokens
    assert together["short"].num_tokens == 40


def test_vllm_equals_transformers_token_for_token(vllm_session: Session, hf_session: Session) -> None:
    """Greedy in float32 on 56 prompts of different lengths: the same tokens, and the text round-trips."""
    prompts = [item for item in Constraints(count=56).prompts("heldout") if hasattr(item, "messages")]
    requests = [
        Request(item.id, item.messages, Sampling(max_new_tokens=16, logprobs=True))  # pyright: ignore
        for item in prompts
    ]
    assert len(requests) >= 50
    ours = {item.id: item.completions[0] for item in vllm_session.complete(requests)}
    theirs = {item.id: item.completions[0] for item in hf_session.complete(requests)}
    assert {key: part.token_ids for key, part in ours.items()} == {key: part.token_ids for key, part in theirs.items()}
    assert {key: part.text for key, part in ours.items()} == {key: part.text for key, part in theirs.items()}
    for key, part in ours.items():
        assert part.token_logprobs == pytest.approx(theirs[key].token_logprobs, abs=2e-3)
