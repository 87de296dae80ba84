"""The command line: parses arguments, calls plain functions, prints.

Progress goes to stderr, results to stdout.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from bootstrap.errors import BootstrapError, ConfigurationError
from bootstrap.files import disk_errors
from bootstrap.options import (
    CompareOptions,
    DoctorOptions,
    ExplainOptions,
    GenerateOptions,
    PlotOptions,
    PretrainOptions,
    ReportOptions,
    ReproduceOptions,
    ScoreOptions,
    SweepOptions,
    VerifyOptions,
    parse_seeds,
)
from bootstrap.presets import PRESETS, build_preset
from bootstrap.presets.figures import FIGURES
from bootstrap.progress import bar_settings
from bootstrap.recipe import TABLES
from bootstrap.signals import StopRequest, closed_pipes, deadline_of
from bootstrap.sinks import (
    TENSORBOARD,
    check_installed,
    parse_sinks,
    write_tensorboard,
)
from bootstrap.spec import format_spec, parse_spec

if TYPE_CHECKING:
    from bootstrap.problems import Report

log = logging.getLogger("deep-bootstrap")
WEIGHTS = Path(__file__).resolve().parent.parent / "generators" / "weights"
TEACHER = "teacher-v1.safetensors"


# ---------------------------------------------------------------- commands


def generate(argv: list[str]) -> None:
    """generate: images and labels into data/<name>/"""
    options = _parse(GenerateOptions, argv, "generate")
    from generators.commands.generate import run_generate

    for line in run_generate(options, WEIGHTS, _say):
        print(line)


def compare(argv: list[str]) -> None:
    """compare: train the real and the ideal world, write records, summary and figure"""
    name = _early_option(argv, "--preset", "laptop")
    options = _parse(CompareOptions, argv, "compare", CompareOptions.of_preset(name))
    parse_seeds(options.seeds), parse_sinks(options.sink)  # refuse before ranks meet
    flags = options.execution.resolve("classifier", options.recipe.n_draws)
    from bootstrap.comparison import run_compare
    from bootstrap.follow import follow
    from bootstrap.ranks import joined
    from bootstrap.replicas import resolve_replicas

    with joined(flags, options.bn) as (ranks, flags):
        if ranks.is_first:
            replicas = resolve_replicas(
                options.replicas, options.recipe, options.data_folder, flags
            )
            for line in run_compare(options, flags.stacked(replicas), ranks, _say):
                print(line)
            return
        with StopRequest() as stop:
            follow(
                *(options.recipe, options.data_folder),
                flags=flags,
                ranks=ranks,
                is_interrupted=stop.is_requested,
            )


def sweep(argv: list[str]) -> None:
    """sweep: a grid of pairs from a file, here, in parts, or on a cluster"""
    options = _parse(SweepOptions, argv, "sweep", markers=(tyro.conf.PositionalRequiredArgs,))
    from bootstrap.sweep import run_sweep

    with StopRequest(_say) as stop:
        for line in run_sweep(options, stop.is_requested):
            print(line, flush=True)


def reproduce(argv: list[str]) -> None:
    """reproduce: a figure of the paper: data if missing, its pairs, the figure"""
    options = _parse(
        ReproduceOptions, argv, "reproduce", markers=(tyro.conf.PositionalRequiredArgs,)
    )
    from bootstrap.reproduce import reproduce as run_figure
    from bootstrap.reproduce import words_to_generate

    if (words := words_to_generate(options)) is not None:
        generate([*words, *(["--dry-run"] if options.dry_run else [])])
        if options.dry_run:
            _say("the pairs can be counted once these are there")
            return
    with StopRequest(_say) as stop:
        for line in run_figure(options, stop.is_requested):
            print(line, flush=True)


def pretrain(argv: list[str]) -> None:
    """pretrain: weights that `compare --init` starts both worlds from"""
    name = _early_option(argv, "--preset", "laptop")
    preset = build_preset(name)
    options = _parse(
        PretrainOptions, argv, "pretrain", PretrainOptions(preset=name, recipe=preset.recipe)
    )
    data = options.data or Path("data") / preset.data.name
    recipe = options.recipe
    flags = options.execution.resolve("classifier", recipe.n_draws)
    from tqdm import tqdm

    from bootstrap.pretexts import METHODS
    from bootstrap.pretraining import Corpus, Job, Watch, convert, pretrain
    from bootstrap.timm_weights import TimmWeights

    method = parse_spec(options.method, METHODS, "method", may_import=False)
    if isinstance(method, TimmWeights):
        print(convert(recipe, method, data, options.weights))
        return
    corpus = Corpus(
        data=data, split=options.split, classes=options.classes, n_samples=options.n_images
    )
    job = Job(recipe=recipe, method=method, corpus=corpus, seed=options.seed, flags=flags)
    deadline = deadline_of(options.max_minutes)
    _say(f"{format_spec(recipe.model, TABLES['model'])}, {options.method}, {flags.describe()}")
    with (
        StopRequest(_say) as stop,
        tqdm(total=recipe.n_steps, unit="steps", **bar_settings()) as bar,
    ):

        def on_step(step: Any) -> None:
            bar.set_postfix_str(f"loss {step.loss:.3f}", refresh=False)
            bar.update(step.step + 1 - bar.n)

        watch = Watch(
            on_step=on_step,
            is_interrupted=lambda: stop.is_requested() or time.monotonic() > deadline,
        )
        pretrain(job, options.weights, watch)
    print(options.weights)


def score(argv: list[str]) -> None:
    """score: how hard each sample is, for choices that prune by it"""
    name = _early_option(argv, "--preset", "laptop")
    preset = build_preset(name)
    default = ScoreOptions(preset=name, recipe=preset.recipe)
    options = _parse(ScoreOptions, argv, "score", default)
    flags = options.execution.resolve("classifier", options.recipe.n_draws)
    from bootstrap.scoring import ScoringJob, score_lines, score_stream

    job = ScoringJob(
        recipe=options.recipe,
        data=options.data or Path("data") / preset.data.name,
        method=options.method,
        meaning=options.meaning,
        n_runs=options.n_runs,
        n_own=options.n_own,
        seeds=parse_seeds(options.seeds) if options.seeds else (),
        flags=flags,
    )
    for line in score_lines(score_stream(job, options.scores, _say), options.scores):
        print(line)


def plot(argv: list[str]) -> None:
    """plot: draw the figure of saved runs again"""
    options = _parse(PlotOptions, argv, "plot")
    from bootstrap.files import pretty_json, replace
    from bootstrap.plot import write_figure
    from bootstrap.reuse_plot import write_reuse_figure
    from bootstrap.runlog import load_runs
    from bootstrap.summary import summarise

    if options.tensorboard is not None:
        check_installed(TENSORBOARD, "--tensorboard")
    runs = load_runs(options.path)
    if not runs:
        raise ConfigurationError(f"{options.path}: no runs there; `make compare` makes one")
    for run in runs:
        replace(run.path / "summary.json", pretty_json(summarise(run)))
        for path in (*write_figure(run), *(write_reuse_figure(run) if options.reuse else ())):
            print(path)
    if options.scatter:
        from bootstrap.scatter import write_scatter
        from bootstrap.series import series_of

        for path in write_scatter(series_of(runs), options.path / "scatter"):
            print(path)
    if options.tensorboard is not None:
        for folder in write_tensorboard(runs, options.path, options.tensorboard):
            print(folder)


def explain_(argv: list[str]) -> None:
    """explain: why design choices help: speed, time, residual; of saved runs, or with --choice"""
    default = ExplainOptions.of_baseline(_early_option(argv, "--baseline", "laptop"))
    options = _parse(ExplainOptions, argv, "explain", default)
    options.check()
    if options.choice:
        from bootstrap.choice_study import run_study

        with StopRequest(_say) as stop:
            for line in run_study(options, stop.is_requested):
                print(line, flush=True)
        return
    from bootstrap.study_results import explain_saved

    for line in explain_saved(options.runs, options.results, options.out):
        print(line)


def report(argv: list[str]) -> None:
    """report: one page of all saved runs: table, figures, two runs side by side"""
    options = _parse(ReportOptions, argv, "report")
    from bootstrap.index import write_index
    from bootstrap.report import write_report

    print(write_index(options.path) if options.readme else write_report(options.path, options.out))


def verify(argv: list[str]) -> None:
    """verify: check a data set or a run against its records"""
    options = _parse(VerifyOptions, argv, "verify", markers=(tyro.conf.PositionalRequiredArgs,))
    from bootstrap.verify import verify_data
    from bootstrap.verify_run import verify_run

    if (options.path / "pair.json").exists():
        report = verify_run(options.path)
    elif options.repair and options.path.is_dir():
        report = _repair(options.path, options.deep)
    else:
        report = verify_data(options.path, deep=options.deep)
    print(report.describe())
    report.raise_if_bad()


def _repair(folder: Path, deep: bool) -> Report:
    """Delete the broken shards of a data set, make them again, and check it again."""
    from bootstrap.locks import locked
    from bootstrap.verify import verify_data

    with locked(folder):
        report = verify_data(folder, deep=deep, repair=True)
        if not report.problems:
            return report
        _say(report.describe())
        from generators.repair import remake_lost_shards

        for name in remake_lost_shards(folder, WEIGHTS, WEIGHTS / TEACHER):
            _say(f"{name}: made again")
        return verify_data(folder, deep=deep)


def import_(argv: list[str]) -> None:
    """import: real images (npz, image-folder, torchvision, cifar5m-npz) into data/<name>/"""
    from generators import importers

    kinds: dict[str, Callable[..., Any]] = {
        "cifar5m-npz": importers.import_cifar5m,
        "npz": importers.import_npz,
        "image-folder": importers.import_image_folder,
        "torchvision": importers.import_torchvision,
    }
    if not argv or argv[0] not in kinds:
        if argv and argv[0] in ("-h", "--help"):
            print("usage: deep-bootstrap import {" + ",".join(kinds) + "} --help")
            return
        raise ConfigurationError(
            f"import what? one of {', '.join(kinds)}, then --help for its options"
        )
    prog, config = f"deep-bootstrap import {argv[0]}", (tyro.conf.PositionalRequiredArgs,)
    manifest = tyro.cli(kinds[argv[0]], args=argv[1:], prog=prog, config=config)
    for split in ("stream", "reference", "test"):
        print(f"{manifest.name}: {split} {manifest.n(split):,}")


def train_generator(argv: list[str]) -> None:
    """train-generator: fit the denoiser to real images"""
    from generators.commands.train_generator import TrainGeneratorOptions, run_train_generator
    from generators.denoiser import SIZES
    from generators.train import DenoiserRecipe

    size = _early_option(argv, "--size", "small")
    if size not in SIZES:
        raise ConfigurationError(f"--size {size}: use one of {', '.join(SIZES)}")
    default = TrainGeneratorOptions(
        images=tyro.MISSING, size=size, recipe=DenoiserRecipe(config=SIZES[size])
    )
    options = _parse(TrainGeneratorOptions, argv, "train-generator", default)
    flags = options.execution.resolve("denoiser", options.recipe.n_images_seen)
    with StopRequest(_say) as stop:
        for line in run_train_generator(options, flags, stop.is_requested):
            print(line, flush=True)


def train_teacher(argv: list[str]) -> None:
    """train-teacher: fit the labelling classifier, as an ordinary real-world run"""
    from generators.commands.train_teacher import TrainTeacherOptions, run_train_teacher

    options = _parse(TrainTeacherOptions, argv, "train-teacher")
    with StopRequest(_say) as stop:
        for line in run_train_teacher(
            options, options.execution.resolve("classifier", 1 << 20), stop.is_requested
        ):
            print(line, flush=True)


def quality(argv: list[str]) -> None:
    """quality: what a data set is worth on real test images"""
    from generators.commands.quality import QualityOptions, run_quality

    options = _parse(QualityOptions, argv, "quality")
    flags = options.execution.resolve("classifier", 1 << 20)
    with StopRequest(_say) as stop:
        for line in run_quality(options, flags, stop.is_requested):
            print(line, flush=True)


def doctor(argv: list[str]) -> None:
    """doctor: what this machine has, and what `auto` will choose"""
    options = _parse(DoctorOptions, argv, "doctor")
    from bootstrap.doctor import examine

    for line in examine(options.data, options.out, WEIGHTS):
        print(line)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "generate": generate,
    "compare": compare,
    "sweep": sweep,
    "reproduce": reproduce,
    "explain": explain_,
    "pretrain": pretrain,
    "score": score,
    "plot": plot,
    "report": report,
    "verify": verify,
    "import": import_,
    "train-generator": train_generator,
    "train-teacher": train_teacher,
    "quality": quality,
    "doctor": doctor,
}


def main() -> None:
    """Run a command; the exit code says what happened.

    0 done, 2 usage, 3 data, 4 too little data, 5 NaN, 75 run again to resume; 130 and 141, as a
    shell has them, for Ctrl-C and for a reader that has left, as `| head` does.
    """
    argv = sys.argv[1:]
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    quieten_compiler()
    try:
        with disk_errors(), closed_pipes():
            _run(argv)
    except BootstrapError as error:
        if debug:
            raise
        print(f"deep-bootstrap: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        what, code = explain(error)
        print(f"deep-bootstrap: {what} (--debug shows where)", file=sys.stderr)
        raise SystemExit(code) from None


# ---------------------------------------------------------------- pieces


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        _print_help()
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    else:
        raise ConfigurationError(f"unknown command {argv[0]!r}; there are: {', '.join(COMMANDS)}")


def explain(error: Exception) -> tuple[str, int]:
    """One line about an error that nobody expected, and its exit code."""
    if isinstance(error, (ValueError, ImportError, FileNotFoundError, NotADirectoryError)):
        return str(error), 2
    return f"{type(error).__name__}: {error}; a bug?", 1


def _parse(
    cls: type, argv: list[str], command: str, default: Any = None, *, markers: tuple[Any, ...] = ()
) -> Any:
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_spec_rule)
    keywords = {} if default is None else {"default": default}
    return tyro.cli(
        cls,
        args=argv,
        prog=f"deep-bootstrap {command}",
        registry=registry,
        config=(tyro.conf.OmitArgPrefixes, *markers),
        **keywords,
    )


def _spec_rule(info: Any) -> Any:
    """Let tyro read models, optimisers, schedules and augmentations as `name(key=value)`."""
    from bootstrap.augment import Augmentation
    from bootstrap.interventions import INTERVENTIONS, Choice
    from bootstrap.models import Model
    from bootstrap.optimizers import Optimizer, Schedule

    tables = {**TABLES, "choice": INTERVENTIONS}
    kinds = {
        Model: "model",
        Optimizer: "optimizer",
        Schedule: "schedule",
        Augmentation: "augmentation",
        Choice: "choice",
    }
    if info.type not in kinds:
        return None
    name = kinds[info.type]
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(tables[name]) + "}(...)",
        instance_from_str=lambda words: parse_spec(words[0], tables[name], name),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [format_spec(value, tables[name])],
    )


def quieten_compiler() -> None:
    """Hide two remarks of torch.compile that a user can do nothing about."""
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def _early_option(argv: list[str], flag: str, default: str) -> str:
    """The value of an option on which other defaults depend."""
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return default


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_help() -> None:
    print(
        "usage: deep-bootstrap COMMAND [options];"
        " COMMAND --help lists its options; --debug shows tracebacks\n"
    )
    for command in COMMANDS.values():
        name, _, about = (command.__doc__ or "").partition(": ")
        print(f"  {name:16} {about}")
    print("\npresets:")
    for name, preset in PRESETS.items():
        print(f"  {name:16} {preset().about}")
    print(f"\nfigures: {', '.join(FIGURES)}")
