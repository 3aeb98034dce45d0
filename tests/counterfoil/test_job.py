"""Run folders: a kill at any moment, an interrupt, two processes, a full disk; what a folder belongs to."""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from counterfoil.cli import main
from counterfoil.config import build
from counterfoil.errors import InputError, RunError
from counterfoil.job import Job, Run, read_manifest
from counterfoil.records import Dropped
from synth.synthesize import Synthesize

OUTPUTS = (
    "prompts.jsonl",
    "exchanges.jsonl",
    "refused.jsonl",
    "scores.jsonl",
    "groups.jsonl",
    "pairs.jsonl",
    "dropped.jsonl",
)

COUNTED = """
from collections.abc import Iterator
from pathlib import Path
from decode.engines.scripted import Scripted, ScriptedSession

class Session(ScriptedSession):
    def stream(self, items, *, glance=False) -> Iterator:
        yield from super().stream(map(self.note, items), glance=glance)
    def note(self, request):
        if request is None:
            return None
        with self._engine.log.open("a") as stream:
            stream.write(request.id + "\\n")
        return request

class Counted(Scripted):
    log: Path
    def open(self, model, *, adapters=(), methods=()):
        return Session(self, model, [])
"""


def read_outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith((".", "state.sqlite"))}


def test_five_kills_lose_nothing_and_repeat_only_what_was_in_flight(
    tmp_path: Path, synth_yaml: Callable[..., Path], start: Any, count_answers: Any, wait_for: Any
) -> None:
    """The scripted engine has one request in flight, so five kills ask five again at the most, of 80."""
    (tmp_path / "job_user").mkdir()
    (tmp_path / "job_user" / "__init__.py").write_text("")
    (tmp_path / "job_user" / "counted.py").write_text(COUNTED)
    log, env = tmp_path / "log.txt", {"PYTHONPATH": str(tmp_path)}
    path = synth_yaml(80, name="job_user.counted", latency_s=0.02, log=str(log), fail_when="no37")
    config = json.loads(path.read_text())
    config["engine"]["name"] = "job_user.counted"
    path.write_text(json.dumps(config))
    rng, before = random.Random(5), 0
    for _ in range(5):
        child = start("synth", str(path), "--to", "killed", "--quiet", env=env)
        more = rng.randint(1, 6)
        wait_for(lambda wanted=before + more: count_answers(tmp_path / "killed") >= wanted)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        after = count_answers(tmp_path / "killed")
        assert before < after < 80
        before = after
        assert visible(tmp_path / "killed") == {"job.json", "progress.jsonl"}
    assert start("synth", str(path), "--to", "killed", "--quiet", env=env).wait() == 0
    asked = Counter(log.read_text().split())
    assert len(asked) == 80
    assert asked.total() - 80 <= 5
    assert start("synth", str(path), "--to", "whole", "--quiet", env=env).wait() == 0
    assert read_outputs(tmp_path / "killed") == read_outputs(tmp_path / "whole")
    killed, whole = read_manifest(tmp_path / "killed"), read_manifest(tmp_path / "whole")
    assert killed is not None
    assert whole is not None
    for key in ("config", "inputs", "outputs", "counts", "tokens", "figures", "model", "seeds"):
        assert killed[key] == whole[key], key
    assert killed["counts"]["pairs"] == 79
    assert not list((tmp_path / "killed").glob(".*.partial"))


def test_an_interrupt_says_how_to_go_on_and_a_second_process_is_kept_out(
    tmp_path: Path,
    synth_yaml: Callable[..., Path],
    start: Any,
    count_answers: Any,
    wait_for: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["synth", str(synth_yaml(40, latency_s=0.1)), "--to", "run"]
    child = start(*words)
    wait_for(lambda: count_answers(tmp_path / "run") >= 3)
    assert main(words) == 2
    assert "another process works in it" in capsys.readouterr().err
    child.send_signal(signal.SIGINT)
    _, shown = child.communicate(timeout=10)
    assert child.returncode == 130
    assert "Interrupted. What is finished is kept: run the same command again to go on." in shown
    assert "Traceback" not in shown
    assert read_manifest(tmp_path / "run") is None
    assert visible(tmp_path / "run") == {"job.json", "progress.jsonl"}
    assert 3 <= count_answers(tmp_path / "run") < 40


def test_a_run_killed_after_its_last_answer_knows_its_model(tmp_path: Path, synth_yaml: Callable[..., Path]) -> None:
    """Without its manifest a run is unfinished: it is written again from what is kept, with no engine opened."""
    assert main(["synth", str(synth_yaml(4)), "--to", "run", "--quiet", "--brief"]) == 0
    before, outputs = read_manifest(tmp_path / "run"), read_outputs(tmp_path / "run")
    assert before is not None
    (tmp_path / "run" / "manifest.json").unlink()
    (tmp_path / "run" / "pairs.jsonl").unlink()
    assert main(["synth", str(synth_yaml(4)), "--to", "run", "--quiet", "--brief"]) == 0
    after = read_manifest(tmp_path / "run")
    assert after is not None
    assert after["model"] == before["model"]
    assert read_outputs(tmp_path / "run") == outputs


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """Mount a file system of 200 kB; skip where this process may not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_does_not_lose_what_is_finished(
    small_disk: Path,
    tmp_path: Path,
    synth_yaml: Callable[..., Path],
    count_answers: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """40 prompts with 2 answers of 4 kB are more than 200 kB, and less than 20 MB."""
    path = synth_yaml(40, replies=["{prompt}", "more " * 800 + "words: {prompt}"])
    words = ["synth", str(path), "--quiet", "--brief", "--to"]
    for _ in range(2):
        assert main([*words, str(small_disk / "run")]) == 2
        shown = capsys.readouterr().err
        assert "no space left" in shown
        assert "do: Free some space and run the same command again: finished work is kept." in shown
        assert "Traceback" not in shown
        assert read_manifest(small_disk / "run") is None
        assert visible(small_disk / "run") <= {"job.json", "progress.jsonl", "prompts.jsonl"}
    assert 0 < count_answers(small_disk / "run") < 40
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert main([*words, str(small_disk / "run")]) == 0
    assert main([*words, "elsewhere"]) == 0
    assert read_outputs(small_disk / "run") == read_outputs(tmp_path / "elsewhere")


def test_a_folder_belongs_to_its_config_and_its_inputs_content(tmp_path: Path, synth_yaml: Callable[..., Path]) -> None:
    """The same content at another path is the same run; other content at the same path is not."""
    values = json.loads(synth_yaml(4).read_text())
    job = build(Synthesize, values, source="test")
    assert job.run("run", quiet=True).fresh
    for change, named in ({"seed": 1}, "seed"), ({"recipe": {"name": "best_of_n", "n": 4}}, "recipe"):
        with pytest.raises(RunError, match=rf"differs in: {named}\)"):
            build(Synthesize, values | change, source="test").run("run", quiet=True)
    prompts = tmp_path / "prompts4.jsonl"
    moved = prompts.with_name("moved.jsonl")
    moved.write_bytes(prompts.read_bytes())
    elsewhere = build(Synthesize, values | {"task": {"name": "file", "path": str(moved)}}, source="test")
    assert not elsewhere.run("run", quiet=True).fresh
    prompts.write_text(prompts.read_text().replace("no3", "no33"))
    with pytest.raises(RunError, match=r"differs in: inputs\)"):
        job.run("run", quiet=True)
    prompts.unlink()
    with pytest.raises(InputError, match=r"task\.path"):
        job.run("run", quiet=True)


def test_an_input_stands_for_itself_and_nothing_beside_it(tmp_path: Path, synth_yaml: Callable[..., Path]) -> None:
    """A filter that reads a file is followed by another: a change of that one is another run, a file moved is not."""
    values = json.loads(synth_yaml(2).read_text())
    (tmp_path / "evaluation.jsonl").write_text('{"text": "one two three four five six seven eight nine"}\n')
    overlap: dict[str, Any] = {"name": "overlap", "sets": [str(tmp_path / "evaluation.jsonl")]}
    job = build(Synthesize, values | {"filters": [overlap, "length_only"]}, source="test")
    assert job.run("run", quiet=True).fresh
    assert not job.run("run", quiet=True).fresh
    for filters in ([overlap], [overlap, "near_duplicate"], [overlap | {"ngram": 5}, "length_only"]):
        with pytest.raises(RunError, match=r"differs in: filters\)"):
            build(Synthesize, values | {"filters": filters}, source="test").run("run", quiet=True)
    moved = overlap | {"sets": [str((tmp_path / "evaluation.jsonl").rename(tmp_path / "moved.jsonl"))]}
    assert (
        not build(Synthesize, values | {"filters": [moved, "length_only"]}, source="test").run("run", quiet=True).fresh
    )


def test_a_run_goes_on_with_more_at_a_time_and_one_that_is_not_done_with_other_limits(
    tmp_path: Path, synth_yaml: Callable[..., Path]
) -> None:
    values = json.loads(synth_yaml(6).read_text())
    limits: dict[str, Any] = {"max_tokens_total": 10}
    short = build(Synthesize, values | limits, source="test").run("run", quiet=True)
    counts = short.manifest["counts"]["dropped"]
    assert any("max_tokens_total" in reason for reason in counts), counts
    engine = values["engine"] if isinstance(values["engine"], dict) else {"name": values["engine"]}
    patient = values | {"engine": engine | {"max_in_flight": 3}}
    assert not build(Synthesize, patient | limits, source="test").run("run", quiet=True).fresh
    with pytest.raises(RunError, match=r"differs in: max_tokens_total\)"):
        build(Synthesize, patient, source="test").run("run", quiet=True)
    (short.folder / "manifest.json").unlink()  # as one that was killed
    done = build(Synthesize, patient, source="test").run("run", quiet=True)
    assert done.fresh
    whole = build(Synthesize, values, source="test").run("whole", quiet=True)
    assert read_outputs(done.folder) == read_outputs(whole.folder)
    with pytest.raises(RunError, match=r"differs in: weights, engine\)"):
        other = values | {"engine": engine | {"replies": ["another"]}}
        build(Synthesize, other, source="test").run("run", quiet=True)


SCORER = """
from counterfoil.records import Score
from eval.scorer import LocalScorer

class Lengthy(LocalScorer):
    def score(self, prompt, completion):
        return Score(completion_id=completion.id, scorer="lengthy", value=len(completion.text) * WEIGHT)

WEIGHT = 1
"""


def test_a_part_of_ones_own_is_known_by_its_code(
    tmp_path: Path, synth_yaml: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a scorer that was mended would be answered by what it made before."""
    package = tmp_path / "own_parts"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "lengthy.py").write_text(SCORER)
    monkeypatch.syspath_prepend(str(tmp_path))
    values = json.loads(synth_yaml(3).read_text()) | {"scorer": "own_parts.lengthy", "filters": []}
    done = build(Synthesize, values, source="test").run("run", quiet=True)
    assert list(done.manifest["code"]) == ["own_parts.lengthy"]
    assert not build(Synthesize, values, source="test").run("run", quiet=True).fresh
    (package / "lengthy.py").write_text(SCORER.replace("WEIGHT = 1", "WEIGHT = 100"))
    importlib.reload(sys.modules["own_parts.lengthy"])
    with pytest.raises(RunError, match=r"differs in: code\)"):
        build(Synthesize, values, source="test").run("run", quiet=True)
    assert build(Synthesize, values, source="test").run(quiet=True).fresh


def test_what_failed_in_a_finished_run_is_asked_again(
    tmp_path: Path, synth_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing else is; where nothing failed the run is done."""
    values = json.loads(synth_yaml(3).read_text())
    fails = values | {"engine": values["engine"] | {"fail_when": "no1"}}
    (tmp_path / "fails.yaml").write_text(json.dumps(fails))
    assert main(["synth", "fails.yaml", "--to", "run", "--quiet", "--brief"]) == 0
    manifest = read_manifest(tmp_path / "run")
    assert manifest is not None
    assert manifest["counts"]["dropped"] == {"generate: request failed": 1}
    assert main(["synth", "fails.yaml", "--to", "run", "--quiet", "--brief"]) == 0
    assert "done already" in capsys.readouterr().out
    assert main(["synth", "fails.yaml", "--to", "run", "--quiet", "--brief", "--retry-failed"]) == 0
    assert "done already" not in capsys.readouterr().out
    whole = build(Synthesize, values, source="test")
    assert whole.run("whole", quiet=True).manifest["counts"]["dropped"] == {}
    assert main(["synth", "fails.yaml", "--to", "run", "--quiet", "--brief", "--retry-failed"]) == 0
    assert not whole.run("whole", quiet=True, retry_failed=True).fresh


def test_a_folder_with_other_things_or_a_file_is_left_alone(tmp_path: Path, synth_yaml: Callable[..., Path]) -> None:
    job = build(Synthesize, json.loads(synth_yaml(2).read_text()), source="test")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=r"other things in it \(thesis\.txt\)"):
        job.run("other", quiet=True)
    with pytest.raises(RunError, match="a file"):
        job.run("other/thesis.txt", quiet=True)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "job.json").write_text('{"job": ')
    with pytest.raises(RunError, match="made by another config"):
        job.run("torn", quiet=True)


def test_a_run_is_named_by_its_config(tmp_path: Path, synth_yaml: Callable[..., Path], monkeypatch: Any) -> None:
    """By default in runs/ or $COUNTERFOIL_RUNS, under the label and eight digits; a folder a config."""
    values = json.loads(synth_yaml(2).read_text())
    first = build(Synthesize, values, source="test").run(label="small", quiet=True)
    assert first.folder.parent == Path("runs")
    assert first.folder.name.startswith("small-")
    assert len(first.folder.name) == len("small-") + 8
    again = build(Synthesize, values, source="test").run(label="small", quiet=True)
    assert (again.folder, again.fresh) == (first.folder, False)
    monkeypatch.setenv("COUNTERFOIL_RUNS", "elsewhere")
    other = build(Synthesize, values | {"seed": 3}, source="test").run(quiet=True)
    assert other.folder.parent == Path("elsewhere")
    assert other.folder.name.startswith("synthesize-")
    assert other.path("pairs.jsonl").is_file()
    assert other.figures["pairs"] == 2


class Failing(Job):
    """Writes two outputs and fails, or not."""

    fail: bool = True

    def work(self, run: Run) -> None:
        """Write, then fail where the environment says so."""
        run.open_output("empty.jsonl")
        run.write("rows.jsonl", {"a": 1})
        run.drop(Dropped(id="x", stage="here", reason="no reason"))
        if "FAIL" in os.environ:
            raise ValueError("a bug")


def test_a_bug_leaves_no_output_and_the_next_run_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(ValueError, match="a bug"):
        Failing().run("run", quiet=True)
    assert visible(tmp_path / "run") == {"job.json", "progress.jsonl"}
    assert not list((tmp_path / "run").glob(".*.partial"))
    monkeypatch.delenv("FAIL")
    done = Failing().run("run", quiet=True)
    assert done.manifest["counts"] == {"dropped": {"here: no reason": 1}}
    assert {name: facts["num_lines"] for name, facts in done.manifest["outputs"].items()} == {
        "dropped.jsonl": 1, "empty.jsonl": 0, "rows.jsonl": 1,
    }  # fmt: skip


def test_the_manifest_is_the_last_file_and_comes_by_rename(
    tmp_path: Path, synth_yaml: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of the run that appears, appears by a rename; the manifest's is the last."""
    renamed: list[str] = []
    replace = Path.replace

    def watch(self: Path, target: Path) -> Path:
        renamed.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    build(Synthesize, json.loads(synth_yaml(2).read_text()), source="test").run("run", quiet=True)
    assert renamed[0] == "job.json"
    assert renamed[-1] == "manifest.json"
    assert sorted(renamed[1:-1]) == sorted(OUTPUTS)
