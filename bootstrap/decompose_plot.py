"""The figure of a design choice against its baseline, for one N. No torch, no pyplot.

Above, the test error of both worlds of both runs, real solid and ideal dashed, with convergence
marked; below, what the choice changes in the real world's error at convergence, as speed + time +
residual, and at the last step.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bootstrap.caption import about_data, about_test
from bootstrap.curves import MIN_SEEDS, approximate_from, seeds_with_values, spread
from bootstrap.decompose import PairCurves, decompose, matched, stopping
from bootstrap.explanation import (
    NAMES,
    approximate_notes,
    common,
    differences,
    explain,
    explain_csv,
    n_of_choice,
    sides,
)
from bootstrap.files import pretty_json, replace
from bootstrap.plot import (
    CAPTION_COLUMNS,
    CONVERGENCE_MARK,
    MARGINS_INCH,
    SIZE_INCH,
    SMALL_PT,
    STYLE,
    Line,
    draw_seeds,
    free_corner,
    label_ends,
    mean_of_all,
    percent,
    render,
    set_percent_axis,
    set_steps_axis,
    title,
)
from bootstrap.runlog import Run

BARS_INCH = 1.55  # the panel of the terms
IDEAL_MARK: dict[str, Any] = CONVERGENCE_MARK | {"markersize": 6.5}
NEVER: dict[str, Any] = {"marker": ">"}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two runs, as it is drawn."""

    name: str
    colour: Any
    pair: PairCurves

    @property
    def lines(self) -> list[Line]:
        """The ideal world's line and the real one's."""
        worlds = {None: self.pair.ideal, 0: self.pair.real}
        return [
            Line(
                n_samples=n,
                colour=self.colour,
                steps=self.pair.steps,
                errors=seeds_with_values(errors),
                label=f"{'ideal' if n is None else 'real'}, {self.name}",
            )
            for n, errors in worlds.items()
        ]


def write_explanation(
    baseline: Run, choice: Run, folder: Path, explained: dict[str, Any] | None = None
) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Write explain.json, explain.csv and a figure for each N into `folder`.

    `explained` is what `explain` says of the two, where it is known already. Returns the content of
    explain.json and the paths.

    Raises what `bootstrap.explanation.explain` does, before anything is written.
    """
    explained = explain(baseline, choice) if explained is None else explained
    contents = {
        "explain.json": pretty_json(explained),
        "explain.csv": explain_csv(baseline, choice),
    }
    for n in map(int, explained["n_samples"]):
        figure = plot_choice(baseline, choice, n)
        contents[f"explain-n{n}.png"] = render(figure, "png")
        contents[f"explain-n{n}.svg"] = render(figure, "svg")
    for name, content in contents.items():
        replace(folder / name, content)
    return explained, tuple(folder / name for name in contents)


def plot_choice(baseline: Run, choice: Run, n_samples: int) -> Figure:
    """The figure of two runs for one N, with its caption."""
    seeds, _ = counted(baseline, choice, n_samples)
    colours = matplotlib.color_sequences["petroff10"]
    pairs = sides(baseline, choice, n_samples, "error", seeds)
    drawn = [
        Side(name=name, colour=colour, pair=pair)
        for name, colour, pair in zip(NAMES, colours, pairs, strict=False)
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        FigureCanvasAgg(figure)
        text = textwrap.wrap(choice_caption(baseline, choice, n_samples), CAPTION_COLUMNS)
        foot = 0.55 + 0.165 * len(text)  # inches: x axis, then caption lines
        width, height = SIZE_INCH[0], foot + BARS_INCH + 0.62 + 3.0 + 0.3
        figure.set_size_inches(width, height)
        margins = {"left": MARGINS_INCH[0] / width, "right": 1 - MARGINS_INCH[1] / width}
        vertical = {"bottom": foot / height, "top": 1 - 0.3 / height}
        heights = {"height_ratios": (3.0, BARS_INCH), "hspace": 2 * 0.62 / (3.0 + BARS_INCH)}
        above, below = figure.subplots(2, 1, gridspec_kw=margins | vertical | heights)
        _draw_curves(above, drawn)
        _draw_terms(below, drawn)
        above.set_title(f"{title(choice)}, N = {n_samples:,}", loc="left")
        figure.text(0.015, 0.015, "\n".join(text), fontsize=SMALL_PT, color="0.3", va="bottom")
        return figure


def counted(baseline: Run, choice: Run, n_samples: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The seeds that the figure shows, and those that do not count: a world failed or stopped.

    All are shown if none counts, so that one sees how far they came.
    """
    seeds, _ = common(baseline, choice)
    terms = decompose(*sides(baseline, choice, n_samples, "error", seeds))
    known = tuple(s for s, total in zip(seeds, terms.total, strict=True) if np.isfinite(total))
    return known or seeds, tuple(seed for seed in seeds if seed not in known)


def choice_caption(baseline: Run, choice: Run, n_samples: int) -> str:
    """What a reader must know to judge the figure."""
    seeds, left_out = counted(baseline, choice, n_samples)
    n_seeds, recipe = len(seeds), choice.config.get("recipe") or {}
    batch = f" of batch {recipe['batch_size']}" if recipe.get("batch_size") else ""
    what = "; ".join(differences(baseline, choice)) or "nothing that is recorded"
    sentences = [
        f"Choice ({choice.name}) and baseline ({baseline.name}) differ in {what}.",
        about_data(choice.config),
        f"N = {n_samples:,}, {int(choice.steps[-1]):,} SGD steps{batch}.",
        "Speed: by learning faster from fresh samples; time: by converging later on re-used ones;"
        " residual: change of the gap. They add up to the change at convergence (total); below it,"
        " the change at the last step.",
    ]
    if left_out == seeds:
        sentences.append("No seed has all records of both runs, so nothing is compared.")
    elif n_seeds >= MIN_SEEDS:
        sentences.append(f"{n_seeds} seeds; bands and bars: Student-t 95 % intervals across seeds.")
    else:
        sentences.append(f"{n_seeds} seed{'s' if n_seeds > 1 else ''}, a dot each; no interval.")
    if left_out and left_out != seeds:
        who = ", ".join(map(str, left_out))
        sentences.append(f"Left out, a world has no record or failed: seed {who}.")
    if (n_choice := n_of_choice(baseline, choice, n_samples)) != n_samples:
        sentences.append(f"The choice has {n_choice:,} samples: it keeps another share.")
    sentences.append(about_test(choice.config, recipe))
    for name, pair in zip(NAMES, sides(baseline, choice, n_samples, "error", seeds), strict=True):
        found = stopping(pair)
        n_never = 0 if left_out == seeds else int(found.is_censored.sum())
        if n_never:
            who = f"{n_never} of {n_seeds} seeds of the" if n_never < n_seeds else "The"
            sentences.append(f"{who} {name} never converged: the last step stands for it.")
    ends = {
        name: approximate_from(run) for name, run in zip(NAMES, (baseline, choice), strict=True)
    }
    sentences += approximate_notes(ends)
    text = " ".join(sentence for sentence in sentences if sentence)
    return text.replace("N = ", "N\xa0=\xa0")


def _draw_curves(ax: Axes, sides: list[Side]) -> None:
    """Four curves, and on each pair where its real world has converged."""
    lines = [line for side in sides for line in side.lines]
    for line in lines:
        draw_seeds(ax, line.steps, line.errors, line.style, width=1.8)
    for side in sides:
        _draw_convergence(ax, side)
    set_steps_axis(ax, lines)
    set_percent_axis(ax, "test error")
    tops = [line.errors[np.isfinite(line.errors)].max(initial=0) for line in lines]
    ax.set_ylim(0, 1.06 * max(tops) or 1)
    grey: dict[str, Any] = {"color": "0.3", "linestyle": "none"}
    hollow: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": "0.3"}
    handles = [
        Line2D([], [], **CONVERGENCE_MARK | grey, label="convergence (train error ≤ 1 %)"),
        Line2D([], [], **IDEAL_MARK | grey | hollow, label="the ideal world at that step"),
    ]
    if any(stopping(side.pair).is_censored.all() for side in sides):
        handles.append(Line2D([], [], **CONVERGENCE_MARK | NEVER | grey, label="not converged"))
    ax.legend(handles=handles, loc=free_corner(lines, max(tops)))
    label_ends(ax, lines)


def _draw_convergence(ax: Axes, side: Side) -> None:
    """A mark on the real curve at the mean step of convergence, hollow on the ideal one."""
    found, steps = stopping(side.pair), side.pair.steps
    never = bool(found.is_censored.all())
    step = float(steps[-1] if never else found.steps[~found.is_censored].mean())
    for line in side.lines:
        mean = mean_of_all(line.errors).mean
        known = np.isfinite(mean) & (steps > 0)
        if known.any() and steps[known][0] <= step <= steps[known][-1]:
            y = np.interp(np.log(step), np.log(steps[known]), mean[known])
            mark = CONVERGENCE_MARK
            if line.n_samples is None:
                hollow = {"markerfacecolor": "white", "markeredgecolor": side.colour}
                mark = IDEAL_MARK | hollow
            mark = mark | (NEVER if never else {})
            ax.plot([step], [y], **mark, color=side.colour, clip_on=False)


def _draw_terms(ax: Axes, sides: list[Side]) -> None:
    """A bar for each term and for the change at the last step; a dot for each seed."""
    baseline, choice = (side.pair for side in sides)
    terms = decompose(baseline, choice)
    rows: dict[str, Float[np.ndarray, " n_seeds"]] = {
        field.name: getattr(terms, field.name) for field in fields(terms)
    }
    change = matched(baseline, choice)
    rows["last step"] = change.real[:, -1]
    for row, values in enumerate(rows.values()):
        told = spread(values)
        colour = "0.72" if row < 3 else sides[1].colour
        ax.barh(row, told.mean, height=0.62, color=colour, zorder=2)
        if np.isfinite(told.low):
            ax.hlines(row, told.low, told.high, color="0.15", linewidth=1.4, zorder=4)
        dots: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 3.5}
        ax.plot(values, np.full(len(values), row), **dots, color="0.15", alpha=0.6, zorder=3)
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=1)
    ax.axhline(2.5, color="0.8", linewidth=0.8, zorder=1)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.use_sticky_edges = False
    ax.margins(x=0.06)
    ax.xaxis.set_major_locator(MaxNLocator(7))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value).rstrip(" %")))
    ax.set_xlabel("change in the real world's test error (points), choice $-$ baseline")
