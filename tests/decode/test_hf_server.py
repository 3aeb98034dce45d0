"""The small server in this process, over a tiny random model: what is refused, what is taken, what a stream holds back."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx

from decode.engine import Request, Result
from decode.engines.hf import Hf, HfSession
from decode.server.gate import Gate
from decode.server.hf_server import make_app
from decode.server.names import Names

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 12}
JSON = {"content-type": "application/json"}
TEXT: dict[str, Any] = {"model": "m", "prompt": "The river", "max_tokens": 12, "temperature": 0}


def run(model: Path, talk: Callable[[httpx.AsyncClient, HfSession], Any]) -> Any:
    """Talk to a server that lives as long as the talk."""

    async def live() -> Any:
        engine = Hf(dtype="float32", max_model_len=256)
        session: Any = engine.open(str(model))
        app = make_app(session, Names("m", None, gives=engine.gives), engine=engine)
        gate: Any = Gate(app, max_body_bytes=1 << 20, max_requests=99, timeout_s=60)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(gate)
            async with httpx.AsyncClient(transport=transport, base_url="http://test/v1", timeout=60) as client:
                return await talk(client, session)

    return asyncio.run(live())


def post(client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
    return client.post(
        "/chat/completions" if "messages" in body else "/completions", content=json.dumps(body), headers=JSON
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    (TEXT | {"seed": 2**64}, "less than"),
    (TEXT | {"prompt": ""}, "no token"),
    (TEXT | {"prompt": ["a", ""]}, "no token"),
    (TEXT | {"prompt": []}, "0 of them"),
    (TEXT | {"prompt": ["a"] * 65}, "1 to 64"),
    (TEXT | {"n": 65, "temperature": 1}, "1 to 64"),
    (TEXT | {"stop": ""}, "stop"),
    (TEXT | {"stop": "\ud800"}, "surrogate"),
    (TEXT | {"prompt": "\udfff"}, "surrogate"),
    (TEXT | {"logprobs": 0}, "logprobs is not taken"),
    (TEXT | {"temperature": 1000}, "temperature"),
    (TEXT | {"top_p": 0}, "top_p"),
    (TEXT | {"model": "m:guided", "negative": ""}, "no token"),
    (TEXT | {"model": "m:guided", "method": {"scale": 1e39}, "negative": "x"}, "scale"),
    (TEXT | {"model": "m:contrastive_search", "method": {"k": 2500}}, "256"),
    (CHAT | {"model": "m:guided", "negative": []}, "role and a content"),
    (CHAT | {"method": {"name": ["guided"]}}, "no name"),
    (CHAT | {"method": ""}, "no name"),
    (CHAT | {"method": {}}, "no name"),
    (CHAT | {"method": {"name": None}}, "no name"),
    (CHAT | {"tools": [{"type": "function"}]}, "tools is not taken"),
    (CHAT | {"messages": [{"role": "user"}]}, "role and a content"),
    (CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "role and a content"),
]


def test_what_cannot_be_answered_gets_a_sentence(tiny_model: Path) -> None:
    async def talk(client: httpx.AsyncClient, _: HfSession) -> None:
        for body, said in REFUSED:
            response = await post(client, body)
            assert response.status_code == 400, (body, response.text)
            assert said in response.json()["error"]["message"], (body, response.text)
        for method, path, status in (("GET", "/nothing", 404), ("GET", "/completions", 405), ("POST", "/nothing", 404)):
            response = await client.request(method, path)
            assert response.status_code == status and path in response.json()["error"]["message"]
        assert (await client.get("http://test/health")).status_code == 200

    run(tiny_model, talk)


def test_nulls_and_what_changes_nothing_are_taken(tiny_model: Path) -> None:
    async def talk(client: httpx.AsyncClient, _: HfSession) -> None:
        plain = (await post(client, CHAT | {"temperature": 0})).json()["choices"][0]["message"]["content"]
        for more in (
            dict.fromkeys(("top_p", "n", "stream", "stop", "seed", "method", "negative", "logprobs", "tools", "user")),
            {"tools": [], "logit_bias": {}, "tool_choice": "none", "response_format": {"type": "text"}},
            {"temperature": 1e-40},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Name a river."}]}]},
        ):
            response = await post(client, CHAT | {"temperature": 0} | more)
            assert response.status_code == 200, response.text
            assert response.json()["choices"][0]["message"]["content"] == plain

    run(tiny_model, talk)


def test_a_stream_never_shows_what_a_stop_string_takes_back(tiny_model: Path) -> None:
    async def talk(client: httpx.AsyncClient, _: HfSession) -> None:
        whole = (await post(client, TEXT)).json()["choices"][0]["text"]
        assert len(whole) > 20
        middle = len(whole) // 2
        stops: list[Any] = [whole[middle : middle + size] for size in (1, 2, 3, 7)]
        stops += [
            whole[-2:],
            [whole[middle : middle + 4], whole[middle + 1 : middle + 2]],
            whole[-3:] + "and on",
            "zzz",
        ]
        for stop in stops:
            cut = (await post(client, TEXT | {"stop": stop})).json()["choices"][0]["text"]
            assert not any(one in cut for one in ([stop] if isinstance(stop, str) else stop))
            streamed = await post(client, TEXT | {"stop": stop, "stream": True})
            events = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
            assert events.pop() == "[DONE]"
            assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == cut

    run(tiny_model, talk)


def test_a_request_that_breaks_the_engine_hurts_no_other(tiny_model: Path) -> None:
    async def talk(client: httpx.AsyncClient, session: Any) -> None:
        answer, broken = session.complete, False

        def complete(requests: Iterable[Request]) -> Iterator[Result]:
            for request in (kept := list(requests)):
                if broken or "bad" in str(request.prompt):
                    raise RuntimeError("no such row")
            yield from answer(kept)

        session.complete = complete
        expected = (await post(client, TEXT)).json()["choices"][0]["text"]
        bodies = [TEXT, TEXT | {"prompt": "bad"}, TEXT, TEXT | {"prompt": "bad", "stream": True}, TEXT]
        found = await asyncio.gather(*(post(client, body) for body in bodies))
        assert [response.status_code for response in found] == [200, 500, 200, 200, 200]
        assert all(found[at].json()["choices"][0]["text"] == expected for at in (0, 2, 4))
        assert found[1].json()["error"]["type"] == "server_error" and "no such row" in found[1].text
        assert '"code": 500' in found[3].text and found[3].text.endswith("data: [DONE]\n\n")
        assert (await client.get("http://test/health")).status_code == 200
        broken = True
        assert (await post(client, TEXT)).status_code == 500
        assert (await client.get("http://test/health")).status_code == 500

    run(tiny_model, talk)
