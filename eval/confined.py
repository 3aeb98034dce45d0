"""A Python program of unknown intent, run in a process of its own with limits of time, memory, files and processes.

It runs as the same user, isolated from the caller's modules and environment, in an empty folder that is deleted, without a
network where the kernel lets an unprivileged user have a network of their own (`unshare`), and is killed with all that it
started. What this does not keep from a program that means harm: it reads any file that the user can read, it may use a flaw
of the kernel, and where `has_own_network` is False it reaches the network. For such programs use a virtual machine.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Ran", "has_own_network", "run_confined"]

MAX_OUTPUT = 100_000


class Ran(NamedTuple):
    """How a program ended."""

    status: int
    """Its exit status; negative for a signal."""
    output: str
    """What it printed, both streams, its beginning."""
    timed_out: bool


@lru_cache(maxsize=1)
def has_own_network() -> bool:
    """Say whether programs are cut off from the network."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    return subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode == 0  # noqa: S603


LIMITED = """
import os, resource, sys
seconds, size = int(sys.argv[1]), int(sys.argv[2])
for kind, value in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, size), (resource.RLIMIT_FSIZE, 10 << 20),
                    (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(kind, (value, value))
if os.geteuid() != 0:
    resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))
os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", "program.py"])
"""
"""What sets the limits, in the child itself: the parent may have threads, and then must run nothing between fork and exec."""


def run_confined(source: str, *, time_s: float, memory_mib: int) -> Ran:
    """Run Python source; `time_s` is of the wall clock and of the processor, `memory_mib` of addresses."""
    network = [str(shutil.which("unshare")), "-rn"] if has_own_network() else []
    limits = [str(int(time_s) + 1), str(memory_mib * 1024**2)]
    command = [*network, sys.executable, "-I", "-S", "-c", LIMITED, *limits]
    with tempfile.TemporaryDirectory(prefix="confined-") as folder:
        Path(folder, "program.py").write_text(source, encoding="utf-8", errors="replace")
        with Path(folder, "output").open("wb") as out:
            process = subprocess.Popen(  # noqa: S603  (in a process of its own, with limits: that is the point)
                command, cwd=folder, env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        timed_out = False
        try:
            process.wait(time_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with Path(folder, "output").open("rb") as said:
            output = said.read(MAX_OUTPUT).decode(errors="replace")
    return Ran(process.returncode, output, timed_out)
