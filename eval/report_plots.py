"""The plots of the report: matplotlib to SVG, once for a light page and once for a dark one.

What a model wrote may stand in a label, so the characters that act rather than print are spelled out here, for the
page too. The same numbers give the same bytes.
"""

import base64
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eval.stats import Interval

__all__ = [
    "AFTER", "BEFORE", "Plot", "clean", "format_number", "plot_bars", "plot_flow", "plot_frontier", "plot_histogram",
    "plot_intervals", "plot_lines", "plot_map", "to_dict", "to_float",
]  # fmt: skip

CURVES = ("#1f6feb", "#d9730d", "#1a7f37", "#8250df", "#bf3989", "#59636e")
INK, GRID, BEFORE, AFTER, REJECTED = "#59636e", "#dde2e8", "#8d97a3", "#1f6feb", "#d9730d"
TOPICS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2", "#9c755f", "#edc948")
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

# C0 (but tab and line feed), DEL, C1, all that is Bidi_Control, line and paragraph separators, surrogates, invisible tags,
# and the two non-characters that XML refuses.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f]"
)

GroupT = TypeVar("GroupT")


class Plot(NamedTuple):
    """A figure as two images (data: URIs of SVG, for light and dark), and what it shows in words."""

    title: str
    caption: str
    light: str
    dark: str


def clean(value: Any) -> Any:
    """Spell out, in a text, the characters that act rather than print; Jinja calls it for all that it writes."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _UNSAFE.sub(lambda match: f"<U+{ord(match[0]):04X}>", value.replace("\r\n", "\n"))


def format_number(value: Any, unit: str = "", *, signed: bool = False) -> str:
    """Write a number for people: a share as percent; where signed, as points."""
    number = to_float(value)
    if math.isnan(number):
        return "-"
    sign = "+" if signed else ""
    if unit == "share":
        return f"{100 * number:{sign}.1f}" + ("" if signed else "%")
    return f"{number:{sign},.0f}" if number.is_integer() or abs(number) >= 1000 else f"{number:{sign}.3g}"


def to_float(value: Any) -> float:
    """Return a finite number as a float, and anything else as NaN (which a plot leaves out)."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else math.nan


def to_dict(value: Any) -> dict[str, Any]:
    """Return a mapping as it is, and anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def _shorten(label: str) -> str:
    """Fit a label into a plot."""
    text = str(clean(label))
    return text if len(text) <= 40 else f"{text[:37]}..."


def _plot(title: str, caption: str, height: float, draw: Callable[["Figure"], None]) -> Plot:
    """Return a figure as images for a page; the dark one is the same with its colours swapped."""
    light = _draw(height, draw)
    dark = re.sub("|".join(DARK), lambda match: DARK[match[0]], light)
    uris = (f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}" for svg in (light, dark))
    return Plot(title, caption, *uris)


def _draw(height: float, draw: Callable[["Figure"], None], *, background: str | None = None) -> str:
    """Draw a figure (6.4 by `height` inches) to SVG."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", PLOT_STYLE], after_reset=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that matplotlib's font lacks, the browser's has
        figure, stream = Figure(figsize=(6.4, height), layout="constrained"), io.StringIO()
        draw(figure)
        ground: dict[str, Any] = {"transparent": True} if background is None else {"facecolor": background}
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, **ground)
    return re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", stream.getvalue())


def plot_bars(
    title: str, caption: str, labels: Sequence[str], groups: Mapping[str, Sequence[float]], colors: Sequence[str]
) -> Plot:
    """Draw horizontal bars: one group with a colour a bar, or more groups with a colour each."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        height = 0.8 / len(groups)
        for at, (name, values) in enumerate(groups.items()):
            places = [place + (at + 0.5) * height - 0.4 for place in range(len(values))]
            bars = axes.barh(places, values, 0.9 * height, label=name, color=colors[at] if name else [*colors])
            axes.bar_label(bars, fmt=format_number, padding=3, fontsize=8)
        axes.set_yticks(range(len(shown)), shown)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        if len(groups) > 1:
            figure.legend(loc="outside upper left", ncols=2)

    shown = [_shorten(label) for label in labels]
    return _plot(title, caption, 0.8 + 0.3 * len(labels) * (1 + 0.4 * (len(groups) > 1)), draw)


def plot_histogram(
    title: str, caption: str, groups: Mapping[str, Sequence[float]], xlabel: str, *, ylabel: str = "pairs"
) -> Plot:
    """Draw one histogram, or two on the same bins."""
    import numpy as np

    everything = [value for group in groups.values() for value in group if not math.isnan(value)] or [0.0]
    low, high = min(everything), max(everything)
    bins: dict[str, Any] = {"bins": 24, "range": (low, high) if high > low else (low - 0.5, low + 0.5)}

    def paint(axes: "Axes", name: str, group: Sequence[float], color: str) -> None:
        values = np.asarray(group, dtype=float)  # of a list matplotlib looks at each value by itself
        axes.hist(values, color=color, alpha=0.3, **bins)
        axes.hist(values, color=color, histtype="step", linewidth=1.5, label=name, **bins)
        axes.set(xlabel=xlabel, ylabel=ylabel)

    return _plot_groups(title, caption, groups, paint)


def plot_lines(title: str, caption: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> Plot:
    """Draw curves over the training's steps; those with names start at zero."""

    def paint(axes: "Axes", name: str, points: Sequence[tuple[float, float]], color: str) -> None:
        axes.plot(*zip(*points, strict=True), color=color, label=name, marker="o", markersize=3)
        axes.set(xlabel="step")
        axes.locator_params(axis="x", integer=True)
        if name:
            axes.axhline(0, color=INK, linewidth=0.8, linestyle="--")

    return _plot_groups(title, caption, lines, paint)


def _plot_groups(
    title: str, caption: str, groups: Mapping[str, GroupT], paint: Callable[["Axes", str, GroupT, str], None]
) -> Plot:
    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for (name, group), color in zip(groups.items(), (AFTER, REJECTED), strict=False):
            paint(axes, name, group, color)
        if any(groups):
            figure.legend(loc="outside upper left", ncols=2)

    return _plot(title, caption, 3.0, draw)


def plot_flow(title: str, caption: str, source: tuple[str, int], ends: Sequence[tuple[str, str, int]]) -> Plot:
    """Draw how so many divide among stages, and within a stage among reasons: (stage, reason, how many), in order.

    The first end is what goes on; a reason that is empty ends at its stage.
    """
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path as Curve

    stages = [*dict.fromkeys(stage for stage, _, _ in ends)]
    sums = {stage: sum(num for name, _, num in ends if name == stage) for stage in stages}
    whole = max(source[1], sum(sums.values()), 1)
    shown = [(stage, reason, num) for stage, reason, num in ends if reason]
    room = 0.055 * max(len(stages), len(shown))  # between neighbours, so that a thin one has a place for its label

    def place(sizes: Sequence[int]) -> list[tuple[float, float]]:
        """Return the top and the height of each, one under the other over the whole height."""
        gap = room / max(len(sizes), 1)
        tops = [sum(sizes[:at]) / whole + at * gap for at in range(len(sizes))]
        return [(top, size / whole) for top, size in zip(tops, sizes, strict=True)]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()

        def put(x: float, box: tuple[float, float], label: str, num: int, color: str) -> None:
            axes.add_patch(Rectangle((x, box[0]), 0.03, max(box[1], 0.004), color=color, linewidth=0))
            axes.text(x + 0.045, box[0] + box[1] / 2, f"{_shorten(label)} {num:,}", va="center", fontsize=8.5)

        def join(x: float, stop: float, left: float, box: tuple[float, float], color: str) -> None:
            top, height, middle = box[0], max(box[1], 0.002), (x + stop) / 2
            points = [(x, left), (middle, left), (middle, top), (stop, top), (stop, top + height)]
            points += [(middle, top + height), (middle, left + height), (x, left + height), (x, left)]
            codes = [Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO, *[Curve.CURVE4] * 3, Curve.CLOSEPOLY]
            axes.add_patch(PathPatch(Curve(points, codes), facecolor=color, alpha=0.28, linewidth=0))

        boxes = dict(zip(stages, place([*sums.values()]), strict=True))
        put(0.0, (0.0, source[1] / whole), *source, INK)
        left = 0.0
        for stage in stages:
            color = AFTER if stage == ends[0][0] else REJECTED
            join(0.03, 0.42, left, boxes[stage], color)
            left += boxes[stage][1]
            put(0.42, boxes[stage], stage, sums[stage], color)
        inside = {stage: box[0] for stage, box in boxes.items()}
        for (stage, reason, num), box in zip(shown, place([num for _, _, num in shown]), strict=True):
            join(0.45, 0.8, inside[stage], box, REJECTED)
            inside[stage] += num / whole
            put(0.8, box, reason, num, REJECTED)
        axes.set(xlim=(-0.01, 1.35), ylim=(1 + room, -0.02))
        axes.axis("off")

    return _plot(title, caption, max(2.6, 0.8 + 0.27 * max(len(stages), len(shown))), draw)


def plot_map(title: str, caption: str, groups: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Plot:
    """Draw points on a plane, a colour a group; nearness alone means something, so the axes have no numbers."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for at, (name, points) in enumerate(groups):
            axes.scatter(*zip(*points, strict=True), s=9, color=TOPICS[at % len(TOPICS)], alpha=0.7, linewidths=0)
            x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
            axes.text(x, y, str(at + 1), ha="center", va="center", fontsize=11, fontweight="bold")
            axes.scatter([], [], color=TOPICS[at % len(TOPICS)], label=f"{at + 1} {_shorten(name)}")
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        figure.legend(loc="outside right upper", fontsize=8)

    return _plot(title, caption, 3.6, draw)


def plot_intervals(title: str, caption: str, metrics: Sequence[Mapping[str, Any]]) -> Plot:
    """Draw a row a metric: base and adapter on the left, their difference and the zero on the right."""
    columns = 2 if any(to_dict(row.get("difference")) for row in metrics) else 1

    def draw(figure: "Figure") -> None:
        for axes, row in zip(figure.subplots(len(metrics), columns, squeeze=False), metrics, strict=True):
            scale, unit = (100, "%") if row.get("unit") == "share" else (1, row.get("unit"))
            name = f"{row.get('metric')} ({unit})" if unit else str(row.get("metric"))
            for at, (key, color) in enumerate(
                (("base", BEFORE), ("adapter", AFTER), ("difference", INK))[: columns + 1]
            ):
                side, place = axes[at // 2], -(at % 2)
                mean, low, high = (scale * to_float(to_dict(row.get(key)).get(x)) for x in ("mean", "low", "high"))
                side.plot([low, high], [place, place], color=color, linewidth=2, solid_capstyle="round")
                side.plot([mean], [place], color=color, marker="o", markersize=7)
            axes[0].set(yticks=[0, -1], yticklabels=["base", "adapter"], ylim=(-1.6, 0.6))
            axes[0].set_title(_shorten(name), loc="left", fontsize=10)
            if columns == 2:
                axes[1].axvline(0, color=REJECTED, linewidth=1, linestyle="--")
                axes[1].set(yticks=[], ylim=(-0.8, 0.8))
                axes[1].set_title("adapter less base", loc="left", fontsize=10)

    return _plot(title, caption, 0.4 + 1.1 * len(metrics), draw)


def plot_frontier(
    xlabel: str, ylabel: str, curves: Mapping[str, Sequence[tuple[float, "Interval"]]], path: Path
) -> None:
    """Write curves of points, each with a mean and its interval above a place, to an SVG file."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for at, (name, points) in enumerate(curves.items()):
            color = CURVES[at % len(CURVES)]
            places, means = zip(*((place, found.mean) for place, found in sorted(points)), strict=True)
            axes.plot(places, means, color=color, marker="o", markersize=4, label=_shorten(name))
            for place, found in points:
                axes.plot([place, place], [found.low, found.high], color=color, linewidth=1, alpha=0.6)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        figure.legend(loc="outside upper left", ncols=4)

    path.write_text(_draw(4.0, draw, background="white"), encoding="utf-8")
