"""Mathematical expressions compared by the library math-verify, in a process of its own that an alarm ends.

A model writes `9^{9^{9^9}}` as easily as 3: the comparison would compute it for ever, in one step of C that no exception of
Python's ends. The process sets itself the alarm before each comparison, so that it also ends where its parent is gone;
another one is then started.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Compared", "compare_expressions", "has_library"]

MEMORY_BYTES = 2 << 30
LOCK = threading.Lock()


class Compared(NamedTuple):
    """What came of a comparison."""

    equal: bool
    final: str
    """The expression that was read from the answer; empty for none."""
    given_up: bool = False


def has_library() -> bool:
    """Say whether math-verify is installed."""
    return find_spec("math_verify") is not None


def compare_expressions(wanted: str, said: str, *, time_s: float) -> Compared:
    """Read the last expression of `said`, and say whether it equals `wanted`.

    `time_s` is of the processor, so that a busy machine judges as an idle one does; what takes more is given up.
    """
    with LOCK:  # one question at a time, whoever asks
        process = _start(os.getpid())  # a fork must not read what its parent asked
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([wanted, said, time_s]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            _stop(process)
            _start.cache_clear()
            return Compared(equal=False, final="", given_up=True)
    equal, final = json.loads(line)
    return Compared(equal, final)


@lru_cache(maxsize=1)
def _start(owner: int) -> "subprocess.Popen[str]":  # noqa: ARG001  (one for each of ours)
    """Start the process, and wait until it has imported the library: no comparison's time goes into that."""
    process = subprocess.Popen(  # noqa: S603  (this file)
        [sys.executable, "-P", str(Path(__file__))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    atexit.register(_stop, process)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _stop(process: "subprocess.Popen[str]") -> None:
    atexit.unregister(_stop)
    process.kill()
    process.communicate()


def _serve() -> None:
    """Answer lines of [wanted, said, seconds] with lines of [equal, final], until there are no more."""
    import resource
    import signal

    import math_verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    parse: Any = math_verify.parse
    print("ready", flush=True)  # noqa: T201  (to its parent)
    for line in sys.stdin:
        wanted, said, time_s = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, time_s)
        try:
            gold, found = parse(wanted, parsing_timeout=None), parse(said, parsing_timeout=None)
            final = str(found[-1]) if found else ""
            equal = bool(gold) and bool(found) and bool(math_verify.verify(gold, found, timeout_seconds=None))
        except Exception:  # of the library or of SymPy, on what a model wrote
            equal, final = False, ""
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([equal, final]), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
