"""Limits and translations in front of a server, on an application that says what it got."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from decode.server.gate import Gate


def make_client(translate: Any = None, *, wait_s: float = 0.0, **limits: Any) -> httpx.AsyncClient:
    """Return a client of an application that echoes its body after a while, behind a gate."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        await asyncio.sleep(wait_s)
        headers = [(b"x-length", dict(scope["headers"]).get(b"content-length", b""))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": message.get("body", b"")})

    settings: dict[str, Any] = {"max_body_bytes": 1000, "max_requests": 2, "timeout_s": 5.0, **limits}
    gate: Any = Gate(echo, translate=translate, **settings)
    return httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://test")


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def test_a_body_is_translated_and_measured_again() -> None:
    def add(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return body | {"path": path}

    response = run(make_client(add).post("/v1/completions", json={"a": 1}))
    assert response.json() == {"a": 1, "path": "/v1/completions"}
    assert int(response.headers["x-length"]) == len(response.content)
    files = {"file": ("x.wav", b"as it is")}
    assert b"as it is" in run(make_client(add).post("/v1/audio", files=files)).content
    assert run(make_client(add).post("/reset")).content == b""


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"x" * 1001, 413, "larger than 1000 bytes"),
        (b"{torn", 400, "no JSON"),
        (b"[1]", 400, "no JSON object"),
        (b'{"scale": Infinity}', 400, "Infinity is no number"),
        (b'{"text": "\\ud800"}', 400, "surrogate"),
        (json.dumps({"bad": True}).encode(), 400, "not this"),
    ],
)
def test_what_cannot_be_answered_gets_a_sentence(content: bytes, status: int, said: str) -> None:
    def refuse(_: str, body: dict[str, Any]) -> dict[str, Any]:
        if "bad" in body:
            raise ValueError("not this\nand a traceback that is nobody's business")
        return body

    response = run(make_client(refuse).post("/v1/completions", content=content))
    assert response.status_code == status
    error = response.json()["error"]
    assert said in error["message"] and "traceback" not in error["message"]
    assert error["code"] == status


def test_a_nested_body_is_refused() -> None:
    client = make_client(max_body_bytes=1_000_000)
    response = run(client.post("/v1/completions", content=b'{"deep":' + b"[" * 100_000))
    assert response.status_code == 400 and "nested" in response.json()["error"]["message"]


def test_a_body_that_does_not_come_is_given_up() -> None:
    """Reading counts: towards the time, and towards the requests that are being answered."""

    async def drip() -> Any:
        yield b"{"
        await asyncio.sleep(9)

    async def crowd() -> list[int]:
        client = make_client(timeout_s=0.2)
        found = await asyncio.gather(*(client.post("/v1/completions", content=drip()) for _ in range(3)))
        return sorted(response.status_code for response in found)

    assert run(crowd()) == [503, 504, 504]


def test_too_many_requests_are_sent_away_and_a_slow_one_is_given_up() -> None:
    async def crowd() -> list[int]:
        client = make_client(wait_s=0.3)
        found = await asyncio.gather(*(client.post("/v1/completions", json={}) for _ in range(4)))
        assert (await client.post("/v1/completions", json={})).status_code == 200  # there is room again
        return sorted(response.status_code for response in found)

    assert run(crowd()) == [200, 200, 503, 503]
    response = run(make_client(wait_s=2.0, timeout_s=0.05).post("/v1/completions", json={}))
    assert response.status_code == 504 and "0.05 s" in response.json()["error"]["message"]
