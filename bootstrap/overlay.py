"""Curves of several pairs in one figure, as the paper draws them. No torch.

The real world solid, its ideal world dashed, one colour per label; several N of one run share its
ideal world, which is then dark grey. A panel for each metric. Steps on a log axis from 1.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, ScalarFormatter

from bootstrap.plot import (
    CAPTION_COLUMNS,
    CONVERGENCE_MARK,
    IDEAL_COLOUR,
    SMALL_PT,
    STYLE,
    Line,
    draw_seeds,
    mean_of_all,
    set_percent_axis,
    set_steps_axis,
    write_files,
)
from bootstrap.series import Series, about_series, series_csv

WIDTH_INCH = 7.0
PANEL_INCH = {1: 3.6, 2: 2.8, 3: 2.4}  # height, by number of panels
LEGEND_INCH, LEGEND_COLUMNS = 1.85, 17
NAMES = {"error": "test error", "soft_error": "test soft-error", "loss": "test loss (nats)"}
DASHES: Any = (0, (4, 2))


def write_overlay(
    series: Sequence[Series], stem: Path, metrics: Sequence[str], about: str = ""
) -> tuple[Path, ...]:
    """Write `<stem>.csv`, `.png` and `.svg`; returns their paths."""
    return write_files(plot_overlay(series, metrics, about=about), stem, series_csv(series))


def plot_overlay(series: Sequence[Series], metrics: Sequence[str], *, about: str = "") -> Figure:
    """The figure with its caption."""
    drawn = [one for one in series if one.seeds]
    with matplotlib.rc_context(STYLE):
        text = textwrap.wrap(caption(series, about).replace("N = ", "N\xa0=\xa0"), CAPTION_COLUMNS)
        foot = 0.6 + 0.165 * len(text)  # inches: x axis, then caption lines
        panel, n = PANEL_INCH[len(metrics)], len(metrics)
        head = 0.15 if n == 1 else 0.5  # the legend is beside one panel, above several
        height = panel + foot + head
        figure = Figure(figsize=(WIDTH_INCH, height))
        FigureCanvasAgg(figure)
        right = 1 - LEGEND_INCH / WIDTH_INCH if n == 1 else 0.975
        margins = {"left": 0.115, "right": right, "wspace": 0.5}
        vertical = {"bottom": foot / height, "top": 1 - head / height}
        axes = figure.subplots(1, n, squeeze=False, gridspec_kw=margins | vertical)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            _draw(ax, drawn, metric)
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0)}
        if n > 1:
            place = {"loc": "lower left", "bbox_to_anchor": (0, 1.02), "ncols": 4}
        axes[0].legend(handles=_handles(drawn), **place)
        figure.text(0.015, 0.015, "\n".join(text), fontsize=SMALL_PT, color="0.3", va="bottom")
        return figure


def caption(series: Sequence[Series], about: str = "") -> str:
    """What a reader must know: what is drawn, data, N, steps, seeds, hardware, what is missing."""
    drawn = [one for one in series if one.seeds]
    sentences = [f"{about}." if about else "", about_series(drawn) if drawn else "No records yet."]
    counts = {one.label: sum(not s.is_censored for s in one.at_convergence) for one in drawn}
    never = [label for label, n in counts.items() if n == 0]
    if never:
        sentences.append(f"Not converged: {', '.join(never)}.")
    some = [
        f"{one.label} ({counts[one.label]} of {len(one.seeds)} seeds)"
        for one in drawn
        if 0 < counts[one.label] < len(one.seeds)
    ]
    if some:
        sentences.append(f"The mark is the mean of those that converged: {', '.join(some)}.")
    missing = [one.label for one in series if not one.seeds]
    if missing and drawn:
        sentences.append(f"No records: {', '.join(missing)}.")
    return " ".join(sentence for sentence in sentences if sentence)


def _colours(series: Sequence[Series]) -> dict[str, Any]:
    palette = matplotlib.color_sequences["petroff10"]
    labels = dict.fromkeys(one.label for one in series)
    return {label: palette[i % len(palette)] for i, label in enumerate(labels)}


def _shared(series: Sequence[Series]) -> set[Path]:
    """Runs that several series are of: their ideal world is drawn once."""
    counts = Counter(one.run.path for one in series)
    return {path for path, n in counts.items() if n > 1}


def _draw(ax: Axes, series: Sequence[Series], metric: str) -> None:
    colours, shared, done = _colours(series), _shared(series), set[Path]()
    lines = []
    for one in series:
        ideal_colour = IDEAL_COLOUR if one.run.path in shared else colours[one.label]
        real, ideal = _line(one, "real", metric, colours[one.label]), None
        if one.run.path not in done:
            ideal = _line(one, "ideal", metric, ideal_colour)
            draw_seeds(ax, ideal.steps, ideal.errors, ideal.style, width=1.4)
        draw_seeds(ax, real.steps, real.errors, real.style, width=1.8)
        _draw_convergence(ax, one, real)
        lines += [real] if ideal is None else [ideal, real]
        done.add(one.run.path)
    set_steps_axis(ax, lines)
    ax.xaxis.set_major_locator(LogLocator(numticks=7))
    set_percent_axis(ax, NAMES[metric])
    if metric == "loss":
        ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.set_ylim(0, 1.05 * max((_top(line, metric) for line in lines), default=0) or 1)


def _line(one: Series, world: str, metric: str, colour: Any) -> Line:
    n_samples, values = one.n_samples if world == "real" else None, one.values(world, metric)
    return Line(
        n_samples=n_samples, colour=colour, steps=one.run.steps, errors=values, label=one.label
    )


def _top(line: Line, metric: str) -> float:
    """What the axis has to hold: everything, but of a loss not the peaks of the first steps."""
    late = line.steps >= (line.steps[-1] / 10 if metric == "loss" else 1)
    shown = np.concatenate([line.errors[:, late].ravel(), line.errors[:, 0]])
    return float(shown[np.isfinite(shown)].max(initial=0))


def _draw_convergence(ax: Axes, one: Series, line: Line) -> None:
    """A dot on the mean curve at the mean step of the seeds that converged."""
    found = [s.step for s in one.at_convergence if not s.is_censored]
    mean = mean_of_all(line.errors).mean
    known = np.isfinite(mean) & (line.steps > 0)
    if found and known.any():
        step = float(np.mean(found))
        y = np.interp(np.log(max(step, 1)), np.log(line.steps[known]), mean[known])
        ax.plot([step], [y], **CONVERGENCE_MARK, color=line.colour)


def _handles(series: Sequence[Series]) -> list[Line2D]:
    texts = {n: textwrap.fill(n, LEGEND_COLUMNS) for n in _colours(series)}
    lines = [
        Line2D([], [], color=c, linewidth=1.8, label=texts[n]) for n, c in _colours(series).items()
    ]
    grey = IDEAL_COLOUR if _shared(series) else "0.4"
    return [
        *lines,
        Line2D([], [], color="0.4", linewidth=1.8, label="real world"),
        Line2D([], [], color=grey, linewidth=1.4, linestyle=DASHES, label="ideal world"),
        Line2D([], [], linestyle="none", **CONVERGENCE_MARK, color="0.4", label="convergence"),
    ]
