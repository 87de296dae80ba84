"""The map: every design choice as an arrow from the baseline, faster online to the right, later
to converge offline upwards. No torch.

Of a baseline 0 and a choice c, in every seed: the level is the test error of the baseline's ideal
world where its real world converges, I_0(tau_0). The speed of a choice is the number of steps that
the baseline's ideal world takes to that level, over the number that the choice's takes: 2 is twice
as fast. Its convergence time is tau_c. All means of a point are over the same seeds, and its arrow
starts where the baseline is on these. A world that has not converged, or not reached the level, by
the last step T is censored: the last step stands for it, and the point is on the map's edge.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bootstrap.caption import about_data, about_test
from bootstrap.choice_table import ENDS, csv_bytes, shortened
from bootstrap.curves import MIN_SEEDS, approximate_from, number, spread
from bootstrap.decompose import PairCurves, decompose, matched, score_at, stopping
from bootstrap.explanation import approximate_notes, common, sides
from bootstrap.plot import CAPTION_COLUMNS, SMALL_PT, STYLE, spread_apart, write_files
from bootstrap.runlog import Run

WIDTH_INCH = 7.0
PANEL_INCH = 3.9  # the least height of the map of one N
LABELS_INCH = 2.35  # right of it
LINE_INCH = 0.165  # from one name to the next
BASELINE = "baseline"
BETTER_TO_WORSE = LinearSegmentedColormap.from_list("choices", ["#1a5fb4", "0.62", "#c01c28"])
COLUMNS = (
    *("choice", "n_samples", "n_seeds"),
    *(f"speed_ratio{end}" for end in ENDS),
    "n_speed_censored",
    *(f"convergence_step{end}" for end in ENDS),
    "n_censored",
    *(f"d_error_final{end}" for end in ENDS),
    *(f"d_error_at_convergence{end}" for end in ENDS),
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a choice stands for one N; arrays are of the seeds that count."""

    text: str
    n_samples: int
    last_step: int
    speed: Float[np.ndarray, " n_seeds"]
    speed_is_censored: Bool[np.ndarray, " n_seeds"]
    step: Float[np.ndarray, " n_seeds"]
    step_is_censored: Bool[np.ndarray, " n_seeds"]
    baseline_step: Float[np.ndarray, " n_seeds"]  # where the baseline converges, or ends
    baseline_is_censored: Bool[np.ndarray, " n_seeds"]
    final: Float[np.ndarray, " n_seeds"]  # change of the real world's test error at the last step
    at_convergence: Float[np.ndarray, " n_seeds"]

    @property
    def xy(self) -> tuple[float, float]:
        """Geometric means over seeds."""
        return mean_of_logs(self.speed)[0], mean_of_logs(self.step)[0]

    @property
    def origin_y(self) -> float:
        """Where the baseline converges on the seeds of this choice."""
        return mean_of_logs(self.baseline_step)[0]

    def row(self) -> list[Any]:
        """As it is in the table."""
        changes = []
        for values in (self.final, self.at_convergence):
            told = spread(values)
            changes += [number(told.mean), number(told.low), number(told.high)]
        return [
            *(self.text, self.n_samples, len(self.speed)),
            *map(number, mean_of_logs(self.speed)),
            int(self.speed_is_censored.sum()),
            *map(number, mean_of_logs(self.step)),
            int(self.step_is_censored.sum()),
            *changes,
        ]


def mean_of_logs(values: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    """The geometric mean of positive values, and the ends of its interval, to 12 digits."""
    told = spread(np.log(values))
    low, mean, high = (float(f"{np.exp(log):.12g}") for log in (told.low, told.mean, told.high))
    return mean, low, high


def first_step_at(
    steps: Int[np.ndarray, " n_steps"], errors: Float[np.ndarray, " n_steps"], level: float
) -> float | None:
    """Where the error is first at the level or below, on the line from the evaluation before."""
    known = np.isfinite(errors)
    x, y = steps[known].astype(np.float64), errors[known]
    reached = np.flatnonzero(y <= level)
    if not len(reached):
        return None
    at = int(reached[0])
    if at == 0:
        return float(x[0])
    share = (y[at - 1] - level) / (y[at - 1] - y[at])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))


def points_of(baseline: Run, runs: Mapping[str, Run], n_samples: int) -> list[Point]:
    """The baseline's point, then those of the choices that have this N."""
    found = []
    for text, run in {BASELINE: baseline, **runs}.items():
        seeds, with_n = common(baseline, run)
        if n_samples in with_n:
            found.append(
                point_of(text, n_samples, *sides(baseline, run, n_samples, "error", seeds))
            )
    return [point for point in found if len(point.speed)]


def point_of(text: str, n_samples: int, zero: PairCurves, pair: PairCurves) -> Point:
    """The point of a pair against the baseline's, of equal seeds in equal order."""
    last = int(pair.steps[-1])
    tau_0, tau = stopping(zero), stopping(pair)
    levels = score_at(zero.steps, zero.ideal, tau_0.steps)
    terms, final = decompose(zero, pair), matched(zero, pair).real[:, -1]
    at = [
        [
            first_step_at(p.steps, errors, level)
            for errors, level in zip(p.ideal, levels, strict=True)
        ]
        for p in (zero, pair)
    ]
    hits = [np.array([last if t is None else max(t, 1.0) for t in found], float) for found in at]
    is_known = np.isfinite(terms.total)
    return Point(
        text=text,
        n_samples=n_samples,
        last_step=last,
        speed=(hits[0] / hits[1])[is_known],
        speed_is_censored=np.array([t is None for t in at[1]], dtype=bool)[is_known],
        step=np.maximum(tau.steps, 1).astype(np.float64)[is_known],
        step_is_censored=tau.is_censored[is_known],
        baseline_step=np.maximum(tau_0.steps, 1).astype(np.float64)[is_known],
        baseline_is_censored=tau_0.is_censored[is_known],
        final=final[is_known],
        at_convergence=terms.total[is_known],
    )


# ---------------------------------------------------------------- files


def write_map(baseline: Run, runs: Mapping[str, Run], stem: Path) -> tuple[Path, ...]:
    """Write `<stem>.csv`, `.png` and `.svg` of all N, one below the other, and where there are
    several `<stem>-n<N>.png` and `.svg` of each; returns their paths.
    """
    maps = [points_of(baseline, runs, n) for n in baseline.n_samples]
    maps = [points for points in maps if len(points) > 1]
    figure = plot_map(maps, map_caption(baseline, runs, maps))
    rows = [point.row() for points in maps for point in points]
    paths = write_files(figure, stem, csv_bytes(COLUMNS, rows))
    for points in maps if len(maps) > 1 else ():
        figure = plot_map([points], map_caption(baseline, runs, [points]))
        paths += write_files(figure, stem.with_name(f"{stem.name}-n{points[0].n_samples}"))
    return paths


def map_caption(baseline: Run, runs: Mapping[str, Run], maps: Sequence[Sequence[Point]]) -> str:
    """What a reader must know to judge the figure."""
    every = [point for points in maps for point in points]
    if not every:
        return "No choice has a record."
    recipe = baseline.config.get("recipe") or {}
    shown = {point.text for point in every}
    named = {BASELINE: baseline, **runs}
    ends = {text: approximate_from(run) for text, run in named.items() if text in shown}
    counts = {len(point.speed) for point in every}
    n_seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    censored = [point for point in every if _edges(point) != (False, False)]
    model = f"{recipe['model']}, " if recipe.get("model") else ""
    sentences = [
        "Each arrow leads from the baseline to a choice."
        " Right: its ideal world is faster, by the steps to the test error at which the baseline's"
        " real world converges; up: its real world converges later (train error at most 1 %).",
        "Colour: change of the real world's test error at the last step (blue is better).",
        about_data(baseline.config),
        f"{model}{every[0].last_step:,} SGD steps; baseline: {baseline.name}.",
        "An arrow starts where the baseline is on the choice's own seeds."
        if len(counts) > 1
        else "",
        f"Geometric means of {n_seeds} seed{'s' * (max(counts) > 1)}"
        f"{'; intervals are in the table' if max(counts) >= MIN_SEEDS else '; no interval'}.",
        about_test(baseline.config, recipe),
        f"On the edge, with an arrow head ({len(censored)}): in at least one seed not reached"
        " by the last step, which stands for it."
        if censored
        else "",
        *approximate_notes(ends),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def plot_map(maps: Sequence[Sequence[Point]], caption: str) -> Figure:
    """A panel for each N, one above the other, with one scale of colours."""
    with matplotlib.rc_context(STYLE):
        text = textwrap.wrap(caption.replace("N = ", "N\xa0=\xa0"), CAPTION_COLUMNS)
        foot = 0.2 + 0.165 * len(text) + 0.62  # inches: caption, then the colours
        heights = [max(PANEL_INCH, LINE_INCH * (len(points) + 1)) for points in maps]
        height = foot + sum(heights) + 0.85 * len(maps)
        figure = Figure(figsize=(WIDTH_INCH, height))
        FigureCanvasAgg(figure)
        every = [point for points in maps for point in points]
        size = max((abs(float(spread(point.final).mean)) for point in every), default=0.0)
        size = size or 0.01
        colours = ScalarMappable(FuncNorm((root, square), -size, size), BETTER_TO_WORSE)
        left, width = 0.85 / WIDTH_INCH, (WIDTH_INCH - 0.85 - LABELS_INCH) / WIDTH_INCH
        top = height
        for points, panel in zip(maps, heights, strict=True):
            top -= panel + 0.3
            ax = figure.add_axes((left, top / height, width, panel / height))
            _draw(ax, points, size, panel)
            top -= 0.55
        if every:
            bar = figure.add_axes((left, (foot - 0.12) / height, width, 0.12 / height))
            ticks = [-size, -size / 4, 0, size / 4, size]
            figure.colorbar(colours, cax=bar, orientation="horizontal", ticks=ticks)
            bar.minorticks_off()
            bar.xaxis.set_major_formatter(FuncFormatter(lambda v, _: in_points(v)))
            bar.set_xlabel("change of test error (points)", labelpad=1)
        figure.text(0.015, 0.1 / height, "\n".join(text), fontsize=SMALL_PT, color="0.3")
        return figure


def in_points(change: float) -> str:
    """A change of error in points, to two digits, with a minus sign that is one."""
    return f"{100 * change:.2g}".replace("-", "\N{MINUS SIGN}")


def colour_of(change: float, size: float) -> tuple[float, ...]:
    """The colour of a change, of which the largest is `size`."""
    share = float(root(np.array(change / size)))
    return tuple(BETTER_TO_WORSE((1 + share) / 2))


def root(values: np.ndarray) -> np.ndarray:
    """Signed square roots: one large change leaves the small ones their colours."""
    return np.sign(values) * np.sqrt(np.abs(values))


def square(values: np.ndarray) -> np.ndarray:
    """The inverse of `root`."""
    return np.sign(values) * np.square(values)


def _edges(point: Point) -> tuple[bool, bool]:
    """Whether a point is on the left edge, and on the upper one."""
    return bool(point.speed_is_censored.any()), bool(point.step_is_censored.any())


def _limits(points: Sequence[Point]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ends of both axes: the upper one is the last step, the left one before all speeds."""
    xs, ys = zip(*(point.xy for point in points), strict=True)
    ys = (*ys, *(point.origin_y for point in points))
    room = max(max(xs) / min(xs), 1.2) ** 0.12
    low = min(ys) / max(points[0].last_step / min(ys), 1.5) ** 0.1
    return (min(xs) / room**1.5, max(xs) * room), (low, float(points[0].last_step))


def _draw(ax: Axes, points: Sequence[Point], size: float, panel_inch: float) -> None:
    x_ends, y_ends = _limits(points)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(*x_ends)
    ax.set_ylim(*y_ends)
    places = []
    for point in points:
        x, y = point.xy
        slow, late = _edges(point)
        places.append((x_ends[0] if slow else x, y_ends[1] if late else y))
    for point, place in zip(points, places, strict=True):
        is_baseline = point.text == BASELINE
        change = float(spread(point.final).mean)
        colour = "0.1" if is_baseline else colour_of(change, size)
        late_origin = bool(point.baseline_is_censored.any())
        origin = (1.0, y_ends[1] if late_origin else point.origin_y)
        if not is_baseline and place != origin:
            arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.3}
            ends = {"shrinkA": 4, "shrinkB": 2, "mutation_scale": 9}
            ax.annotate("", place, origin, arrowprops=arrow | ends, annotation_clip=False)
        slow, late = _edges(point)
        mark = "^" if late else "<" if slow else "o"
        ax.plot(
            *([place[0]], [place[1]]),
            marker=mark,
            markersize=7 if mark != "o" or is_baseline else 4.5,
            color=colour,
            clip_on=False,
            zorder=5,
            linestyle="none",
        )
    _label(ax, points, places, panel_inch)
    _label_axes(ax)
    ax.set_title(f"N = {points[0].n_samples:,}", loc="left", fontsize=SMALL_PT)


def _label_axes(ax: Axes) -> None:
    for axis, form in ((ax.xaxis, "{:g}x"), (ax.yaxis, "{:,.0f}")):
        low, high = axis.get_view_interval()
        inside = np.zeros(0)
        for leading in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            if len(inside) < 3:
                ticks = np.array([k * 10.0**e for e in range(-4, 8) for k in leading])
                inside = ticks[(ticks >= low) & (ticks <= high)]
        if len(inside) < 2:
            inside = np.geomspace(low, high, 6)[1:-1].round(2 if high < 10 else 0)
        axis.set_ticks(inside, [form.format(tick) for tick in inside])
        axis.set_ticks([], minor=True)
    ax.set_xlabel("speed of the ideal world, baseline = 1")
    ax.set_ylabel("convergence of the real world (SGD steps)")
    ax.grid(color="0.93", linewidth=0.8)
    ax.set_axisbelow(True)


def _label(
    ax: Axes, points: Sequence[Point], places: Sequence[tuple[float, float]], panel_inch: float
) -> None:
    """The names in a column at the right, in the order of height, none over another."""
    to_axes = ax.transData + ax.transAxes.inverted()
    shares = np.asarray(to_axes.transform(np.array(places)))
    order = np.lexsort((shares[:, 0], shares[:, 1]))  # of equal heights the right one goes on top
    gap = LINE_INCH / panel_inch
    heights = np.empty(len(points))
    heights[order] = np.sort(spread_apart(shares[order, 1] + 1e-9 * np.arange(len(order)), gap))
    for point, place, height in zip(points, places, heights, strict=True):
        ax.annotate(
            shortened(point.text),
            xy=place,
            xytext=(1.05, height),
            textcoords="axes fraction",
            fontsize=SMALL_PT - 1,
            va="center",
            color="0.15",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5}
            | {"shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)},
            annotation_clip=False,
        )
