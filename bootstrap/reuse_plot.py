"""The figure of the reuse rates: what K passes over N samples are worth. No torch, no pyplot."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bootstrap.caption import about_data, about_test, about_training
from bootstrap.curves import MIN_SEEDS
from bootstrap.plot import CAPTION_COLUMNS, SMALL_PT, STYLE, title, write_files
from bootstrap.reuse import Reuse, reuse_of, worth_of_repetition
from bootstrap.runlog import Run

WIDTH_INCH = 7.0
PANEL_INCH = 3.0
PANELS = {"soft_error": "by soft-error", "loss": "by test loss"}
NUDGE = 1.05  # between the N, so that their intervals do not hide each other
LOWEST = 0.25  # of the vertical axis, in passes; what is lower stands at its foot


def plot_reuse(
    reuse: Reuse, *, heading: str = "", about: str = "", has_caption: bool = True
) -> Figure:
    """The reuse rate by passes, soft-error at the left and test loss at the right, a colour per N.

    Below the dashed line a repeated sample is worth less than a fresh one.
    """
    with matplotlib.rc_context(STYLE):
        said = f"{_what(reuse)} {about}".replace("N = ", "N\xa0=\xa0") if has_caption else ""
        text = textwrap.wrap(said, CAPTION_COLUMNS)
        foot = 0.6 + 0.165 * len(text)  # inches: x axis, then caption lines
        height = PANEL_INCH + foot + 0.55
        figure = Figure(figsize=(WIDTH_INCH, height))
        FigureCanvasAgg(figure)
        margins = {"left": 0.095, "right": 0.985, "wspace": 0.12}
        vertical = {"bottom": foot / height, "top": 1 - 0.55 / height}
        axes = figure.subplots(1, 2, sharex=True, sharey=True, gridspec_kw=margins | vertical)
        for ax, (metric, name) in zip(axes, PANELS.items(), strict=True):
            _draw(ax, reuse, metric)
            ax.set_title(name, loc="left")
            ax.set_xlabel("passes over the N samples, $K$")
        _set_axes(axes, reuse)
        axes[0].set_ylabel(
            "reuse rate on the trajectory" if reuse.is_on_trajectory else "$E(K, N)$"
        )
        axes[0].legend(loc="upper left")
        figure.text(0.015, 1 - 0.05 / height, heading, va="top", fontsize=10)
        figure.text(0.015, 0.015, "\n".join(text), fontsize=SMALL_PT, color="0.3", va="bottom")
        return figure


def write_reuse_figure(run: Run) -> tuple[Path, ...]:
    """Write reuse.png and reuse.svg into the run's folder; returns their paths."""
    figure = plot_reuse(reuse_of(run), heading=title(run), about=_about(run))
    return write_files(figure, run.path / "reuse")


def reuse_caption(run: Run, reuse: Reuse) -> str:
    """What the figure shows, and of which run."""
    return f"{_what(reuse)} {_about(run)}"


def _what(reuse: Reuse) -> str:
    text = "Fresh samples after which the ideal world has the real world's score, over N."
    if reuse.is_on_trajectory:
        text += " The learning rate decays along the way, so this is not E(K, N) itself."
    shown = list(_shown(reuse))
    if any(found["lower_bound"] is not None for found in shown):
        text += " Hollow: not reached, so above that."
    if any(found["mean"] is not None and found["mean"] < LOWEST for found in shown):
        text += f" At the foot: below {LOWEST}."
    r_star = reuse.law()["soft_error"]["r_star"]
    return text if r_star is None else f"{text} Law of repetition by soft-error: {_said(r_star)}."


def _about(run: Run) -> str:
    recipe, n_seeds = run.config.get("recipe") or {}, len(run.seeds)
    seeds = f"Mean of {n_seeds} seeds, no interval." if n_seeds > 1 else "1 seed, no interval."
    if n_seeds >= MIN_SEEDS:
        seeds = f"Mean of {n_seeds} seeds, bars: Student-t 95 % interval across seeds."
    about = (about_data(run.config), about_training(run, recipe), seeds if n_seeds else "")
    return " ".join(text for text in (*about, about_test(run.config, recipe)) if text)


def _shown(reuse: Reuse) -> Iterator[dict[str, Any]]:
    """Every rate of the panels, over seeds."""
    for n in reuse.rates:
        for by_metric in reuse.across(n).values():
            yield from (by_metric[metric] for metric in PANELS)


def _said(r_star: dict[str, Any]) -> str:
    """R* with its interval, in words."""
    if r_star["mean"] is None:
        return f"R* is above {r_star['lower_bound']:,.0f}"
    ends = r_star["interval_95"]
    interval = f" (95 % interval {ends[0]:.3g} to {ends[1]:.3g})" if ends else ""
    return f"R* = {r_star['mean']:.3g}{interval}"


def _draw(ax: Axes, reuse: Reuse, metric: str) -> None:
    most = _most_passes(reuse)
    fresh: dict[str, Any] = {
        "color": "0.5",
        "linestyle": (0, (4, 2)),
        "linewidth": 1.0,
        "zorder": 1,
    }
    ax.plot([1, most], [1, most], **fresh, label="as good as fresh samples")
    colours = matplotlib.color_sequences["petroff10"]
    for i, n in enumerate(reuse.rates):
        _draw_rates(ax, n, reuse, metric, colours[i % len(colours)])
    r_star = reuse.law()[metric]["r_star"]
    if r_star and r_star["mean"] is not None:
        k = np.geomspace(1, most, 100)
        dots: dict[str, Any] = {"color": "0.2", "linestyle": ":", "linewidth": 1.4, "zorder": 4}
        ax.plot(k, worth_of_repetition(k - 1, r_star["mean"]), **dots, label="law of repetition")


def _draw_rates(ax: Axes, n_samples: int, reuse: Reuse, metric: str, colour: Any) -> None:
    """The mean with its interval; a hollow triangle where it is only known to be above that."""
    aside = NUDGE ** (list(reuse.rates).index(n_samples) - (len(reuse.rates) - 1) / 2)
    at = {int(k) * aside: by[metric] for k, by in reuse.across(n_samples).items()}
    reached = {x: found for x, found in at.items() if found["mean"] is not None}
    y = [max(found["mean"], LOWEST) for found in reached.values()]
    line: dict[str, Any] = {
        "color": colour,
        "linewidth": 1.8,
        "marker": "o",
        "markersize": 4,
        "zorder": 3,
    }
    ax.plot(list(reached), y, **line, label=f"N = {n_samples:,}")
    ends = {x: found["interval_95"] for x, found in reached.items() if found["interval_95"]}
    low, high = ([max(end[i], LOWEST) for end in ends.values()] for i in (0, 1))
    ax.vlines(list(ends), low, high, color=colour, linewidth=1.0, alpha=0.8, zorder=2)
    bounds = {x: f["lower_bound"] for x, f in at.items() if f["lower_bound"] is not None}
    hollow: dict[str, Any] = {
        "marker": "^",
        "linestyle": "none",
        "markerfacecolor": "none",
        "color": colour,
    }
    ax.plot(list(bounds), [max(bound, LOWEST) for bound in bounds.values()], **hollow)


def _set_axes(axes: Any, reuse: Reuse) -> None:
    """Powers of two on both axes; the vertical one holds every mean and the diagonal."""
    most = _most_passes(reuse)
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.grid(color="0.92", linewidth=0.8)
        ax.set_axisbelow(True)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(FixedLocator([2.0**i for i in range(-2, 40)]))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        ax.set_xlim(0.92, most * 1.15)
        ax.set_ylim(LOWEST, most * 1.6)


def _most_passes(reuse: Reuse) -> int:
    return max((k for by_k in reuse.rates.values() for k in by_k), default=2)
