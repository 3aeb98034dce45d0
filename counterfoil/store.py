"""The run's state in SQLite: what is finished, by content key, so that a re-run repeats only what was in flight.

One table: (stage, key, value). A finished record is committed when it lands: it survives a kill at once (the operating
system holds the write). About once a second all of it goes to the disk, so that a loss of power takes the last second.
"""

import errno
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from counterfoil.errors import RunError

__all__ = ["Store"]

SYNC_EVERY_S = 1.0


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
            self._next_sync = time.monotonic() + SYNC_EVERY_S
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
        if time.monotonic() >= self._next_sync:
            self._sync()

    def _sync(self) -> None:
        """Bring what is kept to the disk itself."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.OperationalError as error:
            _refuse_full(error)  # else `items` is being read: the next time will do
        self._next_sync = time.monotonic() + SYNC_EVERY_S

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
        self._db.close()


def _refuse_full(error: sqlite3.Error) -> None:
    """Raise OSError where the disk is full: SQLite says so in one of two ways."""
    if "full" in str(error) or "disk I/O" in str(error):
        raise OSError(errno.ENOSPC, str(error)) from error
