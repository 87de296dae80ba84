"""The options of the commands, as plain values. No torch until an execution is resolved."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from bootstrap.errors import ConfigurationError
from bootstrap.keep import Keep, parse_rule
from bootstrap.presets import build_preset
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
    replicas: int = 1
    """worlds that are trained at once, their weights stacked, for models too small to fill a GPU:
    first the ideal ones of so many seeds, then real ones; as one by one but for rounding"""
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
class SweepRun:
    """What `sweep` and `reproduce` have in common."""

    scale: str = "laptop"
    """of a figure: smoke (toy images, seconds), laptop (the reference preset's data) or paper"""
    data: Path | None = None
    """the data set's folder, for points that do not say; by default that of their preset"""
    out: Path = Path("results")
    """runs go to <out>/<preset>-<hash>/, as those of `compare`"""
    dry_run: bool = False
    """say what is still to be run, and what samples, operations and time it takes, then stop"""
    part: str = "1/1"
    """e.g. 3/16: only the third of sixteen parts, for job arrays; all may run at once"""
    max_minutes: float | None = None
    """save and stop (exit 75) after this long"""
    ray: str | None = None
    """local (all devices of this machine) or the address of a Ray cluster whose nodes share data
    and results; a pair takes a GPU, or as many cores as it has threads (see --threads)"""
    gpus_per_pair: float = 1.0
    """with --ray: 0.25 runs four pairs at once on each GPU"""
    execution: Execution = field(default_factory=Execution)


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
class ExplainOptions:
    """Say why a design choice changes the real world's error: it learns faster from fresh samples
    (speed), or converges later on re-used ones (time). Needs neither torch nor data."""

    baseline: Positional[Path]
    """the run without the choice"""
    choice: Positional[Path]
    """the run with it: same data, N, seeds and number of steps"""
    out: Path | None = None
    """folder of explain.json, explain.csv and the figures; by default
    <choice>/explain/<baseline's name>"""


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
