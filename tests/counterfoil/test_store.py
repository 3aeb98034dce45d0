"""The run's state: a durable map, and what becomes of it where the file is broken or the disk is full."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from counterfoil import store as module
from counterfoil.errors import RunError
from counterfoil.store import Store


def test_a_map_by_stage_and_key(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.sqlite")
    for key, value in (("b", "2"), ("a", "1"), ("b", "3")):
        store.put("answer", key, value)
    store.put("failure", "a", "no")
    assert store.get("answer", "b") == "3"
    assert store.get("answer", "c") is None
    assert (store.has("failure", "a"), store.has("failure", "b")) == (True, False)
    assert (store.count("answer"), store.count("failure"), store.count("other")) == (2, 1, 0)
    assert list(store.items("answer")) == [("a", "1"), ("b", "3")]
    store.close()
    again = Store(tmp_path / "state.sqlite")
    assert list(again.items("answer")) == [("a", "1"), ("b", "3")]
    again.close()


def test_a_set_says_what_is_new_and_is_forgotten(tmp_path: Path) -> None:
    for _ in range(2):
        store = Store(tmp_path / "state.sqlite")
        is_new = store.open_set("prompts")
        assert [is_new(text) for text in ("a", "b", "a", "b", "c")] == [True, True, False, False, True]
        store.close()


def test_what_is_put_survives_a_kill_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from counterfoil.store import Store\n"
        "store = Store(Path(sys.argv[1])); store.put('answer', 'a', 'kept'); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "state.sqlite"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    store = Store(path)
    assert store.get("answer", "a") == "kept"
    store.close()


def test_what_is_a_second_old_survives_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file alone, without the log of what is yet to be written into it, has all but the last second."""
    store = Store(tmp_path / "state.sqlite")
    store.put("answer", "a", "1")
    monkeypatch.setattr(module, "SYNC_EVERY_S", 60.0)
    store._next_sync = 0.0
    store.put("answer", "b", "2")
    store.put("answer", "c", "3")
    (tmp_path / "left.sqlite").write_bytes((tmp_path / "state.sqlite").read_bytes())
    store.close()
    left = Store(tmp_path / "left.sqlite")
    assert list(left.items("answer")) == [("a", "1"), ("b", "2")]
    left.close()


def test_a_reading_under_way_does_not_hinder_a_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SYNC_EVERY_S", 0.0)
    store = Store(tmp_path / "state.sqlite")
    for key in "abc":
        store.put("answer", key, "1")
    for key, value in store.items("answer"):
        store.put("copy", key, value)
    assert store.count("copy") == 3
    store.close()


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_text("something else, long enough to be no header of SQLite\n" * 100)
    with pytest.raises(RunError, match=r"state\.sqlite"):
        Store(path)


def test_a_full_disk_is_an_oserror(tmp_path: Path) -> None:
    """SQLite's own limit of pages stands for the disk; 200 kB do not go into 40 kB."""
    store = Store(tmp_path / "state.sqlite")
    store._db.execute("PRAGMA max_page_count = 10")
    with pytest.raises(OSError, match="full") as raised:
        store.put("answer", "a", "x" * 200_000)
    assert raised.value.errno == errno.ENOSPC
    store.put("answer", "b", "small")
    assert store.get("answer", "a") is None
    store.close()
