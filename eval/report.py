"""The report: one self-contained page that tells a person what a run did, from the files that its jobs left.

Its texts come from models and are never trusted: Jinja escapes them, the page's policy allows its own script and style
by their hashes and no network, the script writes by `textContent` only, and control and bidirectional-override
characters are spelled out. What is missing or broken becomes a note. The same folders give the same bytes.

    synthesize   pairs.jsonl                    what was kept and dropped, margins, lengths, a browser of the pairs
    train        metrics.jsonl                  loss, margins, accuracies, how far the log-probabilities moved
    evaluate     summary.json, results.jsonl    the scores with intervals, by kind, examples before and after
"""

import base64
import hashlib
import io
import json
import math
import re
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jinja2
import yaml
from markupsafe import Markup

from counterfoil.errors import InputError
from counterfoil.jsonl import read_jsonl, read_lines
from counterfoil.records import Dropped, Message, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["render_report"]

MAX_PAIRS = 5_000
"""Pairs that a page holds: some 10 MB, which a browser still searches while one types."""
MAX_BARS = 30

INK, GRID, BEFORE, AFTER, REJECTED = "#59636e", "#dde2e8", "#8d97a3", "#1f6feb", "#d9730d"
DARK = {INK: "#a3adb8", GRID: "#30363d", BEFORE: "#7a8490", AFTER: "#58a6ff", REJECTED: "#f0964a"}
PLOT_STYLE: dict[str, Any] = (
    dict.fromkeys(("axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK)
    | dict.fromkeys(("axes.edgecolor", "grid.color"), GRID)
    | dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top", "legend.frameon"), False)
    | dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0)
    | {"axes.axisbelow": True, "axes.grid": True}
    | {"svg.fonttype": "none", "svg.hashsalt": "counterfoil"}  # text stays text (fewer bytes), ids stay the same
    | {"text.parse_math": False}  # a dollar sign in a label is a dollar sign
)
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

# C0 (but tab and line feed), DEL, C1, bidirectional embeddings, overrides and isolates, surrogates, invisible tags,
# and the two non-characters that XML refuses.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f]"
)

RowT = TypeVar("RowT")


class _Plot(NamedTuple):
    """A figure as two images (data: URIs of SVG, for light and dark), and what it shows in words."""

    title: str
    caption: str
    light: str
    dark: str


def render_report(parts: Mapping[str, Path], *, title: str) -> str:
    """Render the page as one string of HTML.

    Args:
        parts: The folders of the jobs by name, in the order in which to show them; each holds a manifest.json. A folder
            that is missing, or a job of an unknown kind, is shown as far as it goes.
        title: The page's heading.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_clean
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    environment.filters.update(csp_hash=_hash_source, number=_format_number, yaml=_dump_yaml)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return template.render(title=title, sections=[_read_section(name, folder) for name, folder in parts.items()])


def _clean(value: Any) -> Any:
    """Spell out, in a text, the characters that act rather than print; Jinja calls it for all that it writes."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _UNSAFE.sub(lambda match: f"<U+{ord(match[0]):04X}>", value.replace("\r\n", "\n"))


def _hash_source(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _dump_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).removesuffix("...\n").rstrip()


def _format_number(value: Any, unit: str = "", *, signed: bool = False) -> str:
    """Write a number for people: a share as percent; where signed, as points."""
    number = _to_float(value)
    if math.isnan(number):
        return "-"
    sign = "+" if signed else ""
    if unit == "share":
        return f"{100 * number:{sign}.1f}" + ("" if signed else "%")
    return f"{number:{sign},.0f}" if number.is_integer() or abs(number) >= 1000 else f"{number:{sign}.3g}"


def _to_float(value: Any) -> float:
    """Return a finite number as a float, and anything else as NaN (which a plot leaves out)."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else math.nan


def _to_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _to_dicts(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _shorten(label: str) -> str:
    """Fit a label into a plot."""
    text = str(_clean(label))
    return text if len(text) <= 40 else f"{text[:37]}..."


def _join_messages(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return _to_dict(json.loads(path.read_text(encoding="utf-8", errors="replace")))
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


def _read_section(name: str, folder: Path) -> dict[str, Any]:
    """Read what the template shows of one job."""
    notes: list[str] = []
    manifest = _read_json(folder / "manifest.json", notes)
    job = str(manifest.get("job", "unknown"))
    section = {"name": name, "job": job, "manifest": manifest, "notes": notes, "plots": []}
    if job in READERS:
        return section | READERS[job](folder, manifest, notes)
    notes.append(f"Nothing more is shown of a job of the kind {job!r}.")
    return section


def _read_synthesize(folder: Path, manifest: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    pairs = _collect(read_jsonl(folder / "pairs.jsonl", Pair, where="report"), "pairs.jsonl", notes)
    if len(pairs) > MAX_PAIRS:
        notes.append(f"The page holds the first {MAX_PAIRS:,} of {len(pairs):,} pairs; pairs.jsonl holds them all.")
    plots: list[_Plot] = []
    counts = _to_dict(manifest.get("counts"))
    dropped = sorted(_to_dict(counts.get("dropped")).items(), key=lambda item: -_to_float(item[1]))
    if len(dropped) > MAX_BARS:
        notes.append(f"Drawn are the {MAX_BARS} commonest of {len(dropped)} reasons; all are under How this was made.")
    if dropped := dropped[:MAX_BARS]:
        bars = {"kept": _to_float(counts.get("kept"))} | {key: _to_float(value) for key, value in dropped}
        colors = [AFTER] + [BEFORE] * len(dropped)
        caption = "Kept, and dropped by stage and reason: " + "; ".join(
            f"{key} {_format_number(value)}" for key, value in bars.items()
        )
        plots.append(_plot_bars("Kept and dropped", caption, [*bars], {"": [*bars.values()]}, colors))
    if pairs:
        margins = {"": [_to_float(pair.score_chosen - pair.score_rejected) for pair in pairs]}
        caption = "Score of the chosen answer less that of the rejected one."
        plots.append(_plot_histogram("Margins", caption, margins, "margin"))
        sides = {"chosen": [pair.chosen for pair in pairs], "rejected": [pair.rejected for pair in pairs]}
        lengths = {name: [float(len(_join_messages(x).split())) for x in side] for name, side in sides.items()}
        medians = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in lengths.items())
        caption = f"Words an answer; medians: {medians}. Where they differ much, training also teaches length."
        plots.append(_plot_histogram("Lengths", caption, lengths, "words"))
    blob = [
        [*(_clean(_join_messages(side)) for side in (pair.prompt, pair.chosen, pair.rejected)),
         *(score if math.isfinite(score) else None for score in (pair.score_chosen, pair.score_rejected)), pair.id]
        for pair in pairs[:MAX_PAIRS]
    ]  # fmt: skip
    return {"plots": plots, "pairs": blob}


def _read_train(folder: Path, _: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    rows = _collect(read_lines(folder / "metrics.jsonl", where="report"), "metrics.jsonl", notes)
    plots: list[_Plot] = []
    for title, caption, keys in CURVES:
        lines: dict[str, list[tuple[float, float]]] = {}
        for name, key in keys.items():
            points = [(_to_float(row.get("step")), _to_float(row.get(key))) for row in rows]
            points = [point for point in points if not math.isnan(sum(point))]
            start = points[0][1] if points and name else 0.0
            lines |= {name: [(step, value - start) for step, value in points]} if points else {}
        if lines:
            ends = [f"{name} {_format_number(y[0][1])} to {_format_number(y[-1][1])}" for name, y in lines.items()]
            plots.append(_plot_lines(title, f"{caption} First to last: {', '.join(ends)}.", lines))
        elif rows:
            notes.append(f"metrics.jsonl says nothing of {' or '.join(keys.values())}.")
    return {"plots": plots}


def _read_evaluate(folder: Path, _: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    summary = _read_json(folder / "summary.json", notes)
    results = _collect(read_lines(folder / "results.jsonl", where="report"), "results.jsonl", notes)
    level = f"{_format_number(100 * _to_float(summary.get('level', 0.95)))}%"
    metrics, kinds = _to_dicts(summary.get("rows")), _to_dicts(summary.get("by_kind"))
    plots: list[_Plot] = []
    if metrics:
        plots.append(_plot_intervals("Scores", f"Means with {level} intervals; the table has the numbers.", metrics))
    if kinds:
        labels = [f"{row.get('kind')} ({row.get('num')})" for row in kinds]
        sides = [name for name in ("base", "adapter") if any(name in row for row in kinds)]
        bars = {name: [100 * _to_float(row.get(name)) for row in kinds] for name in sides}
        caption = "Percent met by kind, and how many prompts are of it; the table has the numbers."
        plots.append(_plot_bars("By kind", caption, labels, bars, [BEFORE, AFTER]))
    wanted = summary.get("examples")
    by_id = {str(row.get("prompt_id")): row for row in results}
    examples = [by_id[str(key)] for key in wanted if str(key) in by_id] if isinstance(wanted, list) else []
    if isinstance(wanted, list) and len(examples) < len(wanted):
        notes.append(f"results.jsonl lacks {len(wanted) - len(examples)} of the {len(wanted)} examples.")
    data = {"plots": plots, "level": level, "summary": summary, "metrics": metrics, "kinds": kinds}
    return data | {"examples": examples}


READERS: Mapping[str, Callable[[Path, dict[str, Any], list[str]], dict[str, Any]]] = {
    "synthesize": _read_synthesize,
    "train": _read_train,
    "evaluate": _read_evaluate,
}


def _plot(title: str, caption: str, height: float, draw: Callable[["Figure"], None]) -> _Plot:
    """Draw a figure (6.4 by `height` inches) to SVG; the dark one is the same with its colours swapped."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", PLOT_STYLE], after_reset=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that matplotlib's font lacks, the browser's has
        figure, stream = Figure(figsize=(6.4, height), layout="constrained"), io.StringIO()
        draw(figure)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    light = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", stream.getvalue())
    dark = re.sub("|".join(DARK), lambda match: DARK[match[0]], light)
    uris = (f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}" for svg in (light, dark))
    return _Plot(title, caption, *uris)


def _plot_bars(
    title: str, caption: str, labels: Sequence[str], groups: Mapping[str, Sequence[float]], colors: Sequence[str]
) -> _Plot:
    """Draw horizontal bars: one group with a colour a bar, or more groups with a colour each."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        height = 0.8 / len(groups)
        for at, (name, values) in enumerate(groups.items()):
            places = [place + (at + 0.5) * height - 0.4 for place in range(len(values))]
            bars = axes.barh(places, values, 0.9 * height, label=name, color=colors[at] if name else [*colors])
            axes.bar_label(bars, fmt=_format_number, padding=3, fontsize=8)
        axes.set_yticks(range(len(shown)), shown)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        if len(groups) > 1:
            figure.legend(loc="outside upper left", ncols=2)

    shown = [_shorten(label) for label in labels]
    return _plot(title, caption, 0.8 + 0.3 * len(labels) * (1 + 0.4 * (len(groups) > 1)), draw)


def _plot_histogram(title: str, caption: str, groups: Mapping[str, Sequence[float]], xlabel: str) -> _Plot:
    """Draw one histogram, or two on the same bins."""
    everything = [value for group in groups.values() for value in group if not math.isnan(value)] or [0.0]
    low, high = min(everything), max(everything)
    bins: dict[str, Any] = {"bins": 24, "range": (low, high) if high > low else (low - 0.5, low + 0.5)}

    def paint(axes: "Axes", name: str, group: Sequence[float], color: str) -> None:
        axes.hist(group, color=color, alpha=0.3, **bins)
        axes.hist(group, color=color, histtype="step", linewidth=1.5, label=name, **bins)
        axes.set(xlabel=xlabel, ylabel="pairs")

    return _plot_groups(title, caption, groups, paint)


def _plot_lines(title: str, caption: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> _Plot:
    """Draw curves over the training's steps; those with names start at zero."""

    def paint(axes: "Axes", name: str, points: Sequence[tuple[float, float]], color: str) -> None:
        axes.plot(*zip(*points, strict=True), color=color, label=name, marker="o", markersize=3)
        axes.set(xlabel="step")
        axes.locator_params(axis="x", integer=True)
        if name:
            axes.axhline(0, color=INK, linewidth=0.8, linestyle="--")

    return _plot_groups(title, caption, lines, paint)


def _plot_groups(
    title: str, caption: str, groups: Mapping[str, RowT], paint: Callable[["Axes", str, RowT, str], None]
) -> _Plot:
    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for (name, group), color in zip(groups.items(), (AFTER, REJECTED), strict=False):
            paint(axes, name, group, color)
        if any(groups):
            figure.legend(loc="outside upper left", ncols=2)

    return _plot(title, caption, 3.0, draw)


def _plot_intervals(title: str, caption: str, metrics: Sequence[Mapping[str, Any]]) -> _Plot:
    """Draw a row a metric: base and adapter on the left, their difference and the zero on the right."""
    columns = 2 if any(_to_dict(row.get("difference")) for row in metrics) else 1

    def draw(figure: "Figure") -> None:
        for axes, row in zip(figure.subplots(len(metrics), columns, squeeze=False), metrics, strict=True):
            scale, unit = (100, "%") if row.get("unit") == "share" else (1, row.get("unit"))
            name = f"{row.get('metric')} ({unit})" if unit else str(row.get("metric"))
            for at, (key, color) in enumerate(
                (("base", BEFORE), ("adapter", AFTER), ("difference", INK))[: columns + 1]
            ):
                side, place = axes[at // 2], -(at % 2)
                mean, low, high = (scale * _to_float(_to_dict(row.get(key)).get(x)) for x in ("mean", "low", "high"))
                side.plot([low, high], [place, place], color=color, linewidth=2, solid_capstyle="round")
                side.plot([mean], [place], color=color, marker="o", markersize=7)
            axes[0].set(yticks=[0, -1], yticklabels=["base", "adapter"], ylim=(-1.6, 0.6))
            axes[0].set_title(_shorten(name), loc="left", fontsize=10)
            if columns == 2:
                axes[1].axvline(0, color=REJECTED, linewidth=1, linestyle="--")
                axes[1].set(yticks=[], ylim=(-0.8, 0.8))
                axes[1].set_title("adapter less base", loc="left", fontsize=10)

    return _plot(title, caption, 0.4 + 1.1 * len(metrics), draw)
