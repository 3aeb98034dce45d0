"""What README, docs and headers of configs tell a user to type: each command of ours is one that the command line takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterfoil.cli import JOB_VERBS
from counterfoil.pipeline import Pipeline
from counterfoil.verbs import load_config

ROOT = Path(__file__).resolve().parent.parent
COMMAND = re.compile(rf"counterfoil ({'|'.join(JOB_VERBS)}|serve) \S")
STANDS_FOR_MORE = re.compile(r"\.\.\.|\[\w+=|CONFIG|\|")


def read_commands() -> Iterator[tuple[str, str, bool]]:
    """Yield the file and the words of each command, and whether it stands by itself, to be typed as it is."""
    paths = [
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("configs/*/*.yaml"),
        *ROOT.glob("benchmarks/*.py"),
    ]
    for path in sorted(paths):
        text = re.sub(r"\\\n[ #]*", "", path.read_text(encoding="utf-8"))  # lines that go on
        for line in text.splitlines():
            quoted = re.findall(r"`(counterfoil [^`]*)`", line)
            for command in quoted or re.findall(r"^(?:# Run it:|    )[^`\"]*?(counterfoil .*)$", line):
                if COMMAND.match(command) and not STANDS_FOR_MORE.search(command):
                    yield str(path.relative_to(ROOT)), command, not quoted


COMMANDS = list(read_commands())


@pytest.mark.parametrize(("path", "command", "is_whole"), COMMANDS, ids=[" ".join(item[:2])[:90] for item in COMMANDS])
def test_a_command_in_the_documents_is_one(path: str, command: str, is_whole: bool) -> None:
    """Its verb, its config and every key in it are known, and every value is of its field's kind."""
    words = shlex.split(re.split(r" {2,}|;| && ", command)[0], comments=True)[1:]
    verb, name, *rest = words
    given = [
        word for at, word in enumerate(rest) if "=" in word and not word.startswith("-") and rest[at - 1] != "--to"
    ]
    job, _ = load_config(verb, name, given)
    if isinstance(job, Pipeline) and is_whole:
        job.describe()  # loads each of its jobs


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 120
