"""What the command line prints: resolved configs, finished runs, lists of runs, exports."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from counterfoil.config import dump, list_configs
from counterfoil.errors import ConfigError, InputError
from counterfoil.job import is_under_way, read_manifest, runs_folder
from counterfoil.progress import read_progress, show_seconds
from counterfoil.verbs import VERBS, load_config

__all__ = ["list_runs", "print_run", "show"]


def show(what: str, overrides: Sequence[str], *, export: str | None, to: str | None, push: str | None) -> int:
    """Print a finished run (or export it, or push the export to the hub), else the resolved config of that name."""
    folder = Path(what)
    manifest = read_manifest(folder) if folder.is_dir() else None
    if push and export == "parquet":
        allowed, do = "--export hub-folder, or none", "Leave --export out: --push exports what the hub takes."
        raise ConfigError("--push", given="--export parquet", allowed=allowed, do=do)
    if manifest is not None:
        if export or push:
            from counterfoil.export import export_run

            kind = export or "hub-folder"
            written = export_run(folder, manifest, kind=kind, to=Path(to) if to else folder / "export")
            print(written)  # noqa: T201  (the verb prints where it wrote)
            if push:
                from counterfoil.push import push_folder

                print(push_folder(written, push))  # noqa: T201  (and where that is now)
        else:
            print_run(folder, manifest)
        return 0
    if (folder / "job.json").is_file() and not (export or push):
        _print_unfinished(folder)
        return 0
    if folder.is_dir():
        allowed = "a finished run (it has a manifest.json)"
        raise InputError(
            what, given="a folder without manifest.json", allowed=allowed, do="Let the run end, or fix it."
        )
    if export or push:
        raise InputError(
            what, given="no run to export", allowed="a finished run's folder", do="See `counterfoil runs`."
        )
    verb, config = _find_verb(what)
    job, _ = load_config(verb, config, overrides, stand_in="(to be given)")
    text = yaml.safe_dump(dump(job), sort_keys=False, allow_unicode=True, width=110)
    Console().print(f"# {verb} {config}, resolved\n{text}", markup=False, highlight=False, end="", soft_wrap=True)
    return 0


def _find_verb(what: str) -> tuple[str, str]:
    """Tell the verb of a config: by its folder's name, or by `verb/name`, or by a name that only one verb has."""
    by_folder = {folder: verb for verb, (_, folder) in VERBS.items()}
    path = Path(what)
    if path.suffix in {".yaml", ".yml"}:
        if path.parent.name in by_folder:
            return by_folder[path.parent.name], what
        if "jobs:" in (path.read_text(encoding="utf-8") if path.is_file() else ""):
            return "run", what
        raise ConfigError(
            what,
            given="a config whose verb is not known",
            allowed=f"a file in a folder {', '.join(by_folder)}",
            do="Move it.",
        )
    known = list_configs()
    found = [key for key in known if key == what or key.split("/", 1)[1] == what]
    if what in known or len(found) == 1:
        folder, name = (what if what in known else found[0]).split("/", 1)
        return by_folder[folder], name
    listed = [f"{by_folder[key.split('/')[0]]}: {key}" for key in (found or known)]
    raise ConfigError(
        what,
        given="several configs have this name" if found else "neither a run's folder nor a known config",
        allowed="; ".join(listed),
        do="Give the whole name, for instance: counterfoil show " + (found or list(known))[0],
    )


def print_run(folder: Path, manifest: dict[str, Any]) -> None:
    """Print a run's closing table: counts with reasons, tokens, figures, held-out results."""
    console = Console()
    table = Table(title=escape(f"{manifest['job']} in {folder}"), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("time", show_seconds(manifest["seconds"]))
    counts = {key: value for key, value in manifest["counts"].items() if key != "dropped"}
    table.add_row("counts", escape(", ".join(f"{key} {value}" for key, value in counts.items())) or "none")
    for reason, count in manifest["counts"].get("dropped", {}).items():
        table.add_row("dropped", escape(f"{count}  {reason}"))
    if manifest.get("tokens"):
        table.add_row("tokens", escape(", ".join(f"{key} {value:,}" for key, value in manifest["tokens"].items())))
    for key, value in manifest.get("figures", {}).items():
        if _is_group(value):
            for inner, number in value.items():
                table.add_row(escape(f"{key}: {inner.replace('_', ' ')}"), escape(_format(number)))
        else:
            table.add_row(escape(key.replace("_", " ")), escape(_format(value)))
    if (folder / "report.html").is_file():
        table.add_row("report", escape(str(folder / "report.html")))
    elif manifest["job"] == "synthesize":
        table.add_row("to see it", escape(f"counterfoil eval synthesis parts={folder}"))
    console.print(table)


def _print_unfinished(folder: Path) -> None:
    """Print how far a run is that has no manifest yet, and how it goes on."""
    table = Table(title=escape(f"{folder}: not finished"), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    last = read_progress(folder)
    if last is not None:
        table.add_row("last seen", f"{show_seconds(time.time() - last['time'])} ago")
        table.add_row("stage", escape(_say_how_far(last)))
        for name, count in last.get("counts", {}).items():
            table.add_row("so far", escape(f"{count}  {name}"))
    going = "a process works in it" if is_under_way(folder) else "run the same command again: what is finished is kept"
    table.add_row("to go on", going)
    Console().print(table)


def _say_how_far(line: dict[str, Any]) -> str:
    whole = "" if line["total"] is None else f" of {line['total']}"
    left = "" if line["left_s"] is None else f", {show_seconds(line['left_s'])} left"
    return f"{line['stage']}: {line['done']}{whole}{left}"


def _is_group(value: Any) -> TypeGuard[dict[str, Any]]:
    """Tell the figures of one job of a pipeline from a figure."""
    return isinstance(value, dict) and not _is_interval(value)


def _is_interval(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"mean", "low", "high"}  # pyright: ignore[reportUnknownArgumentType]


def _format(value: Any) -> str:
    if _is_interval(value):
        return f"{value['mean']:.3f}  (95% interval {value['low']:.3f} to {value['high']:.3f})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def list_runs(folder: str | None) -> int:
    """Print a table of the runs in a folder, newest first."""
    root = Path(folder) if folder else runs_folder()
    stubs = (
        sorted(root.glob("*/job.json"), key=lambda path: path.stat().st_mtime, reverse=True) if root.is_dir() else []
    )
    console = Console()
    if not stubs:
        console.print(f"no runs in {root}", markup=False)
        return 0
    table = Table("run", "job", "state", "age", "input", "headline")
    for stub in stubs:
        table.add_row(*(escape(cell) for cell in _describe_run(stub)))
    console.print(table)
    return 0


def _describe_run(stub: Path) -> list[str]:
    manifest = read_manifest(stub.parent)
    try:
        identity = json.loads(stub.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return [stub.parent.name, "?", "broken", "", "", ""]
    inputs = [f"{key} {Path(fact['path']).name}" for key, fact in identity["inputs"].items()]
    age = show_seconds(time.time() - stub.stat().st_mtime)
    figures: dict[str, Any] = manifest["figures"] if manifest else {}
    return [
        stub.parent.name,
        identity["job"].rsplit(".", 1)[-1].lower(),
        "done" if manifest else "under way" if is_under_way(stub.parent) else "unfinished",
        age,
        ", ".join(inputs) or str(identity["config"].get("model") or ""),
        _headline(figures) if manifest else _say_how_far(line) if (line := read_progress(stub.parent)) else "",
    ]


def _headline(figures: dict[str, Any]) -> str:
    """Choose the figure that says most: a difference with its interval, else the first."""
    flat: dict[str, Any] = {}
    for key, value in figures.items():
        flat |= {f"{key}.{inner}": number for inner, number in value.items()} if _is_group(value) else {key: value}
    best = next((key for key in flat if key.endswith("pass_rate_difference")), next(iter(flat), None))
    return f"{best.rsplit('.', 1)[-1].replace('_', ' ')} {_format(flat[best])}" if best else ""
