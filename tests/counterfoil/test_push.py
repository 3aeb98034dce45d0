"""Pushing an export: the hub's own library against a small server that speaks the hub's HTTP."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from counterfoil.cli import main

Start = Callable[..., Popen[str]]
TOKEN = "hf_" + "a" * 34


class Hub(ThreadingHTTPServer):
    """Data sets by name, their files by path; what is large comes through git LFS, as the hub has it for parquet."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.unknown: list[str] = []

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """The endpoints that an upload asks; the methods' names are its base class's."""

    server: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def reply(self, value: Any, status: int = 200) -> None:
        """Answer with JSON."""
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def read(self) -> bytes:
        """Return what was sent."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self) -> None:  # noqa: D102
        self.server.blobs[self.path.rsplit("/", 1)[1]] = self.read()
        self.reply({})

    def do_GET(self) -> None:  # noqa: D102
        self.server.unknown.append(f"GET {self.path}")
        self.reply({"error": "not found"}, 404)

    def do_POST(self) -> None:  # noqa: D102
        body, path = self.read(), self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply({"error": "Invalid user token."}, 401)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [{"path": item["path"]} for item in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            found = [item | {"uploadMode": modes[item["path"].endswith(".parquet")]} for item in files]
            self.reply({"files": [item | {"shouldIgnore": False, "oid": None} for item in found]})
        elif path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            actions = [
                {"actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}} | item for item in asked
            ]
            self.reply({"transfer": "basic", "objects": actions})
        elif path.endswith("/commit/main"):
            self.commit(path.split("/datasets/")[1].removesuffix("/commit/main"), body)
        else:
            self.server.unknown.append(f"POST {path}")
            self.reply({"error": "not found"}, 404)

    def create(self, asked: dict[str, Any]) -> None:
        """Make a repository, of this user alone."""
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if not name.startswith("me/"):
            self.reply({"error": f"You don't have the rights to create a repo under {name}"}, 403)
            return
        url = f"{self.server.url}/datasets/{name}"
        status = 409 if name in self.server.repos else 200
        self.server.repos.setdefault(name, {})
        self.server.private.setdefault(name, asked.get("visibility") == "private" or asked.get("private", False))
        self.reply({"url": url, "name": name}, status)

    def commit(self, name: str, body: bytes) -> None:
        """Take a commit's files; those of LFS came before."""
        files = self.server.repos[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
        url = f"{self.server.url}/datasets/{name}/commit/{'0' * 40}"
        self.reply({"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""})


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def push(hub: Hub, start: Start, synth_yaml: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Make a run; return a pusher of it in a process of its own: its exit code, and all that it printed."""
    assert main(["synth", str(synth_yaml(3)), "--to", "run", "--quiet", "--brief"]) == 0
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    env |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def begin(repo: str, **more: str) -> tuple[int, str]:
        child = start("show", "run", "--push", repo, env=env | more)
        out, err = child.communicate(timeout=240)
        return child.returncode, out + err

    return begin


@pytest.mark.slow
def test_a_run_is_pushed_with_the_users_token_which_is_nowhere_kept(
    push: Callable[..., tuple[int, str]], hub: Hub, tmp_path: Path
) -> None:
    """The hub holds what the export holds, privately; a second push adds no repository."""
    for _ in range(2):
        code, printed = push("me/pairs")
        assert code == 0, printed
        assert printed.splitlines()[-2:] == ["run/export", f"{hub.url}/datasets/me/pairs"]
    written = {path.relative_to(tmp_path / "run/export").as_posix(): path.read_bytes()
               for path in (tmp_path / "run/export").rglob("*") if path.is_file()}  # fmt: skip
    assert hub.repos == {"me/pairs": written}
    assert {"README.md", "data/train-00000-of-00001.parquet", "groups/train-00000-of-00001.parquet"} == set(written)
    assert hub.private == {"me/pairs": True}
    assert [request for request in hub.unknown if request.startswith("POST")] == []
    assert TOKEN not in printed
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repo", "env", "told"),
    [
        ("me/pairs", {"HF_TOKEN": ""}, "no token for the hub"),
        ("them/pairs", {}, "403"),
        ("me/pairs", {"HF_TOKEN": "hf_" + "b" * 34}, "401"),
        ("not a name", {}, "allowed: USER/NAME"),
        ("me/pairs", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("me/pairs", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "allowed: a repository that you may write to"),
    ],
)
def test_what_cannot_be_pushed_is_said(
    push: Callable[..., tuple[int, str]], hub: Hub, repo: str, env: dict[str, str], told: str
) -> None:
    code, printed = push(repo, **env)
    assert code == 2
    assert told in printed
    assert "Traceback" not in printed
    assert "hf_" not in printed
    assert not any(hub.repos.values())


def test_parquet_alone_is_not_pushed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "run", "--push", "me/pairs", "--export", "parquet"]) == 2
    assert "--push: --export parquet" in capsys.readouterr().err
    assert [*Path().iterdir()] == []
