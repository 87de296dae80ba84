"""What choices change at the last step as N grows, with the limit that each tends to. No torch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bootstrap.choice_table import (
    Found,
    crossover,
    effect_csv,
    effect_points,
    ideal_change,
    limit_n,
    numbers,
    shortened,
)
from bootstrap.curves import MIN_SEEDS
from bootstrap.explanation import APPROXIMATE_FROM, approximate_notes
from bootstrap.plot import (
    CAPTION_COLUMNS,
    FONT_PT,
    SMALL_PT,
    STYLE,
    percent,
    spread_apart,
    write_files,
)

WIDTH_INCH = 7.0
PANEL_INCH = 3.4  # the least height of the axes
LABELS_INCH = 2.3  # right of them
LEGEND_INCH = 0.35  # above them, where no interval reaches
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
ASIDE = 1.12  # the first and the last choice are drawn at N / ASIDE and N * ASIDE
LIMIT_MARK: dict[str, Any] = {"marker": "D", "markersize": 5, "markerfacecolor": "white"}


def write_effects(found: Found, folder: Path) -> tuple[Path, ...]:
    """Write effect.csv, effect.png and effect.svg into `folder`; returns their paths."""
    return write_files(plot_effects(found), folder / "effect", effect_csv(found))


def plot_effects(found: Found) -> Figure:
    """A line for each choice over N, ending in a hollow diamond: its limit dI."""
    with matplotlib.rc_context(STYLE):
        text = textwrap.wrap(effect_caption(found), CAPTION_COLUMNS)
        foot = 0.6 + 0.165 * len(text)  # inches: x axis, then caption lines
        panel = max(PANEL_INCH, 0.19 * len(found))
        height = panel + foot + LEGEND_INCH
        figure = Figure(figsize=(WIDTH_INCH, height))
        FigureCanvasAgg(figure)
        width = (WIDTH_INCH - 0.85 - LABELS_INCH) / WIDTH_INCH
        ax = figure.add_axes((0.85 / WIDTH_INCH, foot / height, width, panel / height))
        _draw(ax, found, panel)
        figure.text(0.015, 0.015, "\n".join(text), fontsize=SMALL_PT, color="0.3", va="bottom")
        return figure


def _draw(ax: Axes, found: Found, panel_inch: float) -> None:
    colours = matplotlib.color_sequences["petroff10"]
    ax.axhline(0, color="0.4", linewidth=0.8, zorder=1)
    ends = []
    asides = ASIDE ** np.linspace(-1, 1, len(found)) if len(found) > 1 else np.ones(1)
    for k, ((text, explained), aside) in enumerate(zip(found, asides, strict=True)):
        colour, dashes = colours[k % len(colours)], DASHES[k // len(colours) % len(DASHES)]
        known = effect_points(explained)
        if not known:
            continue
        line = [(n * aside, change) for n, change in known]
        ax.plot(*zip(*line, strict=True), color=colour, linestyle=dashes, linewidth=1.6, zorder=3)
        _draw_points(ax, explained, colour, known, aside)
        ends.append((text, colour, line[-1]))
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(low / 1.1, high * 1.1)
    ticks = spaced([n for _, explained in found for n, _ in effect_points(explained)])
    ax.set_xticks(ticks, [f"{n:,}" for n in ticks], fontsize=SMALL_PT)
    ax.set_xticks([], minor=True)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value).rstrip(" %")))
    ax.set_xlabel("N")
    ax.set_ylabel("change of real test error (points)")
    ax.grid(axis="y", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.margins(y=0.08)
    hollow = Line2D([], [], **LIMIT_MARK, color="0.3", linestyle="none", label="limit dI")
    cross = Line2D([], [], marker="x", color="0.3", linestyle="none", label="crossover")
    ax.legend(handles=[hollow, cross], loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    _label(ax, ends, panel_inch)


def spaced(values: Sequence[int], least: float = 1.4) -> list[int]:
    """The values from the smallest on, without those less than so many times the one before."""
    kept: list[int] = []
    for value in sorted({*values}):
        if not kept or value >= least * kept[-1]:
            kept.append(value)
    return kept


def _draw_points(
    ax: Axes, explained: dict[str, Any], colour: Any, known: list[tuple[int, float]], aside: float
) -> None:
    """Dots with intervals at each N, a diamond at the limit, a cross where the sign changes."""
    for n, of_n in explained["n_samples"].items():
        told = of_n["final"]["error"]["real"]
        if told["mean"] is not None:
            x = int(n) * aside
            ax.plot([x], [told["mean"]], "o", color=colour, markersize=4.5, zorder=4)
            _draw_interval(ax, x, told, colour)
    last_n, last = known[-1]
    if last_n == limit_n(explained):
        ax.plot([last_n * aside], [last], **LIMIT_MARK, color=colour, zorder=4)
        _draw_interval(ax, last_n * aside, ideal_change(explained), colour)
    if (where := crossover(known).n_samples) is not None:
        ax.plot([where * aside], [0], "x", color=colour, markersize=7, mew=1.6, zorder=5)


def _draw_interval(ax: Axes, x: float, told: dict[str, Any], colour: Any) -> None:
    _, low, high = numbers(told)
    if low is not None and high is not None:
        ax.vlines(x, low, high, color=colour, linewidth=1.0, alpha=0.7, zorder=2)


def _label(ax: Axes, ends: list[tuple[str, Any, tuple[float, float]]], panel_inch: float) -> None:
    """The names of the lines in a column at the right, none over another."""
    low, high = ax.get_ylim()
    wanted = np.array([(y - low) / (high - low) for _, _, (_, y) in ends])
    places = spread_apart(wanted, gap=1.35 * FONT_PT / (72 * panel_inch))
    for (text, colour, point), place in zip(ends, places, strict=True):
        ax.annotate(
            shortened(text),
            xy=point,
            xytext=(1.05, place),
            textcoords="axes fraction",
            fontsize=SMALL_PT - 1,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "linestyle": ":"}
            | {"shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def effect_caption(found: Found) -> str:
    """What a reader must know to judge the figure."""
    if not found:
        return "No choice has a record."
    one = found[0][1]
    steps = {of_n["final"]["step"] for of_n in one["n_samples"].values()}
    told = [of_n["final"]["error"]["real"] for _, e in found for of_n in e["n_samples"].values()]
    counts = sorted({real["n_seeds"] for real in told if real["n_seeds"]}) or [0]
    n_seeds = " to ".join(map(str, (counts[0], counts[-1])[: len(counts)]))
    bars = "Student-t 95 % intervals across seeds" if counts[-1] >= MIN_SEEDS else "no interval"
    ends = {"baseline": one["baseline"].get(APPROXIMATE_FROM)}
    ends |= {text: explained["choice"].get(APPROXIMATE_FROM) for text, explained in found}
    sentences = [
        "Change of the real world's test error at the last step"
        f" ({', '.join(f'{step:,}' for step in sorted(steps))}), choice minus baseline"
        f" ({one['baseline']['run']}), by N; below 0 the choice helps.",
        "As N grows it tends to the change dI in the ideal world, which it is exactly where no"
        " sample is used twice (diamond)."
        if any(limit_n(explained) is not None for _, explained in found)
        else "",
        "Between N a line, in log N; a cross where it meets 0.",
        "Choices stand side by side at each N." if len(found) > 1 else "",
        f"{n_seeds} seed{'s' * (counts[-1] > 1)}; {bars}.",
        f"{one['n_test']:,} test images at the last step." if one.get("n_test") else "",
        *approximate_notes(ends),
    ]
    return " ".join(sentence for sentence in sentences if sentence)
