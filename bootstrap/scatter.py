"""Real against ideal soft-error at convergence, as the paper draws many pairs at once. No torch.

A point is one N of one run: means over seeds, each seed at the step at which its own real world
converged (train error at most 1 %). On the dashed line there is no gap; above it the real world is
worse. A point is hollow if a real world of it has not converged: it stands at the last step then.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bootstrap.curves import Spread, spread
from bootstrap.plot import CAPTION_COLUMNS, SMALL_PT, STYLE, percent, write_files
from bootstrap.series import WORLDS, Series, about_series

WIDTH_INCH = 7.0
PANEL_INCH = 4.3  # of the square of the points
MARKERS = "osD^vP"  # after each round of colours another
CSV_METRICS = ("soft_error", "error")
CSV_COLUMNS = (
    *("label", "run", "model", "optimizer", "n_samples", "n_seeds", "n_converged", "step"),
    *(
        f"{w}_{m}{end}"
        for m in CSV_METRICS
        for w in (*WORLDS, "gap")
        for end in ("", "_low", "_high")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A series at convergence."""

    series: Series
    n_converged: int
    step: float  # mean over seeds
    values: dict[str, dict[str, Float[np.ndarray, " n_seeds"]]]  # by metric; real, ideal, gap

    @property
    def is_censored(self) -> bool:
        """Whether the real world of a seed has not converged."""
        return self.n_converged < len(self.series.seeds)

    def over_seeds(self, metric: str, which: str) -> Spread:
        """Mean and interval of `real`, `ideal` or `gap`."""
        return spread(self.values[metric][which])


def dots_of(series: Sequence[Series]) -> list[Dot]:
    """A dot for every series that has records of both worlds."""
    return [_dot(one) for one in series if one.at_convergence]


def _dot(series: Series) -> Dot:
    seeds = series.at_convergence
    values = {}
    for metric in CSV_METRICS:
        by = {world: np.array([s.scores[world][metric] for s in seeds]) for world in WORLDS}
        values[metric] = {**by, "gap": by["real"] - by["ideal"]}
    return Dot(
        series=series,
        n_converged=sum(not s.is_censored for s in seeds),
        step=float(np.mean([s.step for s in seeds])),
        values=values,
    )


def write_scatter(series: Sequence[Series], stem: Path, about: str = "") -> tuple[Path, ...]:
    """Write `<stem>.csv`, `.png` and `.svg`; returns their paths."""
    dots = dots_of(series)
    return write_files(plot_scatter(dots, about=about), stem, scatter_csv(dots))


def plot_scatter(dots: Sequence[Dot], *, about: str = "") -> Figure:
    """The figure with its caption; a colour per label."""
    with matplotlib.rc_context(STYLE):
        said = caption(dots, about).replace("N = ", "N\xa0=\xa0")
        text = textwrap.wrap(said, CAPTION_COLUMNS)
        foot = 0.6 + 0.165 * len(text)  # inches: x axis, then caption lines
        height = PANEL_INCH + foot + 0.15
        figure = Figure(figsize=(WIDTH_INCH, height))
        FigureCanvasAgg(figure)
        square = (PANEL_INCH / WIDTH_INCH, PANEL_INCH / height)
        ax = figure.add_axes((0.105, foot / height, *square))
        _draw(ax, dots)
        figure.text(0.015, 0.015, "\n".join(text), fontsize=SMALL_PT, color="0.3", va="bottom")
        return figure


def caption(dots: Sequence[Dot], about: str = "") -> str:
    """What a reader must know: what is drawn, data, N, steps, seeds, hardware, what is censored."""
    what = "Test soft-error (1 - probability of the true class) where the real world converges"
    sentences = [f"{about}." if about else "", f"{what} (train error at most 1 %), of both worlds."]
    if dots:
        sentences.append(about_series([dot.series for dot in dots]))
    n_censored = sum(dot.is_censored for dot in dots)
    if n_censored:
        sentences.append(
            f"Hollow ({n_censored} of {len(dots)}): not every seed has converged; those that have"
            " not are taken at the last step."
        )
    return " ".join(sentence for sentence in sentences if sentence)


def _draw(ax: Axes, dots: Sequence[Dot]) -> None:
    labels = list(dict.fromkeys(dot.series.label for dot in dots))
    colours = matplotlib.color_sequences["petroff10"]
    looks: dict[str, dict[str, Any]] = {
        label: {"color": colours[i % len(colours)], "marker": MARKERS[i // len(colours) % 6]}
        for i, label in enumerate(labels)
    }
    ends = _ends(dots)
    dashed: dict[str, Any] = {"color": "0.5", "linestyle": (0, (4, 2)), "linewidth": 1.0}
    ax.plot(ends, ends, **dashed, zorder=1)
    for dot in dots:
        _draw_dot(ax, dot, looks[dot.series.label])
    ax.set_xlim(*ends)
    ax.set_ylim(*ends)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    ax.set_xlabel("ideal world, test soft-error")
    ax.set_ylabel("real world, test soft-error")
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    handles = [
        Line2D([], [], linestyle="none", **look, label=label) for label, look in looks.items()
    ]
    handles.append(Line2D([], [], **dashed, label="y = x: no gap"))
    if any(dot.is_censored for dot in dots):
        hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "color": "0.4"}
        handles.append(Line2D([], [], linestyle="none", **hollow, label="not converged"))
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), handlelength=1.4)
    if not dots:
        ax.text(0.5, 0.5, "no records yet", transform=ax.transAxes, ha="center", color="0.4")


def _draw_dot(ax: Axes, dot: Dot, look: dict[str, Any]) -> None:
    """A mean with its bars; hollow if a seed of it has not converged."""
    x, y = (dot.over_seeds("soft_error", world) for world in ("ideal", "real"))
    bars: dict[str, Any] = {"color": look["color"], "linewidth": 1.0, "alpha": 0.7, "zorder": 2}
    ax.plot([x.low, x.high], [y.mean, y.mean], **bars)
    ax.plot([x.mean, x.mean], [y.low, y.high], **bars)
    face: dict[str, Any] = {"markerfacecolor": "white"} if dot.is_censored else {}
    point = {"linestyle": "none", "markersize": 6, "zorder": 3, **look, **face}
    ax.plot([x.mean], [y.mean], **point)


def _ends(dots: Sequence[Dot]) -> tuple[float, float]:
    """One range for both axes that holds every mean, and most of the bars."""
    spreads = [dot.over_seeds("soft_error", world) for dot in dots for world in WORLDS]
    means = [float(s.mean) for s in spreads]
    if not means:
        return 0.0, 1.0
    room = 0.12 * max(max(means) - min(means), 0.02)
    ends = [float(end) for s in spreads for end in (s.low, s.high) if np.isfinite(end)]
    low = max(min([*means, *ends]), min(means) - 4 * room) - room
    high = min(max([*means, *ends]), max(means) + 4 * room) + room
    return max(low, 0.0), min(high, 1.0)


def scatter_csv(dots: Sequence[Dot]) -> bytes:
    """A row per dot: means and their intervals, as fractions; empty where there is none."""
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    table.writeheader()
    for dot in dots:
        recipe = dot.series.run.config.get("recipe") or {}
        row: dict[str, Any] = {
            "label": dot.series.label,
            "run": dot.series.run.name,
            "model": recipe.get("model"),
            "optimizer": recipe.get("optimizer"),
            "n_samples": dot.series.n_samples,
            "n_seeds": len(dot.series.at_convergence),
            "n_converged": dot.n_converged,
            "step": dot.step,
        }
        for metric in CSV_METRICS:
            for which in (*WORLDS, "gap"):
                found = dot.over_seeds(metric, which)
                ends = {"": found.mean, "_low": found.low, "_high": found.high}
                row |= {
                    f"{which}_{metric}{end}": float(value) if np.isfinite(value) else ""
                    for end, value in ends.items()
                }
        table.writerow(row)
    return buffer.getvalue().encode()
