"""The engine openai_api against a server with faults; test_openai_vllm.py has it against a real one.

A prompt is the faulty server's script: at the k-th try of `500 drop ok` it does what the k-th word says, the last word
for ever. What comes after `#` only tells prompts apart.
"""

import email.utils
import itertools
import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.errors import ConfigError, EngineError
from decode.engine import Given, Request, Result, Sampling
from decode.engines.openai_api import OpenaiApi, OpenaiSession
from decode.http import parse_retry_after

KEY = "sk-secret/0123456789+abc"


class FaultyServer(ThreadingHTTPServer):
    """Speaks OpenAI's protocol as far as the tests need it, with the faults that a prompt asks for."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.models: Any = {"data": [{"id": "small", "owned_by": "vllm"}, {"id": "large", "owned_by": "acme"}]}
        self.tries: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.base_url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what many of the tests do."""


class Handler(BaseHTTPRequestHandler):
    """One connection to it."""

    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""

    def send(self, status: int, body: Any, *, retry_after: str = "", cut: bool = False) -> None:
        """Answer with JSON or with bytes as they are; `cut` hangs up half-way."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def do_GET(self) -> None:
        """List the models, or fail with the status that stands in their place."""
        if isinstance(self.server.models, int):
            self.send(self.server.models, {"error": {"message": f"no: {self.headers['authorization']}"}})
        else:
            self.send(200, self.server.models)

    def do_POST(self) -> None:
        """Note the request and do what its prompt says."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.keys.add(str(self.headers["authorization"]))
            number = self.server.tries[prompt] = self.server.tries[prompt] + 1
        if self.path.endswith("/tokenize"):
            return self.send(404, {"detail": "Not Found"})
        script = prompt.split("#")[0].split() or ["ok"]
        word, _, value = script[min(number, len(script)) - 1].partition(":")
        return self.act(word, value, body)

    def act(self, word: str, value: str, body: dict[str, Any]) -> None:
        """Do what a word says; `ok` and any that is unknown answer as they should."""
        if word == "hang":
            self.server.ended.wait(30)
        if word in {"hang", "drop"}:
            self.close_connection = True
        elif word == "garbage":
            self.send(200, b'{"choices": [')
        elif word == "wrapped":
            self.send(200, {"error": {"message": "too many at a time", "code": int(value)}})
        elif word == "strict" and body["response_format"]["json_schema"]["strict"]:
            self.send(400, {"error": {"message": "Invalid schema for response_format 'answer'"}})
        elif word == "holes":
            found = answer(body)
            found["choices"][0]["logprobs"]["token_logprobs"][int(value)] = None
            self.send(200, found)
        elif word == "shape":
            self.send(200, {"choices": [{"index": 0}]})
        elif word == "key":
            said = f"bad {self.headers['authorization']} " + "or other " * 100
            self.send(int(value), {"error": {"message": said, "key": KEY}})
        elif word.isdigit():
            self.send(int(word), {"error": {"message": "x" * 999}}, retry_after=value)
        else:
            self.send(200, answer(body, fewer=word == "fewer"), cut=word == "cut")


def answer(body: dict[str, Any], *, fewer: bool = False) -> dict[str, Any]:
    """Answer with choice k having k + 2 tokens, each of log-probability -0.5; echo one token a character."""
    choices: list[dict[str, Any]] = []
    for index in range(body["n"] - fewer if "n" in body else 1):
        num = index + 2
        choice: dict[str, Any] = {"index": index, "finish_reason": "length" if index else "stop"}
        if "prompt" in body:
            found: dict[str, Any] = {"token_logprobs": [-0.5] * num}
            if body.get("echo"):
                num = len(body["prompt"]) + 1
                found = {"token_logprobs": [None] + [-float(at) for at in range(1, num)]}
                found["text_offset"] = list(range(num))
            choice |= {"text": f"a{index}", "logprobs": found if "logprobs" in body else None}
        else:
            found = {"content": [{"logprob": -0.5}] * num}
            choice |= {"message": {"content": f"a{index}"}, "logprobs": found if body.get("logprobs") else None}
        choices.append(choice | {"token_ids": list(range(num))})
    return {"choices": choices[::-1], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as faulty:
        threading.Thread(target=faulty.serve_forever, args=(0.02,), daemon=True).start()
        yield faulty
        faulty.ended.set()
        faulty.shutdown()


def make(server: FaultyServer, **fields: Any) -> OpenaiApi:
    return OpenaiApi(base_url=server.base_url, **{"backoff_s": 0.01, "timeout_s": 5.0, "deadline_s": 20.0} | fields)


@pytest.fixture
def session(server: FaultyServer) -> Iterator[OpenaiSession]:
    with make(server).open("large") as opened:
        yield opened


def ask(prompt: str, *, chat: bool = False, adapter: str | None = None, **sampling: Any) -> Request:
    turns = ({"role": "user", "content": prompt},) if chat else prompt
    return Request(id=prompt, prompt=turns, sampling=Sampling(**sampling), adapter=adapter)


def one(session: OpenaiSession, request: Request) -> Result:
    (result,) = session.complete([request])
    return result


def failures(session: OpenaiSession, *prompts: str) -> dict[str, str | None]:
    return {result.id: result.failure for result in session.complete(ask(prompt) for prompt in prompts)}


@pytest.mark.parametrize("word", ["500", "503", "429", "408", "drop", "cut", "garbage", "hang"])
def test_a_fault_is_tried_again_until_the_retries_end(server: FaultyServer, word: str) -> None:
    with make(server, timeout_s=1.0 if word == "hang" else 10.0, retries=2).open("small") as session:
        found = failures(session, f"{word} {word} ok", word)
    assert found[f"{word} {word} ok"] is None
    assert "tries: 3" in (found[word] or "")
    assert server.tries == {f"{word} {word} ok": 3, word: 3}


def test_retry_after_is_waited_out(session: OpenaiSession) -> None:
    start = time.monotonic()
    assert one(session, ask("429:1 ok")).failure is None
    assert time.monotonic() - start >= 1.0
    assert parse_retry_after("2.5") == 2.5
    assert 8.5 < parse_retry_after(email.utils.formatdate(time.time() + 10, usegmt=True)) <= 10  # of whole seconds
    for none in (None, "soon", "-3", "nan", "inf", "Mon, 01 Jan 2001 00:00:00 GMT"):
        assert parse_retry_after(none) == 0


def test_the_deadline_ends_what_retries_would_not(server: FaultyServer) -> None:
    start = time.monotonic()
    with make(server, retries=10**6, deadline_s=0.6).open("small") as session:
        found = failures(session, "500", "hang", "429:60 ok")
    assert time.monotonic() - start < 3
    assert len([sentence for sentence in found.values() if sentence]) == 3
    assert "deadline_s=0.6" in (found["429:60 ok"] or "")
    assert server.tries["429:60 ok"] == 1  # to wait would be in vain


def test_a_refusal_fails_at_once(session: OpenaiSession, server: FaultyServer) -> None:
    result = one(session, ask("400"))
    assert result.failure == "status 400: " + "x" * 197 + "..."
    assert server.tries["400"] == 1
    assert one(session, ask("fewer", n=3, temperature=1.0)).failure == "server sent 2 of 3 choices"
    assert "another shape" in (one(session, ask("shape")).failure or "")


def test_the_key_is_sent_and_never_shown(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("COUNTERFOIL_TEST_KEY", KEY + "\n")
    caplog.set_level(logging.DEBUG)
    engine = make(server, api_key_env="COUNTERFOIL_TEST_KEY", retries=1)
    with engine.open("small") as session:
        results = list(session.complete([ask("key:400"), ask("key:500"), ask("ok")]))
        shown = [repr(results), repr(engine), repr(session), repr(vars(session)), engine.model_dump_json()]
    assert server.keys == {f"Bearer {KEY}"}
    assert {result.id for result in results if result.failure} == {"key:400", "key:500"}
    server.models = 403
    with pytest.raises(EngineError, match="COUNTERFOIL_TEST_KEY") as error:
        engine.open("small")
    shown += [str(error.value), caplog.text, repr(error.value.__cause__)]
    assert "sk-secret" not in " ".join(shown)
    assert "Bearer [key]" in repr(results)
    monkeypatch.setenv("COUNTERFOIL_TEST_KEY", "sk-\u00e9\u00e9")
    with pytest.raises(EngineError) as error:
        engine.open("small")
    assert "\u00e9" not in str(error.value)


def test_one_that_fails_hurts_no_other(session: OpenaiSession) -> None:
    requests = [ask(f"{word} #{number}") for number in range(20) for word in ("ok", "500 ok", "drop ok", "ok ok")]
    requests += [ask("400"), ask("\ud800"), ask("", n=2, temperature=1.0)]
    results = list(session.complete(requests))
    assert Counter(result.id for result in results) == {request.id: 1 for request in requests}
    assert {result.id for result in results if result.failure} == {"400"}


def test_requests_are_read_no_faster_than_they_are_answered(server: FaultyServer) -> None:
    read = itertools.count()
    with make(server, max_in_flight=8).open("small") as session:
        results = session.complete(ask(f"ok #{next(read)}") for _ in itertools.count())
        assert len({next(results).id for _ in range(50)}) == 50
        assert next(read) <= 50 + 8


def test_closing_the_iterator_cancels_promptly(server: FaultyServer) -> None:
    with make(server, max_in_flight=4, timeout_s=60, deadline_s=60).open("small") as session:
        results = session.complete(ask(f"{'hang' if number else 'ok'} #{number}") for number in itertools.count())
        assert next(results).id == "ok #0"
        start = time.monotonic()
        results.close()
        assert time.monotonic() - start < 2
        seen = sum(server.tries.values())
        time.sleep(0.3)
        assert sum(server.tries.values()) == seen <= 5
        assert one(session, ask("ok")).failure is None  # the session goes on


def test_an_interrupt_gets_through(server: FaultyServer) -> None:
    session = make(server, timeout_s=60, deadline_s=60).open("small")
    start = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), session:
        list(session.complete([ask("hang")]))
    assert time.monotonic() - start < 2


def test_cancel_ends_one_request(server: FaultyServer) -> None:
    with make(server, timeout_s=60, deadline_s=60).open("small") as session:
        session.cancel("unknown")
        threading.Timer(0.3, session.cancel, ("hang",)).start()
        assert failures(session, "hang", "ok", "500 ok") == {"hang": "cancelled", "ok": None, "500 ok": None}


def test_close_ends_the_thread_and_what_is_in_flight(server: FaultyServer) -> None:
    session = make(server, timeout_s=60, deadline_s=60).open("small")
    threading.Timer(0.3, session.close).start()
    assert failures(session, "hang", "hang #2") == {"hang": "cancelled", "hang #2": "cancelled"}
    session.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "counterfoil-http"]
    with pytest.raises(EngineError, match="closed"):
        list(session.complete([ask("ok")]))


def test_open_says_what_is_wrong(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EngineError, match=r"Did you mean 'large'\?"):
        make(server).open("larg")
    with pytest.raises(EngineError, match="small, large"):
        make(server).open("small", adapters=["calm"])
    server.models = 401
    with pytest.raises(EngineError, match=r"OPENAI_API_KEY is not set"):
        make(server).open("small")
    server.models = 404
    make(server).open("anything").close()
    with pytest.raises(EngineError, match="lists no models"):
        make(server).open("default")
    with pytest.raises(EngineError, match="ConnectError"):
        OpenaiApi(base_url="http://127.0.0.1:9/v1", backoff_s=0.01).open("small")
    for wrong in ("127.0.0.1:8000", "ftp://host/v1", "http://me:word@host/v1"):
        with pytest.raises(ConfigError, match="base_url"):
            build(OpenaiApi, {"base_url": wrong}, source="test")


def test_the_body_says_what_the_sampling_says(server: FaultyServer) -> None:
    base = {"temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "n": 2, "seed": 3}
    with make(server).open("large") as session:
        one(session, ask("ok", chat=True, adapter="calm", stop=("x",), max_new_tokens=5, **base))
        one(session, ask("ok", seed=None))
    with make(server).open("default") as session:
        one(session, ask("ok", logprobs=True))
    chat = {"messages": [{"role": "user", "content": "ok"}], "logprobs": True, "top_logprobs": 0}
    assert server.bodies[0] == base | chat | {"stop": ["x"], "max_tokens": 5, "model": "calm"}
    plain = {"temperature": 0.0, "top_p": 1.0, "n": 1, "max_tokens": 256, "prompt": "ok"}
    assert server.bodies[1] == plain | {"model": "large"}
    vllm = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
    assert server.bodies[2] == plain | {"model": "small", "seed": 0, "logprobs": 0} | vllm


@pytest.mark.parametrize("chat", [True, False])
def test_choices_are_counted_each(session: OpenaiSession, chat: bool) -> None:
    result = one(session, ask("ok", chat=chat, n=3, temperature=1.0))
    found = [(item.index, item.text, item.num_tokens, item.finish_reason) for item in result.completions]
    assert found == [(0, "a0", 2, "stop"), (1, "a1", 3, "length"), (2, "a2", 4, "length")]
    assert {item.token_logprobs for item in result.completions} == {None}
    (kept,) = one(session, ask("ok", chat=chat, logprobs=True)).completions
    assert (kept.token_ids, kept.token_logprobs, kept.num_prompt_tokens) == ((0, 1), (-0.5, -0.5), 7)


def test_given_text_without_tokenize(session: OpenaiSession) -> None:
    """Token k of `ok #ab`, one a character, has log-probability -k; those of `ab` are -4 and -5."""
    turns = ({"role": "user", "content": "ok"},)
    rows = [("text", "ok #", "ab"), ("alone", "", "ok#"), ("none", "ok", ""), ("chat", turns, "ab")]
    found = {item.id: item for item in session.logprobs(Given(*row) for row in rows)}
    assert (found["text"].token_logprobs, found["text"].num_prompt_tokens) == ((-4.0, -5.0), 4)
    assert found["alone"].token_logprobs == (-1.0, -2.0)
    assert (found["none"].token_logprobs, found["none"].failure) == ((), None)
    assert found["chat"].failure == "server has no /tokenize"
    assert session.num_tokens("ok") == session.num_tokens(turns) == 7
    with pytest.raises(EngineError, match="num_tokens"):
        session.num_tokens("400")


def test_a_refusal_that_a_gateway_passes_on_as_a_success_is_one(server: FaultyServer) -> None:
    with make(server, retries=2).open("small") as session:
        found = failures(session, "wrapped:429 ok", "wrapped:403")
    assert found["wrapped:429 ok"] is None
    assert (
        found["wrapped:403"] == "status 403: too many at a time (tries: 1 in 0.0 s)"[: len(found["wrapped:403"] or "")]
    )
    assert server.tries == {"wrapped:429 ok": 2, "wrapped:403": 1}


def test_a_server_with_a_dialect_of_schemas_is_asked_less_strictly(server: FaultyServer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}, "required": ["a"]}
    with make(server).open("large") as session:
        for prompt in ("strict", "strict#2"):
            assert one(session, ask(prompt, json_schema=schema)).failure is None
    sent = [body["response_format"]["json_schema"] for body in server.bodies if "response_format" in body]
    assert [item["strict"] for item in sent] == [True, False, False]
    assert sent[0]["schema"]["additionalProperties"] is False, "as OpenAI's strict mode wants it said of every object"
    assert sent[0]["schema"]["properties"]["a"]["additionalProperties"] is False


def test_a_token_without_a_log_probability_makes_no_score(server: FaultyServer) -> None:
    with make(server).open("small") as session:
        found = {
            place: next(session.logprobs([Given(place, "holes:", f"{place} and more")])) for place in ("0", "9", "15")
        }
    assert found["0"].failure is None
    assert {found[place].failure for place in ("9", "15")} == {"the log-probability of a token is no number"}
