"""Pipelines of scripted jobs: what one job hands to the next, single overrides, failures, a kill."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from counterfoil.cli import main
from counterfoil.config import build
from counterfoil.errors import ConfigError, CounterfoilError, EngineError, InputError
from counterfoil.job import read_manifest
from counterfoil.pipeline import Pipeline
from counterfoil.verbs import load_job

SCRIPTED = '{"name": "scripted", "replies": ["Answer to: {prompt}"]}'


@pytest.fixture
def two(tmp_path: Path, synth_yaml: Callable[..., Path]) -> Callable[..., Path]:
    """Return a writer of a pipeline: a synthesis, and answers to the prompts of its pairs."""

    def write(second: str = "", *, num: int = 3, latency_s: float = 0.0, **values: Any) -> Path:
        synth = synth_yaml(num, latency_s=latency_s)
        (tmp_path / "decode").mkdir(exist_ok=True)
        (tmp_path / "decode" / "answer.yaml").write_text(f"engine: {SCRIPTED}\n")
        line = second or f"decode {tmp_path}/decode/answer.yaml prompts=first/pairs.jsonl"
        path = tmp_path / "two.yaml"
        path.write_text(json.dumps({"jobs": {"first": f"synth {synth}", "second": line}} | values))
        return path

    return write


def config_of(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest["config"]


def test_the_second_job_reads_what_the_first_wrote(
    tmp_path: Path, two: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Three pairs are three prompts; run again, nothing is done again. The pipeline's manifest sums up its jobs'."""
    assert main(["run", str(two()), "--to", "run", "--quiet", "--brief"]) == 0
    assert capfd.readouterr() == ("", ""), "the jobs are quiet as well"
    manifest = read_manifest(tmp_path / "run")
    assert manifest is not None
    assert manifest["counts"] == {"first": 3, "second": 3, "dropped": {}}
    assert manifest["figures"]["first"]["pairs"] == 3
    answers = [json.loads(line) for line in (tmp_path / "run/second/completions.jsonl").read_text().splitlines()]
    assert [row["text"] for row in answers] == [f"Answer to: Item {at} and no{at}" for at in range(3)]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert main(["run", str(two()), "--to", "run", "--quiet", "--brief"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == stamps


def test_a_finished_pipeline_takes_one_more_job_and_does_no_other_again(
    tmp_path: Path, two: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Each job's own folder says whether it is done; one whose config is another now is refused there."""
    path = two()
    assert main(["run", str(path), "--to", "run", "--quiet", "--brief"]) == 0
    stamps = {name: (tmp_path / "run" / name / "manifest.json").stat().st_mtime_ns for name in ("first", "second")}
    values = json.loads(path.read_text())
    jobs = {"zeroth": values["jobs"]["first"] + " seed=5"} | values["jobs"]
    jobs["third"] = values["jobs"]["second"] + " sampling.seed=1"
    path.write_text(json.dumps(values | {"jobs": jobs}))
    assert main(["run", str(path), "--to", "run", "--quiet", "--brief"]) == 0
    assert stamps == {name: (tmp_path / "run" / name / "manifest.json").stat().st_mtime_ns for name in stamps}
    manifest = read_manifest(tmp_path / "run")
    assert manifest is not None
    assert list(manifest["figures"]) == ["zeroth", "first", "second", "third"]
    capfd.readouterr()
    assert main(["run", str(path), "second.sampling.seed=2", "--to", "run", "--quiet", "--brief"]) != 0
    assert "run/second" in (said := capfd.readouterr().err)
    assert "differs in: sampling" in said
    assert read_manifest(tmp_path / "run") is None, "it means complete"
    assert main(["run", str(path), "--to", "run", "--quiet", "--brief"]) == 0


def test_other_weights_in_their_place_are_seen_by_a_finished_pipeline(
    tmp_path: Path, two: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    path = two()
    values = json.loads(path.read_text())
    values["jobs"]["first"] += f" adapter={adapter}"
    path.write_text(json.dumps(values))
    assert main(["run", str(path), "--to", "run", "--quiet", "--brief"]) == 0
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    capfd.readouterr()
    assert main(["run", str(path), "--to", "run", "--quiet", "--brief"]) != 0
    assert "differs in: weights" in capfd.readouterr().err


def test_what_is_given_for_all_reaches_all_that_have_it(tmp_path: Path, two: Callable[..., Path]) -> None:
    """A decode job's seed is its sampling's; what one job is given goes over what all are given."""
    words = ["run", str(two(model="shared")), "seed=7", "first.seed=8", "second.sampling.max_new_tokens=2"]
    assert main([*words, "--to", "run", "--quiet", "--brief"]) == 0
    first, second = config_of(tmp_path / "run/first"), config_of(tmp_path / "run/second")
    assert (first["model"], second["model"]) == ("shared", "shared")
    assert first["seed"] == 8
    assert second["sampling"]["seed"] == 7
    assert second["sampling"]["max_new_tokens"] == 2
    assert config_of(tmp_path / "run")["changes"] == {"first.seed": 8, "second.sampling.max_new_tokens": 2}


def pipeline(path: Path, **values: Any) -> Pipeline:
    return build(Pipeline, json.loads(path.read_text()) | values, source="two.yaml")


@pytest.mark.parametrize(
    ("second", "error", "told"),
    [
        ("dekode answer", ConfigError, "dekode"),
        ("run quickstart", ConfigError, "VERB out of synth, align, decode, eval"),
        ("decode", ConfigError, "jobs.second"),
        ("decode 'answer", ConfigError, "jobs.second"),
        ("decode answr", ConfigError, "Did you mean 'answer'?"),
        ("decode answer", ConfigError, "prompts: Field required"),
        ("decode answer prompts=frist/pairs.jsonl", InputError, "or in first/"),
        ("decode answer prompts=second/pairs.jsonl", InputError, "jobs.second"),
        ("decode answer prompts=first/pairs.jsonl smapling.n=2", ConfigError, "Did you mean 'sampling'?"),
        ("decode answer prompts=first/pairs.jsonl seed=3", ConfigError, "no field 'seed'"),
        ("synth quickstart engine=pipeline_user.poor", EngineError, "'poor' does not give"),
    ],
)
def test_a_mistake_in_the_last_job_is_known_before_the_first_begins(
    tmp_path: Path,
    two: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    second: str,
    error: type[CounterfoilError],
    told: str,
) -> None:
    (tmp_path / "pipeline_user").mkdir()
    (tmp_path / "pipeline_user" / "__init__.py").write_text("")
    text = "from decode.engine import Engine\nclass Poor(Engine):\n    gives = frozenset({'chat'})\n"
    text = text.replace("gives =", "gives: ClassVar =").replace(
        "from decode", "from typing import ClassVar\nfrom decode"
    )
    (tmp_path / "pipeline_user" / "poor.py").write_text(
        text + "    def open(self, model, *, adapters=(), methods=()): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error) as raised:
        pipeline(two(second)).run("run", quiet=True)
    assert told in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_job_may_bear_the_name_of_a_choice(two: Callable[..., Path]) -> None:
    """`recipe=best_of_n` is a recipe, though a job of that name came before; `task.path=best_of_n/...` is its output."""
    line = json.loads(two().read_text())["jobs"]["first"]
    second = f"{line} recipe=best_of_n recipe.n=3"
    decode = "decode answer prompts=best_of_n/pairs.jsonl"
    pipeline = build(Pipeline, {"jobs": {"best_of_n": line, "second": second, "third": decode}}, source="test")
    job, _ = pipeline.load("second", Path("run"))
    assert job.recipe.n == 3
    job, _ = pipeline.load("third", Path("run"))
    assert job.prompts == Path("run/best_of_n/pairs.jsonl")
    quickstart, _ = load_job("run", "quickstart", [])
    report, _ = quickstart.load("report", Path("run"))
    assert report.parts == (Path("run/synth"), Path("run/align"), Path("run/eval"))


def test_what_is_given_for_all_jobs_yields_to_what_a_line_names() -> None:
    jobs = {
        "conflicts": "eval conflicts",
        "first": "decode answer",
        "second": "decode answer model=other prompts=first/completions.jsonl",
    }
    values = {"jobs": jobs, "model": "mine", "prompts": "conflicts/prompts.jsonl", "seed": 3}
    pipeline = build(Pipeline, values, source="test")
    found = {name: pipeline.load(name, Path("run"))[0] for name in jobs}
    assert [found[name].model for name in jobs] == ["mine", "mine", "other"]
    assert found["conflicts"].seed == 3
    assert found["first"].prompts == Path("run/conflicts/prompts.jsonl")
    assert found["second"].prompts == Path("run/first/completions.jsonl")


def test_a_name_that_is_no_folder_or_no_job_is_refused(two: Callable[..., Path]) -> None:
    path = two()
    for jobs in ({"a/b": "synth x"}, {"": "synth x"}, {}):
        with pytest.raises(ConfigError, match="jobs"):
            pipeline(path, jobs=jobs)
    assert main(["run", str(path), "thrid.seed=3", "--quiet"]) == 2


def test_a_failing_job_stops_the_pipeline_and_it_goes_on_when_mended(
    tmp_path: Path, two: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """The second job's script is broken, then mended; the first job is not run again."""
    script = tmp_path / "script.jsonl"
    script.write_text("{broken\n")
    path = two()
    engine = json.dumps({"name": "scripted", "script": str(script)})
    words = ["run", str(path), f"second.engine={engine}", "--to", "run", "--brief"]
    assert main(words) == 2
    shown = capfd.readouterr().err
    assert "error: job second: ended with exit code 2" in shown
    assert f"error: {script}: line 1" in shown
    assert "Traceback" not in shown
    assert read_manifest(tmp_path / "run") is None
    assert read_manifest(tmp_path / "run/second") is None
    before = (tmp_path / "run/first/manifest.json").stat().st_mtime_ns
    script.write_text('{"when": "Item", "replies": ["Mended."]}\n')
    assert main(words) == 2, "the unfinished job's input changed"
    assert "differs in: inputs" in capfd.readouterr().err
    for item in (tmp_path / "run/second").iterdir():
        item.unlink()
    (tmp_path / "run/second").rmdir()
    assert main(words) == 0
    assert (tmp_path / "run/first/manifest.json").stat().st_mtime_ns == before
    assert "Mended." in (tmp_path / "run/second/completions.jsonl").read_text()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_killed_pipeline_takes_its_job_with_it_and_goes_on(
    tmp_path: Path, two: Callable[..., Path], start: Any, count_answers: Any, wait_for: Any
) -> None:
    """40 prompts at 0.03 s; the kill comes after the third answer. An orphan would hold the folder."""
    words = ["run", str(two(num=40, latency_s=0.03)), "--to", "run", "--brief"]
    parent = start(*words)
    wait_for(lambda: count_answers(tmp_path / "run/first") >= 3)
    (child,) = children(parent.pid)
    parent.kill()
    parent.wait()
    killed = time.monotonic()
    wait_for(lambda: not alive(child))
    assert time.monotonic() - killed < 2
    kept = count_answers(tmp_path / "run/first")
    assert 3 <= kept < 40
    again = start(*words)
    _, shown = again.communicate(timeout=30)
    assert again.returncode == 0
    assert f"first  generate: goes on at {kept} of 40" in shown
    manifest = read_manifest(tmp_path / "run")
    assert manifest is not None
    assert manifest["counts"] == {"first": 40, "second": 40, "dropped": {}}
