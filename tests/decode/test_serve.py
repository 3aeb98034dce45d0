"""`counterfoil serve` on loopback, asked by a stock `openai` client."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from counterfoil.config import build
from counterfoil.errors import ConfigError, EngineError
from decode.engine import Request, Sampling, Session
from decode.method import Method
from decode.methods.contrastive import Contrastive
from decode.methods.contrastive_search import ContrastiveSearch
from decode.methods.dola import Dola
from decode.methods.guided import Guided
from decode.serve import Serve
from decode.server.gate import RefusedError
from decode.server.names import Names

QUESTION = "Name a river and say where it is."
NEW = 16


@contextmanager
def serve(tmp_path: Path, config: str, *overrides: str) -> Iterator[str]:
    """Start the command in a process of its own, and end it by an interrupt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "counterfoil", "serve", config, f"port={port}", *overrides]
    log = tmp_path / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + 240
        while time.monotonic() < end and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2, trust_env=False).status_code == 200:
                    break
            except httpx.RequestError:
                time.sleep(0.5)
        else:
            pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"an interrupt did not end the server:\n{log.read_text(errors='replace')[-3000:]}")


def make_client(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False))


def expect(session: Session, method: Method | None, *, negative: str | None = None, **sampling: Any) -> str:
    """Answer by the hf engine in this process."""
    chat = tuple({"role": "user", "content": text} for text in [QUESTION])
    other = None if negative is None else ({"role": "user", "content": negative},)
    settings = Sampling(**({"max_new_tokens": NEW} | sampling))
    (result,) = session.complete([Request("x", chat, settings, method=method, negative=other)])  # type: ignore[arg-type]
    assert result.failure is None, result.failure
    return result.completions[0].text


def ask(client: openai.OpenAI, model: str, **more: Any) -> str:
    messages: Any = [{"role": "user", "content": QUESTION}]
    found = client.chat.completions.create(
        model=model, messages=messages, max_tokens=NEW, **({"temperature": 0} | more)
    )
    return found.choices[0].message.content or ""


def refuse(client: openai.OpenAI, model: str, status: int, said: str, **more: Any) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        ask(client, model, **more)
    assert raised.value.status_code == status
    assert said in str(raised.value)


@pytest.mark.slow
def test_a_small_server_has_every_method(tmp_path: Path, hf_session: Session) -> None:
    plain = expect(hf_session, None)
    searched = expect(hf_session, ContrastiveSearch())
    wider = expect(hf_session, ContrastiveSearch(alpha=0.8, k=8))
    guided = expect(hf_session, Guided(scale=3.0), negative="Be rude.")
    assert len({plain, searched, wider, guided}) == 4
    with (
        serve(tmp_path, "search", "max_body_bytes=20000", "engine.max_model_len=1024") as base_url,
        make_client(base_url) as client,
    ):
        listed = [model.id for model in client.models.list()]
        assert listed[0] == "smollm2" and {"smollm2:contrastive_search", "smollm2:dola", "smollm2:guided"} <= set(
            listed
        )
        assert "smollm2:contrastive" not in listed  # it has no amateur
        assert client.models.retrieve("smollm2:dola").id == "smollm2:dola"
        assert ask(client, "smollm2") == plain
        assert ask(client, "smollm2:contrastive_search") == searched
        assert ask(client, "smollm2:contrastive_search", extra_body={"method": {"alpha": 0.8, "k": 8}}) == wider
        assert ask(client, "smollm2", extra_body={"method": {"name": "contrastive_search"}}) == searched
        more = {"method": {"scale": 3.0}, "negative": "Be rude."}
        assert ask(client, "smollm2:guided", extra_body=more) == guided
        messages: Any = [{"role": "user", "content": QUESTION}]
        chunks = list(
            client.chat.completions.create(
                model="smollm2:contrastive_search", messages=messages, max_tokens=NEW, stream=True,
                stream_options={"include_usage": True}, temperature=0,
            )
        )  # fmt: skip
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == searched
        assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 3
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == NEW
        several = client.chat.completions.create(
            model="smollm2", messages=messages, max_tokens=NEW, n=3, temperature=1.0, seed=5, stop=["."]
        )
        assert len({choice.message.content for choice in several.choices}) > 1
        assert all("." not in (choice.message.content or "") for choice in several.choices)
        text = client.completions.create(model="smollm2", prompt=["The river", "A cat"], max_tokens=4, temperature=0)
        assert [choice.index for choice in text.choices] == [0, 1] and all(choice.text for choice in text.choices)
        refuse(client, "other", 404, "There is smollm2")
        refuse(client, "smollm2:contrastive", 404, "There is smollm2")
        refuse(
            client, "smollm2:contrastive_search", 400, "did you mean".capitalize(), extra_body={"method": {"alfa": 1}}
        )
        refuse(client, "smollm2:contrastive_search", 400, "deterministic", temperature=0.7)
        refuse(client, "smollm2", 400, "negative prompt", extra_body={"negative": "x"})
        refuse(client, "smollm2", 400, "tools is not taken", extra_body={"tools": [{"type": "function"}]})
        refuse(client, "smollm2", 400, "max_tokens", extra_body={"max_tokens": 0})
        refuse(client, "smollm2:guided", 400, "leave no room", extra_body={"negative": "so " * 3000})
        refuse(client, "smollm2", 413, "larger than", extra_body={"user": "x" * 20000})
        assert ask(client, "smollm2") == plain
        address = base_url.removesuffix("/v1")
        assert httpx.post(f"{base_url}/completions", content=b"{torn", trust_env=False).status_code == 400
        assert httpx.get(f"{address}/nothing", trust_env=False).status_code == 404
        # An answer that is still under way does not keep an interrupted server.
        under_way = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=900, stream=True)
        assert next(iter(under_way)).choices


@pytest.mark.slow
def test_vllms_server_with_a_method(tmp_path: Path, hf_session: Session) -> None:
    plain = expect(hf_session, None)
    guided = expect(hf_session, Guided(scale=3.0), negative="Be rude.")
    engine = json.dumps({"name": "vllm", "max_model_len": 512, "max_num_seqs": 8, "kv_cache_gib": 0.25})
    with serve(tmp_path, "guided", f"engine={engine}") as base_url, make_client(base_url) as client:
        assert [model.id for model in client.models.list()] == ["smollm2", "smollm2:guided"]
        assert ask(client, "smollm2") == plain
        more = {"method": {"scale": 3.0}, "negative": "Be rude."}
        assert ask(client, "smollm2:guided", extra_body=more) == guided
        assert ask(client, "smollm2", extra_body=more | {"method": {"name": "guided", "scale": 3.0}}) == guided
        messages: Any = [{"role": "user", "content": QUESTION}]
        chunks = client.chat.completions.create(
            model="smollm2:guided", messages=messages, max_tokens=NEW, temperature=0, stream=True, extra_body=more
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == guided
        refuse(client, "smollm2:guided", 400, "it may not be longer", extra_body={"negative": "Be rude. " * 40})
        refuse(client, "smollm2:guided", 400, "scale", extra_body={"method": {"scale": -1}, "negative": "x"})
        refuse(client, "smollm2", 400, "no method is asked for", extra_body={"negative": "x"})
        refuse(client, "smollm2:guided", 400, "scale", extra_body={"method": {"scale": 1e39}, "negative": "x"})
        refuse(client, "smollm2:guided", 400, "token ids are from 0 to", extra_body={"negative": [999_999]})
        refuse(client, "smollm2:guided", 400, "read whole", extra_body=more | {"truncate_prompt_tokens": 5})
        refuse(client, "smollm2", 400, "set by the server", extra_body={"vllm_xargs": {"contrast_pad": 20}})
        for path in ("responses", "messages", "chat/completions/batch"):
            body = {"model": "smollm2:guided", "messages": messages, "input": QUESTION, "max_tokens": 4}
            response = httpx.post(f"{base_url}/{path}", json=body, trust_env=False)
            assert response.status_code == 400 and "takes no method" in response.text
        parts: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
        found = client.chat.completions.create(
            model="smollm2:guided", messages=parts, max_tokens=NEW, temperature=0, extra_body=more
        )
        assert found.choices[0].message.content == guided
        assert ask(client, "smollm2") == plain
        under_way = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=400, stream=True)
        assert next(iter(under_way)).choices


def test_what_is_loaded_is_never_a_requests_choice() -> None:
    names = Names("m", Contrastive(amateur="weak", strength=0.3), gives=frozenset({"two_prompts", "two_models"}))
    assert names.list_names() == ["m", "m:context_aware", "m:guided", "m:contrastive"]
    changed = names.find("m:contrastive", {"threshold": 0.2})
    assert changed == Contrastive(amateur="weak", strength=0.3, threshold=0.2)
    for given in ({"amateur": "/etc"}, {"name": "guided"}, {"strength": "much"}, 3):
        with pytest.raises(RefusedError):
            names.find("m:contrastive", given)
    with pytest.raises(RefusedError, match="no name"):
        names.find("m", {"scale": 2})


def test_a_model_with_a_colon_in_its_name_is_found() -> None:
    names = Names("qwen:7b", None, gives=frozenset({"layers"}))
    assert names.find("qwen:7b", None) is None
    assert names.find("qwen:7b:dola", None) == Dola()
    for other in ("qwen", "qwen:dola", "qwen:7b:guided", "dola"):
        with pytest.raises(RefusedError, match="There is qwen:7b,"):
            names.find(other, None)


def test_a_config_is_checked_before_weights() -> None:
    for values, error, said in (
        ({"engine": "scripted"}, ConfigError, "vllm or hf"),
        ({"engine": "vllm", "method": "dola"}, EngineError, "layers"),
        ({"engine": "hf", "method": "contrastive"}, ConfigError, "amateur"),
        ({"engine": "hf", "method": "decoupled"}, ConfigError, "adapter"),
    ):
        with pytest.raises(error, match=said):
            build(Serve, values, source="test").check()
