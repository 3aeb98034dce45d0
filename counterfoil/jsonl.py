"""Files of records: read a line at a time, written whole or not at all."""

import contextlib
import hashlib
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from pydantic import ValidationError

from counterfoil.errors import InputError
from counterfoil.records import Dropped, Record, content_id

__all__ = ["FileFacts", "describe_file", "open_atomic", "read_jsonl", "read_lines", "write_json"]


RecordT = TypeVar("RecordT", bound=Record)


class FileFacts(NamedTuple):
    """What a manifest says of a file."""

    sha256: str
    num_bytes: int
    num_lines: int


def describe_file(path: Path) -> FileFacts:
    """Hash and count a file in one pass."""
    digest, num_bytes, num_lines = hashlib.sha256(), 0, 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            num_bytes += len(chunk)
            num_lines += chunk.count(b"\n")
    return FileFacts(digest.hexdigest(), num_bytes, num_lines)


def check_file(path: Path, where: str) -> None:
    """Raise InputError unless `path` is a file with something in it."""
    if not path.is_file():
        raise InputError(f"{where}: {path}", given="no such file", allowed="a JSONL file", do="Check the path.")
    if path.stat().st_size == 0:
        raise InputError(f"{where}: {path}", given="an empty file", allowed="a line a record", do="Fill it or drop it.")


def read_lines(path: Path, *, where: str) -> Iterator[dict[str, Any] | Dropped]:
    """Yield each line as a mapping; a broken line comes as Dropped with its number. Raises InputError for no file."""
    for _, value in _number_lines(path, where):
        yield value


def _number_lines(path: Path, where: str) -> Iterator[tuple[int, dict[str, Any] | Dropped]]:
    check_file(path, where)
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, _dropped(line.decode("utf-8", "replace"), number, "not UTF-8", str(error))
                continue
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:  # not JSON, a number of 5000 digits, 100 000 brackets
                yield number, _dropped(text, number, "broken JSON", str(error))
                continue
            if isinstance(value, dict):
                yield number, value
            else:
                yield number, _dropped(text, number, "not a mapping", type(value).__name__)


def read_jsonl(path: Path, cls: type[RecordT], *, where: str) -> Iterator[RecordT | Dropped]:
    """Yield each line as a `cls`; a line that is none comes as Dropped with what is wrong."""
    for number, value in _number_lines(path, where):
        if isinstance(value, Dropped):
            yield value
            continue
        try:
            yield cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            yield _dropped(json.dumps(value, sort_keys=True), number, f"not a {cls.__name__}", what)


def _dropped(line: str, number: int, reason: str, detail: str) -> Dropped:
    return Dropped(id=content_id(number, line), stage="read", reason=reason, detail=f"line {number}: {detail}"[:300])


@contextlib.contextmanager
def open_atomic(path: Path) -> Generator[IO[str]]:
    """Open `path` for writing; it appears, whole and flushed to disk, only when the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, whole or not at all."""
    with open_atomic(path) as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
