"""A figure of the paper: its runs, as a sweep, and the drawing of what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bootstrap.errors import BootstrapError, DataError, Interrupted, NotEnoughData
from bootstrap.grid import Words, build_options, figure_sweep, is_one_pair
from bootstrap.options import ReproduceOptions, parse_seeds
from bootstrap.overlay import write_overlay
from bootstrap.presets import build_preset
from bootstrap.presets.figure import PRESET_OF, Figure
from bootstrap.presets.figures import build_figure
from bootstrap.runlog import load_run
from bootstrap.scatter import write_scatter
from bootstrap.series import Series
from bootstrap.shards import read_manifest
from bootstrap.sweep import Job, build_jobs, default_words, n_pairs, run_points


def preset_to_generate(options: ReproduceOptions) -> str | None:
    """The preset whose data the figure needs and that can be made here; None if they are there.

    NotEnoughData where it needs a pool of the paper's size, with both ways to one.
    """
    build_figure(options.figure, options.scale)
    name = PRESET_OF[options.scale]
    spec = build_preset(name).data
    folder = options.data or Path("data") / spec.name
    try:
        n_stream = read_manifest(folder).n_stream
    except DataError:
        n_stream = 0
    if options.scale == "paper" and n_stream < spec.n_stream:
        raise NotEnoughData(
            f"{folder}: the stream holds {n_stream:,} samples, {spec.n_stream:,} are needed; draw"
            f" them: `deep-bootstrap generate --preset paper --data {folder} --n {spec.n_stream}`"
            " (about 8 hours at 175 images/s, less on GPUs with --ray), or import CIFAR-5m:"
            " `deep-bootstrap import cifar5m-npz FOLDER data/cifar5m`, then this command with"
            " `--data data/cifar5m`"
        )
    return None if n_stream or options.data else name


def reproduce(options: ReproduceOptions, is_stopped: Callable[[], bool]) -> Iterator[str]:
    """Run what is not done of a figure, and draw it; yields lines for people.

    What is raised is as in `run_points`; pairs that failed are missing in the figure.
    """
    figure = build_figure(options.figure, options.scale)
    sweep = figure_sweep(figure)
    failure = None
    try:
        yield from run_points(options, sweep, is_stopped)
    except Interrupted:
        raise
    except BootstrapError as error:
        failure = error
    if options.dry_run:
        return
    jobs = build_jobs(sweep, options)
    n_left = sum(not job.is_done() for job in jobs)
    if n_left and failure is None:
        yield f"other parts have {n_pairs(n_left)} to do; the last one draws the figure"
        return
    stem = options.out / "figures" / f"{options.figure}-{options.scale}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    for path in draw(figure, figure_series(figure, jobs, default_words(options)), stem):
        yield str(path)
    if failure is not None:
        raise failure


def figure_series(figure: Figure, jobs: Sequence[Job], defaults: Words) -> list[Series]:
    """What each point of a figure is on disk, as far as there is anything."""
    series = []
    for point in figure.points:
        asked = build_options({**defaults, **point.words})
        job = next(job for job in jobs if is_one_pair(job.options, asked))
        if (job.plan.folder / "pair.json").exists():
            run, seeds = load_run(job.plan.folder), parse_seeds(asked.seeds)
            series += [Series(point.label, run, n, seeds) for n in asked.n_samples]
    return series


def draw(figure: Figure, series: Sequence[Series], stem: Path) -> tuple[Path, ...]:
    """Write the figure and its numbers; returns their paths."""
    if figure.kind == "scatter":
        return write_scatter(series, stem, figure.about)
    return write_overlay(series, stem, figure.metrics, figure.about)
