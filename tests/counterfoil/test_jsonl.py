"""Files of records: broken lines come as Dropped, files appear whole or not at all."""

import hashlib
import json
from pathlib import Path

import pytest

from counterfoil.errors import InputError
from counterfoil.jsonl import describe_file, open_atomic, read_jsonl, read_lines, write_json
from counterfoil.records import Dropped, Prompt


def lines(path: Path, text: str) -> list[dict[str, object] | Dropped]:
    path.write_text(text, encoding="utf-8")
    return list(read_lines(path, where="rows"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": 1', "broken JSON"),
        ("nothing of the kind", "broken JSON"),
        ("[1, 2]", "not a mapping"),
        ("3", "not a mapping"),
        ("null", "not a mapping"),
        ("9" * 5000, "broken JSON"),
        ("[" * 100_000, "broken JSON"),
    ],
)
def test_a_bad_line_is_dropped_with_its_number_and_hurts_no_other(tmp_path: Path, line: str, reason: str) -> None:
    first, bad, last = lines(tmp_path / "x.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    assert (first, last) == ({"a": 1}, {"a": 2})
    assert isinstance(bad, Dropped)
    assert (bad.stage, bad.reason) == ("read", reason)
    assert bad.detail.startswith("line 2: ")


def test_a_line_cut_off_at_the_end_is_dropped(tmp_path: Path) -> None:
    first, cut = lines(tmp_path / "x.jsonl", '{"a": 1}\n{"a": "not fin')
    assert first == {"a": 1}
    assert isinstance(cut, Dropped)


def test_blank_lines_and_bytes_that_are_no_text_do_not_stop_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": "caf\xe9"}\n  \n{"a": 2}\r\n')
    first, bad, last = read_lines(path, where="rows")
    assert (first, last) == ({"a": 1}, {"a": 2}), "a mark of byte order before the first line is none of it"
    assert isinstance(bad, Dropped)
    assert (bad.reason, bad.detail[:8]) == ("not UTF-8", "line 3: "), "never taken with other letters in silence"


def test_a_file_that_is_missing_empty_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    for name, given in (("none.jsonl", "no such file"), ("empty.jsonl", "an empty file"), (".", "no such file")):
        with pytest.raises(InputError, match="rows: ") as raised:
            list(read_lines(tmp_path / name, where="rows"))
        assert raised.value.given == given


def test_a_row_that_is_no_record_is_dropped_with_what_is_wrong(tmp_path: Path) -> None:
    prompt = Prompt.make("Hello.")
    path = tmp_path / "x.jsonl"
    path.write_text(f'{prompt.model_dump_json()}\n\n{{"id": "x"}}\n\n{{"id": "x", "messages": [], "more": 1}}\n')
    first, missing, extra = read_jsonl(path, Prompt, where="rows")
    assert first == prompt
    assert isinstance(missing, Dropped)
    assert isinstance(extra, Dropped)
    assert (missing.reason, missing.detail) == ("not a Prompt", "line 3: messages: Field required")
    assert extra.detail.startswith("line 5: more: ")


def test_nothing_is_left_of_a_file_that_did_not_end_well(tmp_path: Path) -> None:
    """A file that was there before stays as it was."""
    path = tmp_path / "x.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="stop"), open_atomic(path) as stream:
        stream.write("half")
        raise RuntimeError("stop")
    assert [item.name for item in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text() == "before"


def test_a_file_appears_at_the_end_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with open_atomic(path) as stream:
        stream.write("one\n")
        stream.flush()
        assert not path.exists()
    assert path.read_bytes() == b"one\n"
    assert [item.name for item in tmp_path.iterdir()] == ["x.txt"]


def test_a_value_that_is_no_json_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": 1, "b": object()})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "x.json", {"a": "\u00e9"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": "\u00e9"}


def test_a_file_is_described_by_its_bytes(tmp_path: Path) -> None:
    """Three bytes, two line ends; no byte and no line."""
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\n\n")
    assert describe_file(path) == (hashlib.sha256(b"a\n\n").hexdigest(), 3, 2)
    path.write_bytes(b"")
    assert describe_file(path) == (hashlib.sha256(b"").hexdigest(), 0, 0)
