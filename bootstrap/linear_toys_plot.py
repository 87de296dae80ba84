"""The figure of linear toys: squared errors by step, a panel for each target. No torch."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bootstrap.linear_toys import LinearToy, ToyCurves, run_toy
from bootstrap.plot import (
    CAPTION_COLUMNS,
    CONVERGENCE_MARK,
    IDEAL_COLOUR,
    SMALL_PT,
    STYLE,
    Line,
    draw_seeds,
    mean_of_all,
    set_steps_axis,
    write_files,
)
from bootstrap.series import about_seeds

SIZE_INCH = (7.0, 4.2)
NAMES = {"real": "real world", "ideal": "ideal world", "train": "real, own samples"}
Found = dict[LinearToy, list[ToyCurves]]  # by seed


def write_toys(toys: Sequence[LinearToy], stem: Path, about: str = "") -> tuple[Path, ...]:
    """Compute the toys and write `<stem>.csv`, `.png` and `.svg`; returns their paths."""
    found = {toy: [run_toy(toy, seed) for seed in toy.seeds] for toy in toys}
    return write_files(plot_toys(found, about), stem, toys_csv(found))


def plot_toys(found: Found, about: str = "") -> Figure:
    """The figure with its caption."""
    with matplotlib.rc_context(STYLE):
        text = textwrap.wrap(caption(found, about).replace("N = ", "N\xa0=\xa0"), CAPTION_COLUMNS)
        height = SIZE_INCH[1]
        figure = Figure(figsize=SIZE_INCH)
        FigureCanvasAgg(figure)
        margins = {"left": 0.095, "right": 0.985, "wspace": 0.14}
        vertical = {"bottom": (0.6 + 0.165 * len(text)) / height, "top": 1 - 0.55 / height}
        panels = figure.subplots(1, len(found), sharey=True, gridspec_kw=margins | vertical)
        for ax, (toy, curves) in zip(np.atleast_1d(panels), found.items(), strict=True):
            _draw(ax, curves)
            ax.set_title(f"target: {toy.target}")
        first = np.atleast_1d(panels)[0]
        first.set_ylabel("squared error")
        first.legend(loc="lower left", bbox_to_anchor=(0, 1.09), ncols=4)
        figure.text(0.015, 0.015, "\n".join(text), fontsize=SMALL_PT, color="0.3", va="bottom")
        return figure


def caption(found: Found, about: str = "") -> str:
    """What is learnt from what, how, and the gap where the samples are fitted."""
    toy = next(iter(found))
    sentences = [
        f"{about}." if about else "",
        f"{toy.n_inputs:,} normal inputs, {toy.n_large} of variance 1 and the others of"
        f" {toy.small_variance:g}; N = {toy.n_samples:,}; gradient descent, step size"
        f" {toy.step_size:g}, all N at each step, of which the ideal world has new ones.",
        "The squared error is that over the whole distribution.",
        *(_about_gap(toy, curves) for toy, curves in found.items()),
        about_seeds([len(toy.seeds)]),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _about_gap(toy: LinearToy, curves: list[ToyCurves]) -> str:
    """The mean gap at the seeds' own steps of convergence."""
    at = [(one, step) for one in curves if (step := one.convergence_step) is not None]
    if not at:
        return f"Not fitted: {toy.target}."
    gap = np.mean([one.real[step] - one.ideal[step] for one, step in at])
    return f"Gap at the dot, {toy.target}: {gap:+.2f}."


def _draw(ax: Axes, curves: list[ToyCurves]) -> None:
    colour = matplotlib.color_sequences["petroff10"][0]
    looks: dict[str, dict[str, Any]] = {
        "train": {"color": colour, "linestyle": ":", "zorder": 2},
        "real": {"color": colour, "linestyle": "-", "zorder": 3},
        "ideal": {"color": IDEAL_COLOUR, "linestyle": (0, (4, 2)), "zorder": 4},
    }
    steps = np.arange(len(curves[0].real))
    for name, look in looks.items():
        values = np.array([getattr(one, name) for one in curves])
        draw_seeds(ax, steps, values, look, width=1.6)
        ax.lines[-1].set_label(NAMES[name])
    real = np.array([one.real for one in curves])
    found = [one.convergence_step for one in curves if one.convergence_step]
    if found:
        step = float(np.mean(found))
        y = np.interp(step, steps, mean_of_all(real).mean)
        ax.plot([step], [y], linestyle="none", **CONVERGENCE_MARK, color=colour)
        ax.lines[-1].set_label("fitted (1 %)")
    line = Line(n_samples=None, colour=colour, steps=steps, errors=real, label="")
    set_steps_axis(ax, [line])
    ax.set_xlabel("steps")
    ax.set_ylim(0, None)
    ax.grid(axis="y", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)


def toys_csv(found: Found) -> bytes:
    """A row per target, seed and step: squared errors."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["target", "n_samples", "seed", "step", "real", "ideal", "train"])
    for toy, curves in found.items():
        for seed, one in zip(toy.seeds, curves, strict=True):
            for step, values in enumerate(zip(one.real, one.ideal, one.train, strict=True)):
                row = [toy.target, toy.n_samples, seed, step]
                table.writerow([*row, *(float(value) for value in values)])
    return buffer.getvalue().encode()
