"""A Python program of unknown intent, run in a process of its own with limits of time, memory and files.

It runs as the same user, isolated from the caller's modules and environment, in an empty folder that is deleted, under the
name `program`: what a file does only as `__main__`, such as asking for input, is left out. On Linux, as far as `find_gaps`
names no gap, it has no network and touches no process but those that it started, which end with it (namespaces of its own, by
`unshare`), and it writes nowhere but in that folder (Landlock). Limits: seconds of the clock; for each process seconds of the
processor, memory addresses and 64 open files; 10 MB for each file; 64 processes of the user, which the kernel does not hold
root to.

What nothing here keeps it from: it reads any file that the user can read, and what /proc shows of others, such as their
command lines; it connects to sockets that are files; it fills memory by many processes and the disk by many files, as fast
as its time allows; it may use a flaw of the kernel. For programs that mean harm use a virtual machine, and a user that is
not root.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Ran", "find_gaps", "run_confined"]

MAX_OUTPUT = 100_000


class Ran(NamedTuple):
    """How a program ended."""

    status: int
    """Its exit status; negative for a signal."""
    output: str
    """What it printed, both streams, its last `MAX_OUTPUT` bytes: how it ended is there."""
    timed_out: bool


@lru_cache(maxsize=1)
def find_gaps() -> tuple[str, ...]:
    """Name what programs are not kept from on this machine: `network` (and other processes), `files`, `processes`.

    `files` are those outside their folder that the user can write, `processes` is their number.
    """
    gaps = {"network": not _unshare(), "files": not _has_landlock(), "processes": os.geteuid() == 0}
    return tuple(name for name, open_ in gaps.items() if open_)


@lru_cache(maxsize=1)
def _unshare() -> list[str]:
    """Return the command that gives a process namespaces of its own, where an unprivileged user may have them."""
    tool = shutil.which("unshare")
    outlived = shutil.which("setpriv")  # what runs ends with the thread that waits for it, however that ends
    die = [outlived, "--pdeathsig", "KILL"] if outlived else []
    command = [*die, str(tool), "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child"]
    if tool is None or subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:  # noqa: S603  (ours)
        return []
    return command


def _has_landlock() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None, use_errno=True).syscall(444, None, 0, 1) > 0  # landlock_create_ruleset: its version


LIMITED = """
import ctypes, os, resource, runpy, struct, sys
seconds, size = int(sys.argv[1]), int(sys.argv[2])
call = ctypes.CDLL(None, use_errno=True).syscall if sys.platform.startswith("linux") else None
version = call(444, None, 0, 1) if call else 0
if call:
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: not to outlive the thread that waits
if version > 0:
    # Landlock: all rights that change files, those of a later version where the kernel has it, for the folder alone.
    writes = 0b1111111110010 | (1 << 13) * (version >= 2) | (1 << 14) * (version >= 3)
    rules = call(444, struct.pack("Q", writes), 8, 0)
    for path, rights in ((".", writes), ("/dev/null", 0b10)):
        call(445, rules, 1, struct.pack("=Qi", rights, os.open(path, os.O_PATH)), 0)
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    if rules < 0 or call(446, rules, 0) != 0:
        sys.exit("Landlock refused its rules")
    os.closerange(3, 16)
for kind, value in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, size), (resource.RLIMIT_FSIZE, 10 << 20),
                    (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_NPROC, 64), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(kind, (value, value))
sys.argv[:] = ["program.py"]
runpy.run_path("program.py", run_name="program")
"""
"""What sets the limits, in the child itself: the parent may have threads, and then must run nothing between fork and exec."""


@contextlib.contextmanager
def _open_folder() -> Generator[str]:
    """Make a folder, and delete it with all that a program left there, however deep or closed it is."""
    folder = tempfile.TemporaryDirectory(prefix="confined-", ignore_cleanup_errors=True)
    try:
        yield folder.name
    finally:
        try:
            folder.cleanup()
        except RecursionError:  # folders in folders, more than Python's own functions follow
            subprocess.run(["rm", "-rf", folder.name], capture_output=True, check=False)  # noqa: S603, S607  (ours)


def run_confined(source: str, *, time_s: float, memory_mib: int) -> Ran:
    """Run Python source; `time_s` is of the wall clock and of the processor, `memory_mib` of addresses."""
    limits = [str(int(time_s) + 1), str(memory_mib * 1024**2)]
    command = [*_unshare(), sys.executable, "-I", "-S", "-B", "-c", LIMITED, *limits]
    # What it prints goes to a file without a name, which it can neither replace nor delete.
    with tempfile.TemporaryFile() as out, _open_folder() as folder:
        Path(folder, "program.py").write_text(source, encoding="utf-8", errors="replace")
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
        out.seek(max(0, out.seek(0, os.SEEK_END) - MAX_OUTPUT))
        output = out.read(MAX_OUTPUT).decode(errors="replace")
    return Ran(process.returncode, output, timed_out)
