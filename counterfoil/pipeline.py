"""Pipeline(Job): a list of jobs, each reading what an earlier one wrote.

A job in a pipeline is the command line that a person would type, less `counterfoil`:

    jobs:
      synth: synth quickstart
      align: align quickstart data=synth/pairs.jsonl
      eval: eval quickstart adapter=align/adapter

A value whose first part is an earlier job's name is a path in that job's folder. `model`, `engine`, `prompts` and `seed`,
given for the whole pipeline, go to every job that has such a field and does not name it in its own line. Each job runs in a
process of its own, so that its memory is given back before the next begins, and dies with the pipeline.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from counterfoil.config import find_config, read_yaml
from counterfoil.errors import ConfigError, InputError, RunError
from counterfoil.inputs import list_path_fields
from counterfoil.job import Job, Run, read_manifest
from counterfoil.verbs import VERBS, find_job, load_job

__all__ = ["Pipeline"]


class Pipeline(Job):
    """Jobs one after the other, in folders inside the pipeline's own."""

    VERB: ClassVar[str] = "run"
    LIVE: ClassVar[bool] = False
    PINNED: ClassVar[bool] = False

    jobs: dict[str, str] = Field(min_length=1)
    """Name -> command line."""
    model: str | None = None
    """For every job; None leaves each its own, as all of these do."""
    engine: Any = None
    """For every job that has an engine: a name, or a mapping with a name."""
    prompts: str | None = None
    """For every job that reads prompts: a file, or one that an earlier job writes."""
    seed: int | None = None
    """For every job: its own seed, or its sampling's."""
    changes: dict[str, Any] = {}
    """Overrides for single jobs, `job.field` -> value, as given on the command line."""

    @field_validator("jobs")
    @classmethod
    def check_names(cls, value: dict[str, str]) -> dict[str, str]:
        """Refuse names that cannot be folders."""
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"{name!r} is no name for a job: use letters, digits and _")
        return value

    def describe(self) -> dict[str, Any]:
        """Return the config with each job's own, so that a change in any of their files makes another run."""
        return super().describe() | {"resolved": {name: self.load(name, Path())[0].describe() for name in self.jobs}}

    def inputs(self) -> dict[str, Path]:
        """Return what the jobs read from outside the pipeline."""
        found: dict[str, Path] = {}
        for name in self.jobs:
            earlier = self._before(name)
            for key, path in self.load(name, Path())[0].inputs().items():
                if path.exists() and path.parts[:1] not in [(other,) for other in earlier]:
                    found[f"{name}[{key}]"] = path
        return found

    def fingerprints(self, *, download: bool) -> dict[str, str]:
        """Return those of its jobs that are on this machine before any of them has run; each looks for the rest itself."""
        jobs = {name: self.load(name, Path())[0] for name in self.jobs}
        return {
            f"{name}[{key}]": found
            for name, job in jobs.items()
            for key, found in job.fingerprints(download=False).items()
        }

    def check(self) -> None:
        """Look at every job, so that a mistake in the last one is known before the first begins."""
        for name in self.jobs:
            job, _ = self.load(name, Path())
            earlier = self._before(name)
            inputs = job.inputs()
            own = {key: path for key, path in inputs.items() if not earlier or path.parts[0] not in earlier}
            for key, path in own.items():
                if not path.exists():
                    folders = "".join(f", or in {other}/" for other in earlier)
                    given = f"{key}={path}, which is not there"
                    raise InputError(f"jobs.{name}", given=given, allowed=f"a path{folders}", do="Fix the path.")
            try:
                job.check()
            except InputError:
                if len(own) == len(inputs):
                    raise  # else it is of what an earlier job has yet to write: checked again in its turn

    def work(self, run: Run) -> None:
        """Run the jobs in order; those that are done are found done."""
        with run.progress.stage("jobs", total=len(self.jobs), timed=False) as shown:
            for name in self.jobs:
                job, config = self.load(name, run.folder)
                folder = run.folder / name
                run.progress.say(f"{name}: {self.jobs[name]}")
                job.check()
                _run_apart([*config, *(["--quiet"] if run.progress.quiet else [])], folder, label=name)
                manifest = read_manifest(folder)
                if manifest is None:
                    raise RunError(str(folder), given="no manifest", allowed="a finished job", do="Run again.")
                run.figures[name] = manifest["figures"]
                run.counts[name] = manifest["counts"].get("kept", 0)
                for key, count in manifest["counts"]["dropped"].items():
                    run.dropped[f"{name}: {key}"] += count
                for key, count in manifest["tokens"].items():
                    run.tokens[f"{name} {key}"] = count
                shown.advance()
                if (folder / "report.html").is_file():
                    shutil.copyfile(folder / "report.html", run.folder / "report.html")

    def load(self, name: str, folder: Path) -> tuple[Job, list[str]]:
        """Return a job, and the command line that makes it; paths into earlier jobs' folders lie under `folder`."""
        try:
            words = shlex.split(self.jobs[name])
        except ValueError:  # a quotation without an end
            words = []
        verbs = [verb for verb in VERBS if verb not in ("run", "serve")]
        if len(words) < 2 or words[0] not in verbs:
            allowed = f"VERB CONFIG key=value ..., VERB out of {', '.join(verbs)}"
            raise ConfigError(f"jobs.{name}", given=repr(self.jobs[name]), allowed=allowed, do="Fix the line.")
        verb, config, *overrides = words
        path = find_config(config, VERBS[verb][1])
        paths = list_path_fields(find_job(verb, read_yaml(path).get("job"), source=str(path)))
        own = {text.partition("=")[0] for text in overrides}
        shared = {"model": self.model, "engine": self.engine, "prompts": self.prompts}
        shared |= dict.fromkeys(("seed", "sampling.seed"), self.seed)  # a decode job's seed is its sampling's
        common = [f"{key}={_word(value)}" for key, value in shared.items() if value is not None and key not in own]
        overrides, common = (
            [_place(text, self._before(name), folder, paths) for text in texts] for texts in (overrides, common)
        )
        mine = {key.partition(".")[2]: value for key, value in self.changes.items() if key.startswith(f"{name}.")}
        overrides += common + [f"{key}={_word(value)}" for key, value in mine.items()]
        job, used = load_job(verb, config, overrides, optional=frozenset(common))
        return job, [verb, config, *used]

    def _before(self, name: str) -> list[str]:
        names = list(self.jobs)
        return names[: names.index(name)]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _place(text: str, earlier: list[str], folder: Path, paths: frozenset[str]) -> str:
    """Turn `key=job/file` into `key=folder/job/file` where `job` is an earlier job; in a list, each item.

    A job's bare name stands for its folder only in a field that takes paths: a job may be called `dpo` as well.
    """
    key, sign, value = text.partition("=")
    parts = [
        str(folder / part) if part.split("/")[0] in earlier and ("/" in part or key in paths) else part
        for part in value.split(",")
    ]
    return f"{key}{sign}{','.join(parts)}"


def _run_apart(command: list[str], folder: Path, *, label: str) -> None:
    """Run one job in a child process; raise RunError with its own words where it fails."""
    words = [
        sys.executable,
        "-m",
        "counterfoil",
        *command,
        "--to",
        str(folder),
        "--label",
        label,
        "--brief",
        "--parent",
        str(os.getpid()),
    ]
    child = subprocess.Popen(words)  # noqa: S603  (our own command line, no shell)
    try:
        code = child.wait()
    except BaseException:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise RunError(
            f"job {label}",
            given=f"ended with exit code {code}",
            allowed="0",
            do="See its message above; run again to go on.",
        )
