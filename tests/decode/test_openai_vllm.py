"""The engine openai_api against a real vLLM."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from decode.engine import Given, Request, Result, Sampling
from decode.engines.openai_api import OpenaiApi, OpenaiSession

TURNS = ({"role": "user", "content": "What is the capital of France?"},)
TEXT = "The capital of France is"


def ask(prompt: str, *, adapter: str | None = None, **sampling: Any) -> Request:
    return Request(id=prompt, prompt=prompt, sampling=Sampling(**sampling), adapter=adapter)


def one(session: OpenaiSession, request: Request) -> Result:
    (result,) = session.complete([request])
    return result


@pytest.fixture(scope="module")
def real(vllm_server: str) -> Iterator[OpenaiSession]:
    with OpenaiApi(base_url=vllm_server).open("smollm2") as opened:
        yield opened


@pytest.mark.slow
def test_real_answers(real: OpenaiSession) -> None:
    short, stop = Sampling(max_new_tokens=6), Sampling(max_new_tokens=6, stop=("Paris",))
    requests = [Request("chat", TURNS, short), Request("text", TEXT, short)]
    requests += [Request("long", "far " * 2000, short), Request("stop", TEXT, stop)]  # the context is 1024 tokens
    found = {result.id: result for result in real.complete(requests)}
    assert "status 400" in (found["long"].failure or "")
    chat, text, stopped = (found[name].completions[0] for name in ("chat", "text", "stop"))
    assert (chat.num_tokens, chat.finish_reason, stopped.finish_reason) == (6, "length", "stop")
    assert text.text.partition("Paris")[:2] == (stopped.text, "Paris")
    assert (chat.num_prompt_tokens, text.num_prompt_tokens) == (real.num_tokens(TURNS), real.num_tokens(TEXT))


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [TURNS, TEXT], ids=["chat", "text"])
def test_real_seed_fixes_n_samples(real: OpenaiSession, prompt: Any) -> None:
    sampling = Sampling(max_new_tokens=6, n=3, temperature=1.0, seed=5)
    (first,), (second,) = (list(real.complete([Request("a", prompt, sampling)])) for _ in range(2))
    assert [item.index for item in first.completions] == [0, 1, 2]
    assert len({item.text for item in first.completions}) == 3
    assert first == second
    assert all(1 <= item.num_tokens <= 6 and item.token_ids is None for item in first.completions)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [TURNS, TEXT], ids=["chat", "text"])
def test_real_given_logprobs_are_the_generated_ones(real: OpenaiSession, prompt: Any) -> None:
    """Greedy: what was generated, scored as given text, has the same log-probabilities."""
    (result,) = real.complete([Request("a", prompt, Sampling(max_new_tokens=6, logprobs=True))])
    (done,) = result.completions
    assert len(done.token_logprobs or ()) == len(done.token_ids or ()) == done.num_tokens == 6
    with_prompt, alone = (next(real.logprobs([Given("b", start, done.text)])) for start in (prompt, ""))
    assert with_prompt.token_logprobs == pytest.approx(done.token_logprobs, abs=1e-3)
    assert len(alone.token_logprobs) == 5  # the first token has none


@pytest.mark.slow
def test_real_text_scored_by_offsets_is_the_same(real: OpenaiSession, monkeypatch: pytest.MonkeyPatch) -> None:
    (by_ids,) = real.logprobs([Given("a", TEXT, " Paris, of course")])
    monkeypatch.setattr(real, "_tokenizes", False)
    (by_offsets,) = real.logprobs([Given("a", TEXT, " Paris, of course")])
    assert by_ids.token_logprobs == pytest.approx(by_offsets.token_logprobs, abs=1e-3)
    assert (len(by_ids.token_logprobs), by_ids.num_prompt_tokens, by_offsets.num_prompt_tokens) == (4, 5, 5)
    assert "crosses" in (next(real.logprobs([Given("a", TEXT[:-1], "s Paris")])).failure or "")
    assert real.num_tokens(TEXT) == 5
    assert "status 404" in (one(real, ask(TEXT, adapter="no such")).failure or "")


@pytest.mark.slow
def test_real_cancelled_requests_leave_the_server_well(real: OpenaiSession) -> None:
    results = real.complete(ask(f"Tell a story, number {number}", max_new_tokens=400) for number in range(16))
    threading.Timer(3.0, real.cancel, ("Tell a story, number 15",)).start()  # it is on its way, and not a short one
    assert Result("Tell a story, number 15", failure="cancelled") in results  # others may end before it
    results.close()
    assert one(real, ask(TEXT, max_new_tokens=2)).failure is None
