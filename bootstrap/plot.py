"""The figure of a pair: test error of both worlds above, their gap below. No torch, no pyplot.

Conventions: real solid, ideal dashed, one colour per N, steps on a log axis from 1 (step 0 is off
it), percent. The gap is signed, real minus ideal. Whatever a run lacks is left out and said in the
caption: an unfinished, empty or NaN-holding run still makes a figure.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image
from scipy.optimize import isotonic_regression

from bootstrap.caption import caption
from bootstrap.curves import (
    MIN_SEEDS,
    Spread,
    approximate_from,
    convergence_steps,
    error_by_seed,
    first_reuse_step,
    gap_where_both,
    seeds_with_values,
    spread,
)
from bootstrap.files import replace
from bootstrap.runlog import IDEAL, Run, real_name
from bootstrap.table import curves_csv

SIZE_INCH = (7.0, 5.5)
PAGE_SIZE_INCH = (6.0, 4.7)  # on a page, which sets the caption itself; narrower, for phones
MARGINS_INCH = (0.805, 1.47)  # left: axis labels; right: the names of the lines
DPI = 200
FONT_PT = 10.0
SMALL_PT = 9.0
IDEAL_COLOUR = "0.2"
CAPTION_COLUMNS = 104  # characters that fit under a figure of SIZE_INCH in SMALL_PT
SOFT_LABEL = "soft-error gap (the paper's bootstrap error)"
N_BINS = 120  # of the per-step points, equal in log step
REUSE_MARK: dict[str, Any] = {"marker": "|", "markersize": 15, "markeredgewidth": 1.6, "zorder": 5}
CONVERGENCE_MARK: dict[str, Any] = {
    **{"marker": "o", "markersize": 8, "markeredgewidth": 1.2, "markeredgecolor": "white"},
    "zorder": 6,
}
STYLE: Any = {
    "font.size": FONT_PT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": FONT_PT,
    "axes.titlelocation": "left",
    "legend.fontsize": SMALL_PT,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.borderaxespad": 0.3,
    "svg.hashsalt": "deep-bootstrap",  # equal runs give equal bytes
}


def plot_pair(run: Run, ax: Axes | None = None) -> Axes:
    """Test error of the ideal world and every real one on `ax`; returns the Axes.

    Without `ax` the whole figure is made, gap panel and caption included, and its upper Axes
    returned: `plot_pair(run).figure` is the figure.
    """
    if ax is None:
        return build_figure(run).axes[0]
    lines = world_lines(run)
    _draw_errors(ax, run, lines)
    label_ends(ax, lines)
    return ax


def write_figure(run: Run) -> tuple[Path, ...]:
    """Write curves.csv, curves.png and curves.svg into the run's folder; returns their paths."""
    return write_files(build_figure(run), run.path / "curves", curves_csv(run))


@dataclass(frozen=True, kw_only=True)
class Line:
    """One world as it is drawn; `n_samples` is None for the ideal one."""

    n_samples: int | None
    colour: Any  # whatever matplotlib takes for one
    steps: Int[np.ndarray, " n_steps"]
    errors: Float[np.ndarray, "n_seeds n_steps"]
    label: str  # what stands at the line's end

    @property
    def style(self) -> dict[str, Any]:
        """How matplotlib draws it; the ideal world on top, since the real ones start under it."""
        ideal = self.n_samples is None
        dashes: Any = (0, (4, 2)) if ideal else "-"
        return {"color": self.colour, "linestyle": dashes, "zorder": 4 if ideal else 3}


def world_lines(run: Run) -> list[Line]:
    """The lines of a run's figure, the ideal world's first."""
    colours = matplotlib.color_sequences["petroff10"]
    worlds: list[tuple[int | None, Any]] = [(None, IDEAL_COLOUR)]
    worlds += [(n, colours[i % len(colours)]) for i, n in enumerate(run.n_samples)]
    ideal = "ideal world" if approximate_from(run) is None else "ideal, approximate"
    return [
        Line(
            n_samples=n,
            colour=colour,
            steps=_steps(run, n),
            errors=error_by_seed(run, n),
            label=ideal if n is None else f"real, N = {n:,}",
        )
        for n, colour in worlds
    ]


def _steps(run: Run, n_samples: int | None) -> Int[np.ndarray, " n_steps"]:
    return run.steps if n_samples is None else run.real[n_samples].steps


def build_figure(run: Run, *, has_caption: bool = True) -> Figure:
    """The whole figure; without its caption it has PAGE_SIZE_INCH."""
    width, height = SIZE_INCH if has_caption else PAGE_SIZE_INCH
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        about = caption(run).replace("N = ", "N\xa0=\xa0") if has_caption else ""
        text = textwrap.wrap(about, CAPTION_COLUMNS)
        bottom = (0.58 + 0.165 * len(text)) / height  # inches: x axis, then caption lines
        left, right = MARGINS_INCH[0] / width, 1 - MARGINS_INCH[1] / width
        above, below = figure.subplots(
            *(2, 1),
            sharex=True,
            gridspec_kw={"height_ratios": (2.1, 1), "hspace": 0.09}
            | {"left": left, "right": right, "top": 0.94, "bottom": bottom},
        )
        lines = world_lines(run)
        _draw_errors(above, run, lines)
        _draw_gaps(below, run, lines)
        for ax in (above, below):
            _draw_end_of_stream(ax, run)
        label_ends(above, lines)
        above.set_xlabel("")
        above.set_title(title(run), loc="left")
        figure.align_ylabels()
        figure.text(0.015, 0.015, "\n".join(text), fontsize=SMALL_PT, color="0.3", va="bottom")
        return figure


def _draw_end_of_stream(ax: Axes, run: Run) -> None:
    """Shade where the ideal world is approximate."""
    if (step := approximate_from(run)) is not None:
        ax.axvspan(max(step, 1), ax.get_xlim()[1], color="0.93", zorder=0)


def title(run: Run) -> str:
    """Model and data, or the run's name."""
    model, data = (run.config.get("recipe") or {}).get("model"), run.config.get("data") or {}
    text = f"{model} on {data['name']}" if model and data.get("name") else run.name
    return textwrap.shorten(text, 80, placeholder=" ...") or text[:80]


def _draw_errors(ax: Axes, run: Run, lines: list[Line]) -> None:
    """Curves, per-step points, and marks of one panel."""
    for line in lines:
        _draw_every_step(ax, run, line)
        draw_seeds(ax, line.steps, line.errors, line.style, width=1.8)
    for n, line in zip(run.n_samples, lines[1:], strict=True):
        _draw_marks(ax, run, n, line.colour, line.steps, line.errors)
    set_steps_axis(ax, lines)
    set_percent_axis(ax, "test error")
    tops = [line.errors[np.isfinite(line.errors)].max(initial=0) for line in lines]
    ax.set_ylim(0, 1.06 * max(tops) or 1)
    ax.legend(handles=_legend_of_marks(), loc=free_corner(lines, max(tops)))
    if not any(line.errors.size for line in lines):
        ax.text(0.5, 0.5, "no records yet", transform=ax.transAxes, ha="center", color="0.4")


def free_corner(lines: list[Line], top: float) -> Literal["lower left", "upper right"]:
    """Below the curves on the left, unless one of them is down there already."""
    last = max((line.steps.max(initial=1) for line in lines), default=1)
    early = [line.errors[:, line.steps <= last**0.55] for line in lines]
    lowest = min((np.nanmin(e) for e in early if np.isfinite(e).any()), default=top)
    return "lower left" if lowest >= 0.25 * top else "upper right"


def _draw_gaps(ax: Axes, run: Run, lines: list[Line]) -> None:
    """Error gap, and the soft-error gap as a thin second line."""
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=1)
    for n, line in zip(run.n_samples, lines[1:], strict=True):
        style = line.style
        hard, soft = (
            seeds_with_values(gap_where_both(run, metric, n)) for metric in ("error", "soft_error")
        )
        draw_seeds(ax, run.steps, soft, style | {"zorder": 2}, width=0.8, with_spread=False)
        draw_seeds(ax, run.steps, hard, style, width=1.8)
        _draw_marks(ax, run, n, line.colour, run.steps, hard)
    if run.refused:
        note: dict[str, Any] = {"ha": "right", "color": "0.4", "fontsize": SMALL_PT}
        ax.text(0.99, 0.04, "a gap is left out: see below", transform=ax.transAxes, **note)
    set_steps_axis(ax, lines)
    set_percent_axis(ax, "gap, real $-$ ideal")
    _leave_room_for_legend(ax)
    handles = [
        Line2D([], [], color="0.3", linewidth=1.8, label="error gap"),
        Line2D([], [], color="0.3", linewidth=0.8, label=SOFT_LABEL),
    ]
    ax.legend(handles=handles, loc="upper left")


def _leave_room_for_legend(ax: Axes) -> None:
    """Raise the top until what is drawn in the left two thirds stays below the legend."""
    ax.margins(y=0.12)
    low, high = ax.get_ylim()
    edge = ax.get_xlim()[1] ** 0.68
    points = np.concatenate([line.get_xydata() for line in ax.lines])
    known = np.isfinite(points).all(axis=1) & (points[:, 0] <= edge)
    early = points[known, 1].max(initial=0)
    ax.set_ylim(low, max(high, low + (early - low) / 0.6))


def draw_seeds(
    ax: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    style: dict[str, Any],
    *,
    width: float,
    with_spread: bool = True,
) -> None:
    """The mean with its band from MIN_SEEDS seeds on; below that every seed thin and the mean."""
    mean = mean_of_all(values)
    known = np.isfinite(mean.mean) & (steps > 0)
    if 1 < len(values) < MIN_SEEDS and with_spread:
        for seed in values:
            ax.plot(steps, seed, **style | {"linestyle": "-"}, linewidth=0.6, alpha=0.6)
    elif len(values) >= MIN_SEEDS and with_spread:
        band = {"color": style["color"], "alpha": 0.2, "linewidth": 0, "zorder": 2}
        ax.fill_between(steps[known], mean.low[known], mean.high[known], **band)
    (drawn,) = ax.plot(steps[known], mean.mean[known], **style, linewidth=width)
    if known.sum() == 1:  # a line of one point is invisible
        drawn.set(marker=".", markersize=5 * width)


def mean_of_all(values: np.ndarray) -> Spread:
    """The mean where every seed has a value: over fewer it would jump where one stops."""
    everywhere = np.isfinite(values).all(axis=0)
    return spread(np.where(everywhere, values, np.nan))


def _draw_every_step(ax: Axes, run: Run, line: Line) -> None:
    """Per-step test error (64 images a step), averaged in bins; pixels in SVG, to keep it small."""
    stem = IDEAL if line.n_samples is None else real_name(line.n_samples)
    rows = [row for seed in run.seeds for row in run.rows(seed, f"{stem}-every-step")]
    points = np.array([(r["step"], r.get("error")) for r in rows], dtype=np.float64).reshape(-1, 2)
    points = points[(points[:, 0] > 0) & np.isfinite(points[:, 1])]
    if not len(points):
        return
    x, y = _binned(*points.T)
    dots: dict[str, Any] = {
        "linestyle": "none",
        "marker": "o",
        "markersize": 2.4,
        "markeredgewidth": 0,
    }
    ax.plot(x, y, **dots, color=line.colour, alpha=0.35, zorder=1, rasterized=True)


def _binned(steps: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means in N_BINS bins of equal width in log step; empty ones are left out."""
    where = np.floor(np.log(steps) / np.log(steps.max() + 1) * N_BINS).astype(np.int64)
    n = np.bincount(where, minlength=N_BINS)
    with np.errstate(invalid="ignore"):
        log_x = np.bincount(where, np.log(steps), N_BINS) / n
        y = np.bincount(where, errors, N_BINS) / n
    return np.exp(log_x[n > 0]), y[n > 0]


def _draw_marks(
    ax: Axes, run: Run, n_samples: int, colour: Any, steps: np.ndarray, values: np.ndarray
) -> None:
    """First reuse as a tick across the curve; convergence, mean over seeds, as a circle on it."""
    mean = mean_of_all(values).mean
    known = np.isfinite(mean) & (steps > 0)
    converged = convergence_steps(run, n_samples)
    marks = (
        (first_reuse_step(run, n_samples), REUSE_MARK),
        (float(np.mean(converged)) if converged else None, CONVERGENCE_MARK),
    )
    for step, mark in marks:
        if step and known.any() and steps[known][0] <= step <= steps[known][-1]:
            y = np.interp(np.log(step), np.log(steps[known]), mean[known])
            face = {"markeredgecolor": colour} if mark is REUSE_MARK else {}
            ax.plot([step], [y], **mark | face, color=colour)


def _legend_of_marks() -> list[Line2D]:
    grey = {"color": "0.3", "linestyle": "none"}
    reuse = REUSE_MARK | grey | {"markersize": 10}
    return [
        Line2D([], [], **reuse, label="first reuse of a sample"),
        Line2D([], [], **CONVERGENCE_MARK | grey, label="convergence (train error ≤ 1 %)"),
    ]


def set_steps_axis(ax: Axes, lines: list[Line]) -> None:
    """SGD steps from 1 to the last of any line, on a log axis."""
    last = max((int(line.steps[-1]) for line in lines if len(line.steps)), default=0)
    ax.set_xscale("log")
    ax.set_xlim(1, max(last, 10))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("SGD steps")


def set_percent_axis(ax: Axes, label: str) -> None:
    """Fractions as percent on the vertical axis, with a light grid."""
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    ax.set_ylabel(label)
    ax.grid(axis="y", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)


def percent(value: float) -> str:
    """A fraction as text, with a minus sign that is one."""
    return f"{100 * value:.3g} %".replace("-", "\N{MINUS SIGN}")


def label_ends(ax: Axes, lines: list[Line]) -> None:
    """Name every line at its right end, nudged apart so that no two names overlap."""
    ends = []
    for line in (*lines[:1], *reversed(lines[1:])):  # of equal ends the larger N goes lower
        mean = mean_of_all(line.errors).mean
        known = np.flatnonzero(np.isfinite(mean) & (line.steps > 0))
        if len(known):
            ends.append((line, line.steps[known[-1]], mean[known[-1]]))
    low, high = ax.get_ylim()
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure), "the Axes belongs to no figure"
    height_pt = ax.get_position().height * figure.get_size_inches()[1] * 72
    wanted = np.array([(y - low) / (high - low) for _, _, y in ends])
    longest = max((len(line.label) for line, _, _ in ends), default=0)
    places = spread_apart(wanted, gap=1.35 * FONT_PT / height_pt)
    for (line, step, y), place in zip(ends, places, strict=True):
        ax.annotate(
            line.label,
            xy=(step, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            color=_darkened(line.colour),
            fontsize=FONT_PT if longest <= 18 else SMALL_PT,  # what the right margin holds
            va="center",
            arrowprops={"arrowstyle": "-", "color": line.colour, "linewidth": 0.6}
            | {"linestyle": "-" if step == ax.get_xlim()[1] else ":"}  # no part of a short curve
            | {"shrinkA": 1, "shrinkB": 1, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def _darkened(colour: Any) -> tuple[float, ...]:
    """The colour for text: the palette's light ones are hard to read on white."""
    return tuple(0.78 * channel for channel in to_rgb(colour))


def spread_apart(wanted: Float[np.ndarray, " n"], gap: float) -> Float[np.ndarray, " n"]:
    """Places in [0, 1] nearest (least squares) to `wanted`, in its order, at least `gap` apart.

    If they do not all fit, they are spaced evenly.
    """
    n = len(wanted)
    if n == 0:
        return np.zeros(0)
    gap = min(gap, 1 / max(n - 1, 1))
    order = np.argsort(wanted, kind="stable")
    offsets = gap * np.arange(n)
    fitted = isotonic_regression(np.asarray(wanted)[order] - offsets).x
    places = np.empty(n)
    places[order] = np.clip(fitted, 0, 1 - offsets[-1]) + offsets
    return places


def write_files(figure: Figure, stem: Path, csv: bytes | None = None) -> tuple[Path, ...]:
    """Write `<stem>.csv` if there is one, `<stem>.png` and `<stem>.svg`; returns their paths."""
    contents = {} if csv is None else {".csv": csv}
    contents[".png"] = render(figure, "png")
    contents[".svg"] = render(figure, "svg")
    paths = {stem.with_name(stem.name + ending): content for ending, content in contents.items()}
    for path, content in paths.items():
        replace(path, content)
    return tuple(paths)


def render(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """The figure as the bytes of a file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            buffer, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None
        )
    return with_palette(buffer) if kind == "png" else buffer.getvalue()


def with_palette(png: io.BytesIO) -> bytes:
    """The picture in 256 colours, a third of the bytes: antialiased lines need no more."""
    smaller = io.BytesIO()
    with Image.open(png) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(smaller, "png", optimize=True, dpi=(DPI, DPI))
    return smaller.getvalue()
