"""A server that goes away in the middle of a run: the run stops, and goes on with what was answered when it is back."""

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from counterfoil.errors import EngineError
from counterfoil.job import read_manifest
from decode.engines.openai_api import OpenaiApi
from decode.generate import Generate

NUM_PROMPTS = 60


class Server(ThreadingHTTPServer):
    """Answers with the prompt; after `lasts` answers it closes its door, and hangs up on the prompt `bad`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, lasts: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.lasts, self.lock, self.asked = lasts, threading.Lock(), Counter[str]()

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    """One connection to it."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""

    def send(self, body: Any) -> None:
        """Answer with JSON."""
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """List the model."""
        self.send({"data": [{"id": "m", "owned_by": "test"}]})

    def do_POST(self) -> None:
        """Answer, hang up, or close the door."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.lasts -= 1
            over = self.server.lasts < 0
            if not over:
                self.server.asked[text] += 1
        if over:
            self.server.socket.close()
        if over or text == "bad":
            self.close_connection = True
            return
        choice = {"index": 0, "finish_reason": "stop", "message": {"content": f"say {text}"}}
        self.send({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


@contextmanager
def serving(port: int, lasts: int) -> Iterator[Server]:
    server = Server(port, lasts)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def make_job(folder: Path, port: int) -> Generate:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"p{at}"}) + "\n" for at in range(NUM_PROMPTS)))
    engine = OpenaiApi(base_url=f"http://127.0.0.1:{port}/v1", retries=2, backoff_s=0.02, max_in_flight=4)
    return Generate(prompts=prompts, model="m", engine=engine)


# A socket that is closed under its own server makes that server's thread complain: here it is meant to.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_stops_when_the_server_is_gone_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = make_job(tmp_path, port)
    with serving(port, lasts=25) as first:
        with pytest.raises(EngineError, match="went away") as stopped:
            job.run(tmp_path / "run", quiet=True)
        assert "run the same command" in str(stopped.value)
    assert read_manifest(tmp_path / "run") is None
    with serving(port, lasts=10**6) as second:
        done = job.run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"] == {"read": NUM_PROMPTS, "kept": NUM_PROMPTS, "dropped": {}}
    rows = [json.loads(line) for line in done.path("completions.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [f"say p{at}" for at in range(NUM_PROMPTS)]
    assert max(second.asked.values()) == 1
    again = first.asked.keys() & second.asked.keys()
    assert len(again) <= 4, "at most what was in flight"


def test_a_server_that_hangs_up_on_one_request_is_there(tmp_path: Path) -> None:
    """It fails alone, also where nothing else is asked."""
    with serving(0, lasts=10**6) as server:
        job = make_job(tmp_path, server.server_address[1])
        job.prompts.write_text('{"prompt": "good"}\n{"prompt": "bad"}\n')
        done = job.run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"] == {"read": 2, "kept": 1, "dropped": {"generate: request failed": 1}}
