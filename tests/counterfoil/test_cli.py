"""The command line: show, runs, doctor, and what a job prints."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from counterfoil.cli import main
from counterfoil.config import build, dump
from counterfoil.verbs import load_job
from synth.synthesize import Synthesize

Show = pytest.CaptureFixture[str]


def run_small(path: Path, folder: str) -> None:
    assert main(["synth", str(path), "--to", folder, "--quiet", "--brief"]) == 0


def test_a_config_is_shown_whole(capsys: Show, synth_yaml: Callable[..., Path]) -> None:
    """What is printed is YAML that builds the same job again."""
    assert main(["show", "synth/quickstart", "recipe.margin=0.25"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# synth quickstart, resolved\n")
    job, _ = load_job("synth", "quickstart", ["recipe.margin=0.25"])
    assert build(Synthesize, yaml.safe_load(shown), source="shown") == job
    assert main(["show", str(synth_yaml(3))]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["engine"]["name"] == "scripted"


@pytest.mark.parametrize("name", ["answer", "align/quickstart", "eval/report"])
def test_a_config_that_lacks_its_inputs_is_shown_all_the_same(capsys: Show, name: str) -> None:
    assert main(["show", name]) == 0
    assert "(to be given)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("quickstart", "several configs have this name"),
        ("no_such_thing", "neither a run's folder nor a known config"),
        ("elsewhere/x.yaml", "a config whose verb is not known"),
        (".", "a folder without manifest.json"),
    ],
)
def test_what_cannot_be_shown_is_said(capsys: Show, what: str, told: str) -> None:
    assert main(["show", what]) == 2
    assert told in capsys.readouterr().err


def test_a_run_is_shown_and_listed(capsys: Show, synth_yaml: Callable[..., Path], tmp_path: Path) -> None:
    """Four prompts, eight answers of which half pass, four pairs: a mean score of 0.5."""
    run_small(synth_yaml(4, fail_when="no3"), "runs/done")
    (tmp_path / "runs/begun").mkdir()
    stub = json.loads((tmp_path / "runs/done/job.json").read_text())
    (tmp_path / "runs/begun/job.json").write_text(json.dumps(stub | {"inputs": {}}))
    (tmp_path / "runs/torn").mkdir()
    (tmp_path / "runs/torn/job.json").write_text("{")
    (tmp_path / "runs/no_run").mkdir()
    os.utime(tmp_path / "runs/done/job.json", (1e9, 1e9))
    capsys.readouterr()
    assert main(["show", "runs/done"]) == 0
    shown = capsys.readouterr().out
    for words in ("synthesize in runs/done", "read 4, prompts 4", "failed 1", "1  generate: request failed", "0.5"):
        assert words in shown
    assert main(["runs"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "\u2502" in line]
    cells = {row[0]: row[1:] for row in ([cell.strip() for cell in line.split("\u2502")[1:-1]] for line in rows)}
    assert list(cells)[-1] == "done", "the oldest comes last"
    assert cells["done"][:2] == ["synthesize", "done"]
    assert cells["done"][2].endswith("h" + cells["done"][2].split("h")[1])
    assert cells["done"][3:] == ["task.path prompts4.jsonl", "pairs 3"]
    assert cells["begun"][1] == "unfinished"
    assert cells["torn"][1] == "broken"
    assert "no_run" not in cells
    (tmp_path / "runs/begun/progress.jsonl").write_text(
        json.dumps({"time": 1e9, "stage": "generate", "done": 7, "total": 9, "left_s": 65.0, "counts": {"kept": 5}})
        + "\n{"
    )
    assert main(["show", "runs/begun"]) == 0
    shown = capsys.readouterr().out
    for words in ("not finished", "generate: 7 of 9, 1m05s left", "5  kept", "run the same command again"):
        assert words in shown
    assert main(["show", "runs/begun", "--export", "parquet"]) == 2
    with (tmp_path / "runs/begun/.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert main(["show", "runs/begun"]) == main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert "a process works in it" in shown
    assert "under way" in shown
    assert main(["runs", "nowhere"]) == 0
    assert capsys.readouterr().out == "no runs in nowhere\n"


def test_a_job_prints_its_table_and_says_when_it_is_done_already(capsys: Show, synth_yaml: Callable[..., Path]) -> None:
    path = synth_yaml(3)
    assert main(["synth", str(path), "--to", "run", "seed=4"]) == 0
    shown = capsys.readouterr()
    assert "read 3, prompts 3, completions 6, pairs 3, kept 3" in shown.out
    assert shown.err.splitlines()[0].startswith("small  generate: 3 done in ")
    assert main(["synth", str(path), "--to", "run", "seed=4"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("small: done already, in run\n")
    assert shown.err == ""
    assert main(["synth", str(path), "--to", "other", "--quiet", "--brief"]) == 0
    assert capsys.readouterr() == ("", "")


def test_what_models_write_is_no_markup(capsys: Show, tmp_path: Path, synth_yaml: Callable[..., Path]) -> None:
    """A folder named like a style is printed as it is."""
    run_small(synth_yaml(2), "[red]run[/]")
    assert main(["show", "[red]run[/]"]) == 0
    assert "[red]run[/]" in capsys.readouterr().out


def test_an_export_is_read_back(capsys: Show, tmp_path: Path, synth_yaml: Callable[..., Path]) -> None:
    """Three pairs, as parquet and as a folder for the hub with a card."""
    from datasets import load_dataset

    run_small(synth_yaml(3), "run")
    assert main(["show", "run", "--export", "hub-folder", "--to", "out"]) == 0
    assert capsys.readouterr().out.strip() == "out"
    rows = load_dataset("out", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == 3
    assert {"prompt", "chosen", "rejected"} <= set(rows.column_names)
    assert (tmp_path / "out/README.md").read_text().startswith("---\n")
    assert main(["show", "synth/quickstart", "--export", "parquet"]) == 2


def test_doctor_looks_and_says(capsys: Show) -> None:
    """0 where the quickstart can run here, else 1."""
    assert main(["doctor"]) in {0, 1}
    shown = capsys.readouterr().out
    for words in ("python packages", "default model", "memory", "vllm", "disk"):
        assert words in shown


def test_a_verb_that_is_none_is_a_usage_error(capsys: Show) -> None:
    late = ["show", "quickstart", "--to", "x", "seed=1", "--zzz"]
    for words in ([], ["sinth", "quickstart"], ["synth"], ["doctor", "seed=1"], late):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
    assert "usage: counterfoil" in capsys.readouterr().err


def test_the_dump_of_every_config_is_plain(capsys: Show) -> None:
    job, _ = load_job("eval", "quickstart", [])
    values: Any = dump(job)
    assert json.loads(json.dumps(values)) == values
