"""A job and its run folder.

    runs/NAME-FINGERPRINT/
      job.json         the config and the hashes of inputs and weights, written first: what this folder belongs to
      state.sqlite     what is finished (store.py); deleted with the folder, never needed once the manifest stands
      progress.jsonl   how far it is
      *.jsonl ...      outputs, each written whole
      manifest.json    written last, by rename: its presence means complete

Running the same job again resumes; a finished run is not done twice.
"""

import contextlib
import fcntl
import json
import os
import tempfile
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

from counterfoil.config import Config, dump
from counterfoil.errors import ConfigError, RunError
from counterfoil.inputs import describe_input, find_incidental, find_inputs, find_limits, find_weights, without_paths
from counterfoil.jsonl import describe_file, open_atomic, write_json
from counterfoil.progress import Progress
from counterfoil.provenance import describe_code, describe_git, describe_versions
from counterfoil.records import Dropped, Record, content_id
from counterfoil.store import Store

__all__ = ["Job", "Run", "is_under_way", "read_manifest", "runs_folder"]

LOOKED_AT_S = 0.2
"""Who only asks whether a folder is worked in holds it for less than this."""
KeptT = TypeVar("KeptT")


def runs_folder() -> Path:
    """Return where runs go: $COUNTERFOIL_RUNS, else runs/ in the working folder."""
    return Path(os.environ.get("COUNTERFOIL_RUNS", "runs"))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return a finished run's manifest, or None."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def is_under_way(folder: Path) -> bool:
    """Say whether a process works in a run's folder."""
    with contextlib.suppress(OSError), (folder / ".lock").open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@dataclass
class Run:
    """One run under way: what `Job.work` writes to."""

    folder: Path
    store: Store
    progress: Progress
    counts: dict[str, int] = field(default_factory=dict[str, int])
    """`read`, `kept`, `failed` ...: what came in and what went on."""
    dropped: Counter[str] = field(default_factory=Counter[str])
    """`stage: reason` -> how many."""
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    """The headline numbers."""
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    """Whatever else the manifest should hold: the model's fingerprint, seeds."""
    leader: Path | None = None
    """The run's own folder, where this process only helps another (`accelerate launch`) and `folder` is thrown away."""
    _outputs: dict[str, tuple[ExitStack, IO[str]]] = field(default_factory=dict[str, tuple[ExitStack, IO[str]]])

    @property
    def home(self) -> Path:
        """The folder that all processes of the run share."""
        return self.leader or self.folder

    def write(self, name: str, record: Record | dict[str, Any]) -> None:
        """Append a record to the output `name`, which appears, whole, when it is closed or the work ends well."""
        stream = self._outputs[name][1] if name in self._outputs else self.open_output(name)
        text = record.model_dump_json() if isinstance(record, Record) else json.dumps(record, ensure_ascii=False)
        stream.write(text + "\n")

    def open_output(self, name: str) -> IO[str]:
        """Open an output that may stay empty, so that it exists all the same."""
        stack = ExitStack()
        stream = stack.enter_context(open_atomic(self.folder / name))
        self._outputs[name] = (stack, stream)
        return stream

    def close_output(self, name: str) -> Path:
        """Let one output appear before the work ends, to be read by its next stage."""
        self._outputs.pop(name)[0].close()
        return self.folder / name

    def drop(self, record: Dropped) -> None:
        """Count a record that does not go on, and keep it in dropped.jsonl."""
        self.dropped[f"{record.stage}: {record.reason}"] += 1
        self.write("dropped.jsonl", record)

    def sift(self, records: Iterable[KeptT | Dropped]) -> Iterator[KeptT]:
        """Yield the records that go on, drop the others, count both as read."""
        for record in records:
            self.counts["read"] = self.counts.get("read", 0) + 1
            if isinstance(record, Dropped):
                self.drop(record)
            else:
                yield record

    def settle(self, *, ok: bool) -> None:
        """Let the outputs appear (`ok`), or remove what was written of them."""
        try:
            if ok:  # a full disk is found out before the first of them appears
                for _, stream in self._outputs.values():
                    stream.flush()
            while ok and self._outputs:
                self.close_output(next(iter(self._outputs)))
        finally:
            for stack, _ in self._outputs.values():
                with contextlib.suppress(_UnfinishedError, OSError):
                    stack.__exit__(_UnfinishedError, _UnfinishedError(), None)
            self._outputs.clear()


class _UnfinishedError(Exception):
    """Tells an output that its work did not end well."""


class Service(Config):
    """What runs until it is interrupted and leaves no run behind: an endpoint."""

    @abstractmethod
    def run(self) -> None:
        """Run. Raises CounterfoilError for what is known to be wrong before it begins."""


class Job(Config):
    """A unit of work with a config, a run folder and a manifest. A subclass's fields are its choices."""

    VERB: ClassVar[str]
    """The command-line verb, which is also the folder of its configs."""
    LIVE: ClassVar[bool] = True
    """Whether it shows live bars; a job whose work is other jobs leaves the terminal to them."""

    FOLLOWS: ClassVar[bool] = False
    """Whether several processes work together on it, as `accelerate launch` starts them."""

    PINNED: ClassVar[bool] = True
    """Whether a run insists on the config and the inputs that it began with; a job of jobs leaves that to each of them."""

    @abstractmethod
    def work(self, run: Run) -> None:
        """Do the work: read inputs, write outputs through `run`. What is in `run.store` is not done again."""

    def check(self) -> None:
        """Raise for what can be known to be wrong before anything heavy is loaded."""

    def describe(self) -> dict[str, Any]:
        """Return the resolved config, to which the run folder is pinned."""
        return dump(self)

    def inputs(self) -> dict[str, Path]:
        """Return the paths that the job reads, by their places in the config; those that are None are left out."""
        return find_inputs(self)

    def fingerprints(self, *, download: bool) -> dict[str, str]:
        """Return fingerprints of the models and adapters that it reads, by their places; see `find_weights`."""
        return find_weights(self, download=download)

    def run(
        self,
        folder: Path | str | None = None,
        *,
        label: str | None = None,
        overrides: tuple[str, ...] = (),
        quiet: bool = False,
        retry_failed: bool = False,
    ) -> "Finished":
        """Do the job in `folder` (by default one named by the config), or go on with it, or find it done.

        With `retry_failed` a finished run goes on where requests of it failed: these are asked again.
        """
        label = label or type(self).__name__.lower()
        identity = self._identity()
        path = Path(folder) if folder else runs_folder() / f"{label}-{content_id(without_paths(identity))[:8]}"
        is_new = not (path / "manifest.json").is_file()
        if is_new:
            self.check()
        identity["weights"] = self.fingerprints(download=is_new or retry_failed)
        done = _check_folder(path, identity, pinned=self.PINNED)
        if done is not None and not (retry_failed and _has_failed(done["counts"])):
            return Finished(path, done, fresh=False)
        if not is_new:
            self.check()
        if int(os.environ.get("RANK", "0")):
            self._follow(path)
            return Finished(path, {}, fresh=True)
        _make_folder(path)
        with _lock(path):
            (path / "manifest.json").unlink(missing_ok=True)  # of other jobs of a job of jobs, or with failures
            write_json(path / "job.json", identity)
            manifest = self._perform(path, identity, label=label, overrides=overrides, quiet=quiet)
        return Finished(path, manifest, fresh=True)

    def _follow(self, path: Path) -> None:
        """Do this process's share; the first process keeps what comes of it."""
        if not self.FOLLOWS:
            raise RunError(
                f"RANK={os.environ['RANK']}",
                given=f"several processes for {type(self).__name__.lower()}",
                allowed="one process; trainings alone take several",
                do="Start it without `accelerate launch`.",
            )
        with tempfile.TemporaryDirectory(prefix="counterfoil-rank-") as scratch:
            folder = Path(scratch)
            run = Run(folder, Store(folder / "state.sqlite"), Progress(None, label="", quiet=True), leader=path)
            with contextlib.closing(run.store):
                self.work(run)

    def _identity(self) -> dict[str, Any]:
        return {
            "job": f"{type(self).__module__}.{type(self).__name__}",
            "config": self.describe(),
            "inputs": {key: describe_input(key, path) for key, path in self.inputs().items()},
            "code": describe_code(self),
            "incidental": find_incidental(self),
            "limits": find_limits(self),
        }

    def _perform(
        self, path: Path, identity: dict[str, Any], *, label: str, overrides: tuple[str, ...], quiet: bool
    ) -> dict[str, Any]:
        started, clock = datetime.now(UTC), time.monotonic()
        progress = Progress(path / "progress.jsonl", label=label, quiet=quiet, live=self.LIVE)
        run = Run(path, Store(path / "state.sqlite"), progress)
        ok = False
        try:
            self.work(run)
            ok = True
        finally:
            with contextlib.closing(run.store), contextlib.closing(progress):
                run.settle(ok=ok)
                seconds = float(run.store.get("run", "seconds") or 0) + time.monotonic() - clock
                run.store.put("run", "seconds", str(seconds))
        manifest = {
            "job": type(self).__name__.lower(),
            "state": "done",
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "config": identity["config"],
            "overrides": list(overrides),
            "inputs": identity["inputs"],
            "weights": identity["weights"],
            "code": identity["code"],
            "outputs": _describe_outputs(path),
            "counts": run.counts | {"dropped": dict(sorted(run.dropped.items()))},
            "tokens": run.tokens,
            "figures": run.figures,
            "versions": describe_versions(),
            "git": describe_git(),
        } | run.facts
        write_json(path / "manifest.json", manifest)
        return manifest


@dataclass(frozen=True)
class Finished:
    """A finished run."""

    folder: Path
    manifest: dict[str, Any]
    fresh: bool
    """False where it was found done."""

    @property
    def figures(self) -> dict[str, Any]:
        """The headline numbers."""
        return self.manifest["figures"]

    def path(self, name: str) -> Path:
        """Return the path of an output."""
        return self.folder / name


OWN_FILES = {"job.json", "manifest.json", "state.sqlite", "progress.jsonl", "state.sqlite-wal", "state.sqlite-shm"}


def _describe_outputs(path: Path) -> dict[str, Any]:
    names = [item for item in sorted(path.iterdir()) if item.name not in OWN_FILES and not item.name.startswith(".")]
    return {item.name: describe_file(item)._asdict() if item.is_file() else "folder" for item in names}


def _check_folder(path: Path, identity: dict[str, Any], *, pinned: bool) -> dict[str, Any] | None:
    """Return the manifest where this very job is done. Raises RunError where the folder belongs to something else."""
    if path.exists() and not path.is_dir():
        raise RunError(str(path), given="a file", allowed="a folder for the run", do="Give another --to.")
    stub = path / "job.json"
    if not stub.is_file():
        strangers = [item.name for item in path.iterdir() if not item.name.startswith(".")] if path.is_dir() else []
        if strangers:
            given = f"a folder with other things in it ({', '.join(sorted(strangers)[:3])})"
            raise RunError(str(path), given=given, allowed="a new, empty or own folder", do="Give another --to.")
        return None
    try:
        before: dict[str, Any] = json.loads(stub.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        before = {}
    manifest = read_manifest(path)
    before = before and before | {key: identity[key] for key in ("incidental", "limits")}
    old, new = (
        without_paths(part, is_done=manifest is not None) if "config" in part else {} for part in (before, identity)
    )
    # Weights that are not to be had now, or were not then, say nothing.
    kept: dict[str, str] = before.get("weights", {})
    found: dict[str, str] = identity["weights"]
    if old:
        shared = sorted(kept.keys() & found.keys())
        old["weights"], new["weights"] = {key: kept[key] for key in shared}, {key: found[key] for key in shared}
    if old != new and not pinned and old.get("job") == new["job"]:
        return None
    if old != new:
        changed = [key for key in ("job", "code", "inputs", "weights") if old.get(key) != new.get(key)]
        config = old.get("config", {})
        changed += [key for key in new["config"] if config.get(key) != new["config"][key]]
        raise RunError(
            str(path),
            given=f"made by another config (differs in: {', '.join(changed)})",
            allowed="the code, config, inputs and weights that the folder was made with",
            do="Give another --to, or delete the folder to start anew.",
        )
    return manifest


def _has_failed(counts: dict[str, Any]) -> bool:
    """Say whether an engine left a request unanswered: of a prompt dropped for it, or of one that did without that answer."""
    return bool(counts.get("failed")) or "generate: request failed" in counts["dropped"]


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(str(path), given=str(error), allowed="a folder that can be made", do="Use --to.") from error


@contextlib.contextmanager
def _lock(path: Path) -> Generator[None]:
    """Hold the folder for this process; the system lets go of it however the process ends."""
    with (path / ".lock").open("w") as stream:
        given_up = time.monotonic() + LOOKED_AT_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > given_up:
                    given, do = "another process works in it", "Wait for it, or stop it."
                    raise RunError(str(path), given=given, allowed="one process a run", do=do) from error
                time.sleep(LOOKED_AT_S / 10)
        yield
