"""The options of the commands, as plain values. No torch until an execution is resolved."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional, Suppress, UseAppendAction

from bootstrap.errors import ConfigurationError
from bootstrap.keep import Keep, parse_rule
from bootstrap.presets import PRESETS, build_preset
from bootstrap.recipe import Recipe

if TYPE_CHECKING:
    from bootstrap.execution import Family, Flags

CHOICES = {"precision": ("auto", "fp32", "bf16"), "compile": ("auto", "on", "off")}


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"--{name} {value}: use one of {', '.join(allowed)}")


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0-4` or `0,3` or `7` -> seeds; ConfigurationError otherwise."""
    try:
        seeds: list[int] = []
        for part in text.split(","):
            first, dash, last = part.partition("-")
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
        if not seeds:
            raise ValueError
        return tuple(dict.fromkeys(seeds))
    except ValueError:
        raise ConfigurationError(f"--seeds {text!r}: write 0-4 or 0,3") from None


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How to run; what is left at auto is decided once and printed."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:<index> or mps"""
    precision: str = "auto"
    """auto, fp32 or bf16"""
    compile: str = "auto"
    """auto, on or off"""
    threads: int | None = None
    """CPU threads of a process; by default all cores (torchrun's processes share them), or one
    beside an accelerator"""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigurationError(f"--threads {self.threads}: give at least one")
        for name, allowed in CHOICES.items():
            _check_choice(name, getattr(self, name), allowed)

    def resolve(self, family: Family, n_images: int) -> Flags:
        """Decide and apply the flags of a run of this many images."""
        from bootstrap.execution import resolve_flags

        flags = resolve_flags(
            self.device,
            self.precision,  # type: ignore[arg-type]
            self.compile,  # type: ignore[arg-type]
            family=family,
            n_images=n_images,
            n_threads=self.threads,
        )
        flags.apply()
        return flags


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Make or extend a data set; running it again resumes, a finished one is left alone."""

    preset: str = "laptop"
    """which job's data: see `deep-bootstrap --help`"""
    data: Path | None = None
    """the data set's folder; by default <out>/<name of the preset's data, or of the source>"""
    out: Path = Path("data")
    """where data sets go"""
    n: int | None = None
    """stream images (rounded up to blocks of 1,024), instead of the preset's"""
    source: str | None = None
    """e.g. toy(side=8) or diffusion(weights='FILE', solver='dpm++', n_steps=8, guidance=2.0)"""
    pipeline: Path | None = None
    """a local diffusers pipeline without classes (safetensors), labelled by the teacher: short for
    --source "pipeline(folder='DIR')" --labels teacher"""
    n_pretrain: int = 0
    """images of the split `pretrain`, which no world sees: for `deep-bootstrap pretrain`"""
    labels: str | None = None
    """conditional, teacher or agree; by default the preset's, and conditional for --source"""
    teacher: Path | None = None
    """a teacher's weights, instead of the shipped one"""
    accept_new_bytes: bool = False
    """extend a data set although this hardware or version rounds differently"""
    ray: str | None = None
    """local (all devices of this machine) or the address of a Ray cluster whose nodes share
    the folder; a worker takes one GPU, or as many cores as it has threads (see --threads)"""
    workers: int | None = None
    """how many workers at once with --ray; by default all that the cluster holds"""
    allow_mixed_devices: bool = False
    """let device models differ between nodes, and from those that made what is there"""
    dry_run: bool = False
    """say what would be made, and how long it takes in one process, then stop"""
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Train both worlds on the same seeds and draw their test errors and the gap."""

    preset: str = "laptop"
    """where the defaults below come from"""
    data: Path | None = None
    """the data set's folder; by default data/<name of the preset's data>"""
    out: Path = Path("results")
    """runs go to <out>/<preset>-<hash>/"""
    seeds: str = "0"
    """e.g. 0-4 or 0,3"""
    n_samples: tuple[int, ...] = ()
    """N of each real world"""
    dry_run: bool = False
    """say what would be run, and what samples, operations, disk and time it takes, then stop"""
    allow_reuse: bool = False
    """go on if the stream is too short: the ideal world then re-uses samples too, and is marked as
    approximate from that step on"""
    overwrite: bool = False
    """delete the run first, if it exists"""
    init: Path | None = None
    """a checkpoint of `deep-bootstrap pretrain`: both worlds start from it, all seeds alike, with a
    head of zeros"""
    pick_lr: tuple[float, ...] = ()
    """try these learning rates first, in short real-world runs that are scored on the `reference`
    split, and train with the best: to compare inits, give each the same values"""
    pick_lr_steps: int | None = None
    """how many steps these runs take; by default a quarter of --n-steps"""
    save_test_results: bool = False
    """also save the probability of the true class and a correct bit per test image and evaluation
    (seed-<k>/<world>-test.npz)"""
    keep_checkpoints: str = ""
    """also keep weights on the way (seed-<k>/kept/): evenly(n=10), log(n=10), or
    "at_errors(levels=(0.5, 0.3, 0.2))", the first evaluation at or below each test error"""
    sink: str = ""
    """also send the records to tensorboard (files in the run's folder) or wandb, or to both: a,b"""
    max_minutes: float | None = None
    """save and stop (exit 75) after this long"""
    replicas: int | Literal["auto"] = 1
    """worlds that are trained at once, their weights stacked, for models too small to fill a GPU:
    first the ideal ones of so many seeds, then real ones; --pick-lr tries so many rates at once; as
    one by one but for rounding. auto: 4 where that was measured to be faster, else 1"""
    bn: str = "global"
    """batch norm of torchrun's processes is over the whole batch (global) or each share (local)"""
    execution: Execution = field(default_factory=Execution)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        _check_choice("bn", self.bn, ("global", "local"))

    @classmethod
    def of_preset(cls, name: str) -> CompareOptions:
        """What `compare --preset NAME` does where nothing else is said."""
        preset = build_preset(name)
        seeds = ",".join(map(str, preset.seeds))
        return cls(preset=name, seeds=seeds, n_samples=preset.n_samples, recipe=preset.recipe)

    @property
    def data_folder(self) -> Path:
        """Where the data set is."""
        return self.data or Path("data") / build_preset(self.preset).data.name

    @property
    def keep(self) -> Keep:
        """What is kept besides the records."""
        rule = parse_rule(self.keep_checkpoints)
        return Keep(test_results=self.save_test_results, checkpoints=rule)


@dataclass(frozen=True, kw_only=True)
class ManyPairs:
    """What commands that run several pairs have in common."""

    data: Path | None = None
    """the data set's folder; by default that of the preset"""
    dry_run: bool = False
    """say what is still to be run, and what samples, operations and time it takes, then stop"""
    max_minutes: float | None = None
    """save and stop (exit 75) after this long"""
    ray: str | None = None
    """local (all devices of this machine) or the address of a Ray cluster whose nodes share data
    and results; a pair takes a GPU, or as many cores as it has threads (see --threads)"""
    gpus_per_pair: float = 1.0
    """with --ray: 0.25 runs four pairs at once on each GPU"""
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True, kw_only=True)
class SweepRun(ManyPairs):
    """What `sweep` and `reproduce` have in common."""

    scale: str = "laptop"
    """of a figure: smoke (toy images, seconds), laptop (the reference preset's data) or paper"""
    out: Path = Path("results")
    """runs go to <out>/<preset>-<hash>/, as those of `compare`"""
    part: str = "1/1"
    """e.g. 3/16: only the third of sixteen parts, for job arrays; all may run at once"""


@dataclass(frozen=True, kw_only=True)
class SweepOptions(SweepRun):
    """Run a grid of pairs; running it again goes on, and pairs that are done are left alone."""

    grid: str
    """a JSON file (bootstrap/grid.py says what it holds), or the name of a figure"""


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(SweepRun):
    """Make a figure of the paper: data if there are none, its pairs, <out>/figures/<figure>.png."""

    figure: str
    """fig1, fig2a, ...: `deep-bootstrap --help` lists them"""


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Make weights for `compare --init` from data that no world of the comparison sees. Running it
    again resumes; a finished one is left alone."""

    preset: str = "laptop"
    """where model, optimiser and the other defaults below come from"""
    method: str = "rotation"
    """rotation, masked_patches(fraction=0.6) (vit), next_pixel (pixel_transformer), supervised, or
    timm(name='vit_tiny_patch16_224.augreg_in21k', file='FILE'): weights of timm, made to fit"""
    data: Path | None = None
    """the data set's folder; by default data/<name of the preset's data>"""
    split: str = "pretrain"
    """pretrain (`generate --n-pretrain N` makes it), or the stream of another data set"""
    classes: tuple[int, ...] = ()
    """only images of these classes, by number"""
    n_images: int | None = None
    """only the first so many images"""
    weights: Path = Path("build/pretrained.safetensors")
    """where the weights go; their card is beside them, as .json"""
    seed: int = 0
    """of the initial weights, the order of the images and the draws of the method"""
    max_minutes: float | None = None
    """save and stop (exit 75) after this long"""
    execution: Execution = field(default_factory=Execution)
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Score every sample of a stream by how hard models find it, for the choices that prune by it:
    --choices "el2n(scores='build/el2n.npz', keep=0.7)". The models are trained here, as the recipe
    says; the same command goes on after a stop, from the models that are scored."""

    preset: str = "laptop"
    """where model, optimiser and the other defaults below come from"""
    method: str = "el2n"
    """el2n, grand, grand_last_layer or forgetting_score"""
    meaning: str = "shared"
    """what the models learn from: shared (half of the split `reference`), oracle (the split
    `pretrain`, every sample once), own (the first --n-own samples of each seed)"""
    scores: Path = Path("build/scores.npz")
    """where the scores go"""
    data: Path | None = None
    """the data set's folder; by default data/<name of the preset's data>"""
    n_runs: int = 4
    """models, over which scores are averaged (for each seed): fewer rank worse; the paper has 10"""
    n_own: int = 0
    """N of the runs whose own samples are scored"""
    seeds: str = ""
    """of the runs whose own samples are scored, e.g. 0-2"""
    execution: Execution = field(default_factory=Execution)
    recipe: Recipe = field(default_factory=Recipe)
    """of the models; --choices are conditions of the data: long_tail, label_noise, spurious"""


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Draw the figure of every run under a folder again; needs neither torch nor data."""

    path: Positional[Path] = Path("results")
    """a run, or a folder of runs"""
    reuse: bool = False
    """draw reuse.png too: what K passes over N samples are worth in fresh ones"""
    scatter: bool = False
    """draw scatter.png too: real against ideal soft-error at convergence, a point per run and N"""
    tensorboard: Path | None = None
    """also make TensorBoard files of the runs' records, under this folder"""


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(ManyPairs):
    """Say why a design choice changes the real world's error: it learns faster from fresh samples
    (speed), or converges later on re-used ones (time). Saved runs, BASELINE and one CHOICE or more,
    need neither torch nor data; with --choice pairs are run first, or loaded where they are."""

    runs: Positional[tuple[Path, ...]] = ()
    """a run without and one with the choice: same data, seeds and number of steps; or with several
    choices, each called by its folder"""
    out: Path | None = None
    """folder of what is written; by default <choice>/explain/<baseline's name>, and of several
    choices, or with --choice, <results>/explain/<baseline's name>"""
    choice: UseAppendAction[tuple[str, ...]] = ()
    """may be repeated: "flooding(level=0.05)", several at once as "label_smoothing + mixup", or an
    option of compare: "augmentation=crop_flip", "optimizer.lr=0.1", "init=FILE"
    """
    baseline: str = "laptop"
    """with --choice: a preset, a saved run, or a JSON file of a recipe"""
    preset: Suppress[str] = "laptop"
    results: Path = Path("results")
    """where the pairs are"""
    seeds: str = "0"
    """e.g. 0-4 or 0,3; from 3 on there are intervals"""
    n_samples: tuple[int, ...] = ()
    """N of each real world: with several, what the choice changes as N grows"""
    allow_reuse: bool = False
    """go on if the stream is too short for the ideal world to stay fresh"""
    recipe: Recipe = field(default_factory=Recipe)
    """of the baseline; its --choices stand on both sides"""

    def check(self) -> None:
        """ConfigurationError unless it is either saved runs, two or more, or some choices."""
        if bool(self.runs) == bool(self.choice) or len(self.runs) == 1:
            raise ConfigurationError(
                "explain what? two saved runs, `explain BASELINE CHOICE`, or more choices, or"
                ' `explain --baseline laptop --choice "flooding(level=0.05)"`'
            )

    @classmethod
    def of_baseline(cls, baseline: str) -> ExplainOptions:
        """What these options are by default with a baseline; ConfigurationError if it is none."""
        path = Path(baseline)
        path = path / "pair.json" if path.is_dir() else path
        if not path.is_file():
            preset = CompareOptions.of_preset(baseline)
            same = {key: getattr(preset, key) for key in ("preset", "seeds", "n_samples", "recipe")}
            return cls(baseline=baseline, **same)
        try:
            value = json.loads(path.read_bytes())
            config = value if "recipe" in value else {"recipe": value}
            recipe = Recipe.from_json(config["recipe"])
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"--baseline {baseline}: no run or recipe: {error}") from None
        return cls(
            baseline=baseline,
            preset=config.get("preset", "custom"),
            seeds=",".join(map(str, config.get("seeds", (0,)))),
            n_samples=tuple(config.get("n_samples", ())),
            recipe=recipe,
        )

    @property
    def data_folder(self) -> Path:
        """Where the data set is."""
        if self.data is None and self.preset not in PRESETS:
            raise ConfigurationError("--data: say where the data set of this baseline is")
        return self.data or Path("data") / build_preset(self.preset).data.name


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write every run under a folder into one page for a browser; needs neither torch nor data."""

    path: Positional[Path] = Path("results")
    """a run, or a folder of runs"""
    out: Path | None = None
    """the page; by default report.html in that folder"""
    readme: bool = False
    """write README.md in that folder instead: a picture and a sentence for each result"""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Check every hash, shape, label, id and order of a data set, or the rows of a run."""

    path: Path
    """a data set or a run"""
    deep: bool = False
    """count near-duplicates too: images that another is but for the least bit, or mirrored (not
    the cropped or recoloured ones for which CIFAR-10's train and test are known)"""
    repair: bool = False
    """delete the shards that are broken and make them again, if the data set was generated"""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Report device, precision, compiler, threads, disk, memory, versions, data sets and runs."""

    data: Path = Path("data")
    """where data sets are"""
    out: Path = Path("results")
    """where runs are"""
