"""Report(Job): one self-contained page that tells a person what a run did, from the files that its jobs left.

Its texts come from models and are never trusted: Jinja escapes them, the page's policy allows its own script and style
by their hashes and no network, the script writes by `textContent` only, and control and bidirectional-override
characters are spelled out. What is missing or broken becomes a note. The same folders give the same bytes.

    synthesize   all that it left               what stopped, scores, lengths, judges, repeats, topics, costs, a browser of
                                                the pairs with all that was sent and came back (report_synth.py)
    train        metrics.jsonl                  loss, margins, accuracies, how far the log-probabilities moved
    evaluate     summary.json, results.jsonl    the scores with intervals, by kind, examples before and after
"""

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import jinja2
import yaml
from pydantic import Field, field_validator

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.job import Job, Run, read_manifest
from counterfoil.jsonl import read_lines
from counterfoil.records import Dropped
from decode.embedder import Embedder
from eval.report_plots import (
    AFTER,
    BEFORE,
    Plot,
    clean,
    format_number,
    plot_bars,
    plot_intervals,
    plot_lines,
    to_dict,
    to_float,
)
from eval.report_synth import read_synthesis

__all__ = ["Report", "render_report"]

HEADLINE = ("pass_rate_base", "pass_rate_adapter", "pass_rate_difference")

DISPLACEMENT = (
    "Change since the first logged step, in nats an answer. Where the chosen answers fall too, probability moves away "
    "from both (likelihood displacement)."
)
CURVES = (
    ("Loss", "The objective, lower is better.", {"": "loss"}),
    ("Margin", "Implicit reward of the chosen answers less that of the rejected ones.", {"": "rewards/margins"}),
    ("Accuracy", "Share of pairs whose chosen answer has the higher reward.", {"": "rewards/accuracies"}),
    ("Log-probabilities", DISPLACEMENT, {"chosen": "logps/chosen", "rejected": "logps/rejected"}),
)
"""Title, caption and the keys in metrics.jsonl by the curve's name; curves with names are shown as changes."""

RowT = TypeVar("RowT")
Reader = Callable[[Path, dict[str, Any], list[str]], dict[str, Any]]
"""A job's folder, manifest and notes to what the template shows of it."""


def render_report(
    parts: Mapping[str, Path],
    *,
    title: str,
    max_pairs: int = 100_000,
    max_dialogue_mb: int = 200,
    embedder: Embedder | None = None,
    sets: Sequence[Path] = (),
) -> str:
    """Render the page as one string of HTML.

    Args:
        parts: The folders of the jobs by name, in the order in which to show them; each holds a manifest.json. A folder
            that is missing, or a job of an unknown kind, is shown as far as it goes.
        title: The page's heading.
        max_pairs: Report.max_pairs.
        max_dialogue_mb: Report.max_dialogue_mb.
        embedder: Report.embedder.
        sets: Report.sets.
    """
    synthesis = partial(
        read_synthesis, max_pairs=max_pairs, max_dialogue_mb=max_dialogue_mb, embedder=embedder, sets=sets
    )
    readers = {"synthesize": synthesis, "train": _read_train, "evaluate": _read_evaluate}
    sections = [_read_section(name, folder, readers) for name, folder in parts.items()]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True, finalize=clean
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    environment.filters.update(csp_hash=_hash_source, number=format_number, yaml=_dump_yaml)
    page, style, script = (
        Path(__file__).with_name(f"report.{end}").read_text(encoding="utf-8") for end in ("html.j2", "css", "js")
    )
    return environment.from_string(page).render(title=title, style=style, script=script, sections=sections)


def _hash_source(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _dump_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).removesuffix("...\n").rstrip()


def _to_dicts(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return to_dict(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        notes.append(f"{path.name} is missing.")
    except ValueError as error:
        notes.append(f"{path.name} cannot be read: {error}.")
    return {}


def _collect(rows: Iterator[RowT | Dropped], name: str, notes: list[str]) -> list[RowT]:
    """Return the rows that could be read; the others, or a missing or empty file, become a note."""
    kept: list[RowT] = []
    broken: list[Dropped] = []
    try:
        for row in rows:
            if isinstance(row, Dropped):
                broken.append(row)
            else:
                kept.append(row)
    except InputError as error:
        notes.append(f"{name}: {error.given}.")
    if broken:
        notes.append(f"{name}: {len(broken)} lines left out, the first: {broken[0].reason}, {broken[0].detail}.")
    return kept


def _read_section(name: str, folder: Path, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Read what the template shows of one job."""
    notes: list[str] = []
    manifest = _read_json(folder / "manifest.json", notes)
    job = str(manifest.get("job", "unknown"))
    section = {"name": name, "job": job, "manifest": manifest, "notes": notes, "plots": []}
    if job in readers:
        return section | readers[job](folder, manifest, notes)
    notes.append(f"Nothing more is shown of a job of the kind {job!r}.")
    return section


def _read_train(folder: Path, _: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    rows = _collect(read_lines(folder / "metrics.jsonl", where="report"), "metrics.jsonl", notes)
    plots: list[Plot] = []
    for title, caption, keys in CURVES:
        lines: dict[str, list[tuple[float, float]]] = {}
        for name, key in keys.items():
            points = [(to_float(row.get("step")), to_float(row.get(key))) for row in rows]
            points = [point for point in points if not math.isnan(sum(point))]
            start = points[0][1] if points and name else 0.0
            lines |= {name: [(step, value - start) for step, value in points]} if points else {}
        if lines:
            ends = [f"{name} {format_number(y[0][1])} to {format_number(y[-1][1])}" for name, y in lines.items()]
            plots.append(plot_lines(title, f"{caption} First to last: {', '.join(ends)}.", lines))
        elif rows:
            notes.append(f"metrics.jsonl says nothing of {' or '.join(keys.values())}.")
    return {"plots": plots}


def _read_evaluate(folder: Path, _: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    summary = _read_json(folder / "summary.json", notes)
    results = _collect(read_lines(folder / "results.jsonl", where="report"), "results.jsonl", notes)
    level = f"{format_number(100 * to_float(summary.get('level', 0.95)))}%"
    metrics, kinds = _to_dicts(summary.get("rows")), _to_dicts(summary.get("by_kind"))
    plots: list[Plot] = []
    if metrics:
        plots.append(plot_intervals("Scores", f"Means with {level} intervals; the table has the numbers.", metrics))
    if kinds:
        labels = [f"{row.get('kind')} ({row.get('num')})" for row in kinds]
        sides = [name for name in ("base", "adapter") if any(name in row for row in kinds)]
        bars = {name: [100 * to_float(row.get(name)) for row in kinds] for name in sides}
        caption = "Percent met by kind, and how many prompts are of it; the table has the numbers."
        plots.append(plot_bars("By kind", caption, labels, bars, [BEFORE, AFTER]))
    wanted = summary.get("examples")
    by_id = {str(row.get("prompt_id")): row for row in results}
    examples = [by_id[str(key)] for key in wanted if str(key) in by_id] if isinstance(wanted, list) else []
    if isinstance(wanted, list) and len(examples) < len(wanted):
        notes.append(f"results.jsonl lacks {len(wanted) - len(examples)} of the {len(wanted)} examples.")
    data = {"plots": plots, "level": level, "summary": summary, "metrics": metrics, "kinds": kinds}
    return data | {"examples": examples}


class Report(Job):
    """Write report.html from the folders of finished jobs, in the order given."""

    VERB: ClassVar[str] = "eval"

    parts: tuple[Path, ...] = Field(min_length=1)
    """Folders of finished jobs; a folder's name is its section's."""
    title: str = "Counterfoil run"
    """The page's heading."""
    max_pairs: int = Field(default=100_000, ge=1)
    """Pairs of a synthesis that the page holds."""
    max_dialogue_mb: int = Field(default=200, ge=0)
    """Text of prompts sent and replies got that the page holds, in millions of characters."""
    embedder: Embedder | None = None
    """Maps what the prompts of a synthesis are about; None shows no map."""
    sets: tuple[InputPath, ...] = ()
    """JSONL files of evaluation sets, looked for in the pairs of a synthesis: 13 words in a row that both have."""

    @field_validator("parts")
    @classmethod
    def check_names(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        """Refuse folders of one name, whose sections could not be told apart."""
        names = [_name_part(folder) for folder in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{names.count(name)} folders are named {name!r}: give each a name of its own")
        return value

    def inputs(self) -> dict[str, Path]:
        """Return the evaluation sets, and the parts' manifests, which hold the hashes of all that the parts wrote."""
        # In a key, a dot would lead into a nested config.
        return super().inputs() | {
            f"parts[{at}] {_name_part(folder).replace('.', '_')}": folder / "manifest.json"
            for at, folder in enumerate(self.parts)
        }

    def check(self) -> None:
        """Raise InputError for a part that is not finished."""
        for folder in self.parts:
            if not (folder / "manifest.json").is_file():
                raise InputError(
                    f"parts: {folder}",
                    given="no manifest.json in it" if folder.is_dir() else "no such folder",
                    allowed="the folder of a finished job",
                    do="Check the path, or run that job again: it goes on where it stopped.",
                )

    def work(self, run: Run) -> None:
        """Render the page; the pass rates of the last part that compares an adapter are the headline."""
        with run.progress.stage("report", total=1) as shown:
            page = render_report(
                {_name_part(folder): folder for folder in self.parts},
                title=self.title,
                max_pairs=self.max_pairs,
                max_dialogue_mb=self.max_dialogue_mb,
                embedder=self.embedder,
                sets=self.sets,
            )
            run.open_output("report.html").write(page)
            shown.advance()
        for folder in self.parts:
            manifest = to_dict(read_manifest(folder))
            figures = to_dict(manifest.get("figures"))
            if manifest.get("job") == "evaluate" and "pass_rate_difference" in figures:
                run.figures |= {key: figures[key] for key in HEADLINE if key in figures}
        run.counts["kept"] = 1


def _name_part(folder: Path) -> str:
    return folder.absolute().name
