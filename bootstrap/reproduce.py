"""A figure of the paper: its runs, as a sweep, and the drawing of what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bootstrap.errors import BootstrapError, DataError, Interrupted, NotEnoughData
from bootstrap.grid import Words, build_options, figure_sweep, is_one_pair, part_of
from bootstrap.linear_toys_plot import write_toys
from bootstrap.options import ReproduceOptions, parse_seeds
from bootstrap.overlay import write_overlay
from bootstrap.presets import build_preset
from bootstrap.presets.figure import PRESET_OF, Figure
from bootstrap.presets.figures import build_figure
from bootstrap.runlog import load_run
from bootstrap.scatter import write_scatter
from bootstrap.series import Series
from bootstrap.shards import Manifest, read_manifest
from bootstrap.stages import expected_jobs, prepared, stage_lines
from bootstrap.sweep import (
    Job,
    build_jobs,
    default_words,
    n_pairs,
    on_its_data,
    run_points,
    table_lines,
)


def words_to_generate(options: ReproduceOptions) -> list[str] | None:
    """The options of `generate` for the data of a figure; None if they are there, or are given.

    NotEnoughData where they cannot be made here: with both ways to a pool of the paper's size, or
    with the command that imports real images.
    """
    figure = build_figure(options.figure, options.scale)
    if figure.toys:
        return None
    name = PRESET_OF[options.scale]
    spec = build_preset(name).data
    folder = options.data or figure.data or Path("data") / spec.name
    manifest = _manifest(folder)
    n_stream = manifest.n_stream if manifest else 0
    n_pretrain = manifest.n("pretrain") if manifest else 0
    if figure.data is not None:
        if not n_stream:
            raise NotEnoughData(
                f"{folder}: no images there, and real ones cannot be drawn; import them:"
                f" `{figure.how}` (FOLDER is yours; generators/README.md says what it holds)"
            )
        return None
    more = ["--n-pretrain", str(figure.n_pretrain)] if figure.n_pretrain else []
    is_short = n_stream < spec.n_stream or n_pretrain < figure.n_pretrain
    if options.scale == "paper" and is_short:
        too = "".join(f" {word}" for word in more)
        raise NotEnoughData(
            f"{folder}: the stream holds {n_stream:,} samples, {spec.n_stream:,} are needed; draw"
            f" them: `deep-bootstrap generate --preset paper --data {folder} --n {spec.n_stream}"
            f"{too}` (about 8 hours at 175 images/s, less on GPUs with --ray), or import CIFAR-5m:"
            " `deep-bootstrap import cifar5m-npz FOLDER data/cifar5m`, then this command with"
            " `--data data/cifar5m`"
        )
    is_there = n_stream and (options.dry_run or n_pretrain >= figure.n_pretrain)
    return None if is_there or options.data else ["--preset", name, *more]


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except DataError:
        return None


def reproduce(options: ReproduceOptions, is_stopped: Callable[[], bool]) -> Iterator[str]:
    """Run what is not done of a figure, and draw it; yields lines for people.

    What is raised is as in `run_points`; pairs that failed are missing in the figure.
    """
    figure = build_figure(options.figure, options.scale)
    options = on_its_data(options, figure)
    if options.dry_run:
        yield from dry_lines(figure, options)
        return
    stem = options.out / "figures" / f"{options.figure}-{options.scale}"
    if figure.toys:
        stem.parent.mkdir(parents=True, exist_ok=True)
        yield from map(str, write_toys(figure.toys, stem, figure.about))
        return
    figure = yield from prepared(figure, options, is_stopped)
    sweep = figure_sweep(figure)
    failure = None
    try:
        yield from run_points(options, sweep, is_stopped)
    except Interrupted:
        raise
    except BootstrapError as error:
        failure = error
    jobs = build_jobs(sweep, options)
    n_left = sum(not job.is_done() for job in jobs)
    if n_left and failure is None:
        yield f"other parts have {n_pairs(n_left)} to do; the last one draws the figure"
        return
    stem.parent.mkdir(parents=True, exist_ok=True)
    for path in draw(figure, figure_series(figure, jobs, default_words(options)), stem):
        yield str(path)
    if failure is not None:
        raise failure


def dry_lines(figure: Figure, options: ReproduceOptions) -> Iterator[str]:
    """What a figure takes here: its stages, then its pairs."""
    if figure.toys:
        yield "no pairs: computed in seconds"
        return
    yield from stage_lines(figure, options)
    yield from table_lines(part_of(expected_jobs(figure, options), options.part))


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
