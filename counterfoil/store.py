"""The run's state in SQLite: what is finished, by content key, so that a re-run repeats only what was in flight.

One table: (stage, key, value). A finished record is committed when it lands: it survives a kill at once (the operating
system holds the write). A thread brings what has landed to the disk, all of it at a time, so that nobody waits and a loss of
power takes the last hundredths of a second.
"""

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from counterfoil.errors import RunError

__all__ = ["Store"]

SYNC_EVERY_S = 0.02
"""At most this often: a disk that syncs in less would be kept busy for nothing."""


class _Syncer:
    """Brings SQLite's write-ahead log to the disk: whole transactions, which SQLite finds again after a loss of power."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._landed, self._closed = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None

    def wake(self) -> None:
        """Say that something landed. Raises OSError where the disk did not take what landed before."""
        if self._failure is not None:
            raise self._failure
        self._landed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="store sync", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop; SQLite brings the rest to the disk when it closes."""
        self._closed.set()
        self._landed.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            log = os.open(self._log, os.O_RDONLY)
        except OSError as error:
            self._failure = error
            return
        try:
            while self._landed.wait() and not self._closed.is_set():
                self._landed.clear()  # before: what lands meanwhile is for the next time
                _sync(log)
                self._closed.wait(SYNC_EVERY_S)
        except OSError as error:
            self._failure = error
        finally:
            os.close(log)


class Store:
    """A durable map from (stage, key) to text, in order of arrival."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)  # several processes may write
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS finished "
                "(stage TEXT, key TEXT, value TEXT, PRIMARY KEY (stage, key)) WITHOUT ROWID"
            )
            self._syncer = _Syncer(Path(f"{path.resolve()}-wal"))  # beside the file itself, as SQLite has it
        except sqlite3.DatabaseError as error:
            _refuse_full(error)
            raise RunError(
                str(path), given=str(error), allowed="a run's state file", do="Delete the run folder and run again."
            ) from error

    def put(self, stage: str, key: str, value: str) -> None:
        """Keep `value`; a second value for a key replaces the first. Raises OSError where the disk is full."""
        try:
            self._db.execute("INSERT OR REPLACE INTO finished VALUES (?, ?, ?)", (stage, key, value))
        except sqlite3.OperationalError as error:
            _refuse_full(error)
            raise
        self._syncer.wake()

    def add(self, stage: str, key: str, value: str) -> bool:
        """Keep `value` unless there is one for the key; say whether it is kept. Raises OSError where the disk is full."""
        try:
            done = self._db.execute("INSERT OR IGNORE INTO finished VALUES (?, ?, ?)", (stage, key, value))
        except sqlite3.OperationalError as error:
            _refuse_full(error)
            raise
        self._syncer.wake()
        return done.rowcount == 1

    def get(self, stage: str, key: str) -> str | None:
        """Return what was kept, or None."""
        row = self._db.execute("SELECT value FROM finished WHERE stage=? AND key=?", (stage, key)).fetchone()
        return row[0] if row else None

    def has(self, stage: str, key: str) -> bool:
        """Say whether a key is finished."""
        found = self._db.execute("SELECT 1 FROM finished WHERE stage=? AND key=?", (stage, key))
        return found.fetchone() is not None

    def count(self, stage: str) -> int:
        """Count the finished keys of a stage."""
        return self._db.execute("SELECT COUNT(*) FROM finished WHERE stage=?", (stage,)).fetchone()[0]

    def items(self, stage: str) -> Iterator[tuple[str, str]]:
        """Yield (key, value) of a stage in order of keys."""
        yield from self._db.execute("SELECT key, value FROM finished WHERE stage=? ORDER BY key", (stage,))

    def open_set(self, name: str) -> Callable[[str], bool]:
        """Open an empty set of texts that lives as long as this process, on disk where it grows large.

        Calling it with a text adds it; the answer is whether it is new.
        """
        self._db.execute(f'CREATE TEMP TABLE "{name}" (key TEXT PRIMARY KEY) WITHOUT ROWID')
        insert = f'INSERT OR IGNORE INTO temp."{name}" VALUES (?)'  # noqa: S608  (the name is ours)
        return lambda text: self._db.execute(insert, (text,)).rowcount == 1

    def close(self) -> None:
        """Close the file; its write-ahead log is folded in."""
        self._syncer.close()
        self._db.close()


def _sync(file: int) -> None:
    getattr(os, "fdatasync", os.fsync)(file)  # macOS has no fdatasync


def _refuse_full(error: sqlite3.Error) -> None:
    """Raise OSError where the disk is full: SQLite says so in one of two ways."""
    if "full" in str(error) or "disk I/O" in str(error):
        raise OSError(errno.ENOSPC, str(error)) from error
