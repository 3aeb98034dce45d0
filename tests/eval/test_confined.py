"""What a program in confinement can and cannot do: each sentence of the module's docstring, tried."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval import confined
from eval.confined import MAX_OUTPUT, Ran, find_gaps, run_confined

GAPS = find_gaps()
kept_from_others = pytest.mark.skipif("network" in GAPS, reason="an unprivileged user has no namespaces here")
kept_from_files = pytest.mark.skipif("files" in GAPS, reason="this kernel has no Landlock")


def run(source: str, *, time_s: float = 20, memory_mib: int = 256) -> Ran:
    return run_confined(source, time_s=time_s, memory_mib=memory_mib)


def test_a_program_runs_and_ends() -> None:
    assert run("print('hello')\nraise SystemExit(7)") == Ran(7, "hello\n", False)
    assert run("print(__name__)").output == "program\n"


def test_time_is_limited_by_the_clock_and_by_the_processor() -> None:
    assert run("while True: pass", time_s=1).timed_out
    assert run("import time; time.sleep(60)", time_s=1).timed_out
    limits = "import resource; print(resource.getrlimit(resource.RLIMIT_CPU))"
    assert run(limits, time_s=19.5).output == "(20, 20)\n"


def test_memory_is_limited() -> None:
    assert run("x = bytearray(10**9)").output.splitlines()[-1] == "MemoryError"


def test_files_are_limited_in_size_and_number() -> None:
    """10 MB is the most that a file may hold, the output too; 64 files may be open, three of which are at the start."""
    source = "out = open('big', 'wb')\nout.write(bytes(11 << 20))\nout.close()"
    assert "File too large" in run(source).output
    assert run("while True: print('x' * 1000)").status != 0
    source = (
        "import os\nfound = []\ntry:\n    while True: found.append(os.dup(0))\nexcept OSError: print(len(found) + 3)"
    )
    assert run(source).output == "64\n"


def test_the_end_of_the_output_is_kept() -> None:
    ran = run("print('x' * 10**6)\nprint('the end')")
    assert (ran.status, len(ran.output)) == (0, MAX_OUTPUT)
    assert ran.output.endswith("xx\nthe end\n")


def test_it_has_neither_the_callers_modules_nor_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "hidden")
    source = (
        "import os\nprint(sorted(os.environ))\ntry:\n    import pytest\nexcept ImportError:\n    print('no pytest')"
    )
    assert run(source).output == "['LANG', 'PATH']\nno pytest\n"


@pytest.mark.parametrize(
    "mess",
    [
        "",
        "import os\nos.unlink('program.py')",
        "import os\nos.mkdir('a')\nopen('a/b', 'w').close()\nos.chmod('a', 0)",
        "import os\nos.symlink('/etc', 'link')",
        "import os\nfor _ in range(1200):\n    os.mkdir('d')\n    os.chdir('d')",
    ],
)
def test_its_folder_is_deleted_whatever_it_leaves_there(mess: str) -> None:
    ran = run(f"import os\nprint(os.getcwd(), flush=True)\n{mess}")
    assert ran.status == 0
    assert not Path(ran.output.splitlines()[0]).exists()
    assert Path("/etc").is_dir()


def test_the_output_is_out_of_its_reach() -> None:
    """What it prints goes to no file of its folder: there is none to replace by a pipe that never ends."""
    assert run("import os\nprint(os.listdir())").output == "['program.py']\n"


@kept_from_files
def test_it_writes_in_its_folder_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("kept")
    for harm in (
        f"open({str(theirs)!r}, 'w')",
        f"os.truncate({str(theirs)!r}, 0)",
        f"os.unlink({str(theirs)!r})",
        f"os.rename({str(theirs)!r}, 'mine')",
        f"os.mkdir({str(tmp_path / 'new')!r})",
        f"os.symlink('/', {str(tmp_path / 'new')!r})",
    ):
        assert "Error" in run(f"import os\n{harm}").output.splitlines()[-1]
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("theirs", "kept")]
    own = "import os\nos.mkdir('a')\nopen('a/b', 'w').write('x')\nos.rename('a/b', 'c')\nos.unlink('c')\n"
    assert run(own + "open('/dev/null', 'w')\nprint(sorted(os.listdir()))").output == "['a', 'program.py']\n"


def test_it_reads_what_the_user_reads(tmp_path: Path) -> None:
    """Files and command lines: that is no wall, and the docstring says so."""
    (tmp_path / "secret").write_text("read me")
    assert run(f"print(open({str(tmp_path / 'secret')!r}).read())").output == "read me\n"
    if Path("/proc/self/cmdline").exists():
        assert "py" in run(f"print(open('/proc/{os.getpid()}/cmdline').read())").output


@kept_from_others
def test_it_has_no_network() -> None:
    """Not even the machine's own: a server of ours does not hear it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket\nsocket.create_connection({server.getsockname()!r}, timeout=5)"
        assert "unreachable" in run(connect).output


@kept_from_others
def test_it_reaches_no_process_of_ours() -> None:
    source = (
        f"import os\ntry:\n    os.kill({os.getpid()}, 0)\nexcept ProcessLookupError:\n    print('none')\n"
        f"try:\n    open('/proc/{os.getpid()}/environ').read()\nexcept OSError:\n    print('closed')"
    )
    assert run(source).output == "none\nclosed\n"


@kept_from_others
@pytest.mark.parametrize("last", ["pass", "time.sleep(60)"])
def test_what_it_started_ends_with_it(last: str, tmp_path: Path) -> None:
    """A child in a session of its own, whether the program ends by itself or is killed."""
    name = f"{time.time()}"
    child = f"import time\ntime.sleep(200 + 0 * {name})"
    source = (
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        f"print('started', flush=True)\n{last}"
    )
    assert run(source, time_s=20 if last == "pass" else 3).output == "started\n"
    end = time.monotonic() + 10
    while (left := find_processes(name)) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []


def find_processes(word: str) -> list[str]:
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in text and str(os.getpid()) != path.parent.name:
            found.append(text)
    return found


COUNT = """
import os, time
number = 0
try:
    for number in range(80):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    number += 1
except OSError:
    pass
print(number)
"""


def test_processes_are_limited_unless_the_user_is_root() -> None:
    """A program of a user starts fewer than 64 others; root's may start all of 80, and the gap is named."""
    assert ("processes" in GAPS) == (os.geteuid() == 0)
    number = int(run(COUNT).output)
    assert number == 80 if os.geteuid() == 0 else number < 64


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root runs as somebody else")
def test_processes_of_another_user_are_limited(tmp_path: Path) -> None:
    """As nobody, by a Python that nobody may read."""
    python = next((path for path in ("/usr/bin/python3",) if Path(path).is_file()), None)
    if python is None or "network" in GAPS:
        pytest.skip("no Python that another user may run, or no namespaces")
    copy = Path("/tmp") / f"confined_{os.getpid()}.py"
    copy.write_text(
        Path(confined.__file__).read_text() + f"\nprint(run_confined({COUNT!r}, time_s=20, memory_mib=256).output)"
    )
    copy.chmod(0o644)
    try:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-I", str(copy)]
        shown = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    finally:
        copy.unlink()
    assert shown.stderr == ""
    assert int(shown.stdout) < 64


def test_gaps_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no `unshare`, and no Landlock, programs run all the same, and it is said what is missing."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    confined._unshare.cache_clear()
    find_gaps.cache_clear()
    try:
        assert find_gaps() == ("network", "files")
        assert run("print('hello')").output == "hello\n"
    finally:
        confined._unshare.cache_clear()
        find_gaps.cache_clear()
