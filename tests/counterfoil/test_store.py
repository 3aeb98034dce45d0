"""The run's state: a durable map, and what becomes of it where the file is broken or the disk is full."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

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


def test_what_a_sync_found_survives_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as they are when a sync begins stand for the disk: they open, and hold all that was put before."""
    store, left, seen = Store(tmp_path / "state.sqlite"), tmp_path / "left", Event()
    left.mkdir()

    def sync(file: int) -> None:
        if not seen.is_set():
            for path in tmp_path.glob("state.sqlite*"):
                shutil.copy(path, left)
            seen.set()
        os.fsync(file)

    monkeypatch.setattr(module, "_sync", sync)
    store.put("answer", "a", "1")
    assert seen.wait(20)
    store.put("answer", "b", "2")
    store.close()
    (left / "state.sqlite-shm").unlink()  # memory that processes share: a loss of power takes it
    found = Store(left / "state.sqlite")
    assert ("a", "1") in list(found.items("answer"))
    found.close()


def test_a_disk_that_fails_is_an_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Event()

    def fail(file: int) -> None:
        tried.set()
        raise OSError(errno.EIO, "no disk")

    monkeypatch.setattr(module, "_sync", fail)
    store = Store(tmp_path / "state.sqlite")
    store.put("answer", "a", "1")
    assert tried.wait(20)
    with pytest.raises(OSError, match="no disk"):
        for number in range(1000):
            store.put("answer", f"b{number}", "2")
            time.sleep(0.001)
    store.close()


def test_a_reading_under_way_does_not_hinder_a_writing(tmp_path: Path) -> None:
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
