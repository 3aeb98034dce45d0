"""Bad input: each gives an error in four parts or a Dropped, and nothing that a later step could take for whole."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from counterfoil.cli import main
from counterfoil.errors import InputError
from counterfoil.job import read_manifest
from counterfoil.models import find_model

GOOD = {"prompt": "Say it.", "reference": {"constraints": [{"kind": "max_words", "n": 5}]}}


def as_lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def refuse(words: list[str], capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """Run a command that must end with 2, four parts, no traceback, no manifest and no output; return what it said."""
    assert main([*words, "--to", str(folder), "--quiet", "--brief"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert [line.split(":")[0].strip() for line in shown.splitlines()] == ["error", "allowed", "do"]
    assert read_manifest(folder) is None
    left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    assert left <= {"job.json", "progress.jsonl", "state.sqlite", ".lock"}
    return shown


def words_for(verb: str, path: Path) -> list[str]:
    """Return the command that reads `path`, with the scripted engine where there is an engine."""
    return {
        "synth": ["synth", "quickstart", "engine=scripted", "task=file", f"task.path={path}"],
        "decode": ["decode", "answer", "engine=scripted", f"prompts={path}"],
        "eval": ["eval", "quickstart", "engine=scripted", "task=file", f"task.heldout={path}"],
    }[verb]


@pytest.mark.parametrize("verb", ["synth", "decode", "eval"])
@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "no such file or folder"), ("", "an empty file")],
    ids=["missing", "empty"],
)
def test_a_file_that_is_missing_or_empty(
    verb: str, text: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    if text is not None:
        path.write_text(text)
    shown = refuse(words_for(verb, path), capsys, tmp_path / "run")
    assert told in shown
    assert str(path) in shown


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"prompt": "cut o', "read: broken JSON"),
        ("[" * 100_000, "read: broken JSON"),
        ("[1]", "read: not a mapping"),
        ({"question": "Say it."}, "read: no column 'prompt'"),
        ({"prompt": ""}, "read: empty prompt"),
        ({"prompt": []}, "read: empty prompt"),
        ({"prompt": 3}, "read: empty prompt"),
        ({"prompt": ["Say it."]}, "read: not a prompt"),
        ({"messages": [{"role": "user"}]}, "read: not a prompt"),
        ({"prompt": "Say it.", "reference": "x"}, "read: not a prompt"),
        ({"prompt": "Say it \ud800"}, "read: not a prompt"),
        (GOOD | {"tags": {"more": "tags"}}, "read: duplicate prompt"),
    ],
)
@pytest.mark.parametrize("verb", ["synth", "decode"])
def test_a_bad_row_is_dropped_and_hurts_no_other(
    verb: str, row: object, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines(GOOD, row, GOOD | {"prompt": "Say more."}))
    assert main([*words_for(verb, path), "--to", "run", "--quiet", "--brief"]) == 0
    manifest = read_manifest(tmp_path / "run")
    assert manifest is not None
    assert manifest["counts"]["read"] == 3
    assert manifest["counts"]["dropped"][reason] == 1
    dropped = [json.loads(line) for line in (tmp_path / "run/dropped.jsonl").read_text().splitlines()]
    assert len(dropped) == sum(manifest["counts"]["dropped"].values())


@pytest.mark.parametrize("verb", ["synth", "decode"])
def test_rows_of_which_none_is_a_prompt(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misnamed column, say: no empty data set, but an error that names the reason."""
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines({"question": "a"}, {"question": "b"}))
    shown = refuse(words_for(verb, path), capsys, tmp_path / "run")
    assert "no column 'prompt'" in shown


@pytest.mark.parametrize(
    ("reference", "told"),
    [({}, "missing"), ({"constraints": []}, "[]"), ({"constraints": [{"kind": "zzz"}]}, "kind 'zzz'")],
)
def test_a_reference_that_the_scorer_cannot_use(
    reference: object, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row of several is dropped by name; where there is no other, the scorer is not for these."""
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines({"prompt": "Else.", "reference": reference}))
    folder = tmp_path / "run"
    assert main([*words_for("synth", path), "--to", str(folder), "--quiet", "--brief"]) == 2
    shown = capsys.readouterr().err
    assert "reference.constraints" in shown
    assert told in shown
    assert read_manifest(folder) is None
    assert not (folder / "pairs.jsonl").exists()
    path.write_text(as_lines(GOOD, {"prompt": "Else.", "reference": reference}))
    assert main([*words_for("synth", path), "--to", str(tmp_path / "more"), "--quiet", "--brief"]) == 0
    dropped = [json.loads(line) for line in (tmp_path / "more/dropped.jsonl").read_text().splitlines()]
    (bad,) = [row for row in dropped if row["stage"] == "score"]
    assert bad["reason"] == "cannot be judged"
    assert told in bad["detail"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nope", "no such name, folder or file"),
        ("./nope", "no such name, folder or file"),
        ("a/b/c", "no such name, folder or file"),
        ("nope.gguf", "no such name, folder or file"),
        ("nobody-at-all/no-model", "not on this machine"),
        ("empty", "a folder without config.json"),
    ],
)
def test_a_model_that_is_nowhere(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as raised:
        find_model(name)
    assert told in raised.value.given
    assert raised.value.where == f"model: {name}"


@pytest.mark.parametrize("field", ["adapter", "engine.script"])
def test_an_optional_input_that_is_missing_or_changes(
    field: str, tmp_path: Path, synth_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter, or a script, belongs to the run like any other input."""
    path, given = tmp_path / "rows.jsonl", tmp_path / "given"
    path.write_text(as_lines(GOOD))
    words = [*words_for("decode", path), f"{field}={given}"]
    assert "no such file or folder" in refuse(words, capsys, tmp_path / "run")
    given.write_text('{"when": "Say", "replies": ["One."]}\n')
    assert main([*words, "--to", "run", "--quiet", "--brief"]) == 0
    given.write_text('{"when": "Say", "replies": ["Two."]}\n')
    assert main([*words, "--to", "run", "--quiet", "--brief"]) == 2
    assert "differs in: inputs" in capsys.readouterr().err


def test_a_task_without_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, where in (("synth", "task.path"), ("eval", "task.heldout")):
        words = [verb, "quickstart", "engine=scripted", "task=file"]
        assert f"Give {where}=FILE." in refuse(words, capsys, tmp_path / verb)


@pytest.mark.parametrize(
    ("line", "told"),
    [("{torn", "line 1"), ('{"when": 1}', "line 1"), ('{"when": "a", "replies": []}', "line 1"), ("[1]", "line 1")],
)
def test_a_script_that_is_broken(line: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, script = tmp_path / "rows.jsonl", tmp_path / "script.jsonl"
    path.write_text(as_lines(GOOD))
    script.write_text(line + "\n")
    words = [*words_for("decode", path), f"engine.script={script}"]
    assert told in refuse(words, capsys, tmp_path / "run")


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Port 9 (discard) of this machine: nobody listens."""
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines(GOOD))
    engine = json.dumps({"name": "openai_api", "base_url": "http://127.0.0.1:9/v1"})
    words = ["decode", "answer", f"engine={engine}", "model=x", f"prompts={path}"]
    assert "base_url" in refuse(words, capsys, tmp_path / "run")
