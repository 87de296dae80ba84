"""Which solver with how many evaluations? `make bench-solvers`: KID and images/s of each.

All rows draw the same ids from the same weights, so that their differences are the solver's. KID is
on the teacher's features against real test images; `rms` is the distance of the images, in [-1, 1],
to those of the first row: 50 steps of DDIM, which on this flow is Euler; `agree` is the share of
images whose class the teacher sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro

from bootstrap.environment import hardware
from bootstrap.execution import Flags
from bootstrap.options import Execution
from bootstrap.shards import SPLIT_START
from bootstrap.spec import parse_spec
from generators.denoiser import Denoiser
from generators.label import class_of_ids, read_teacher
from generators.metrics import compare_features, in_batches
from generators.quality import read_first
from generators.sample import SAMPLE_BATCH, DiffusionSource, DiffusionSpec

WEIGHTS = Path(__file__).resolve().parents[2] / "generators" / "weights"
SUBSET_N = 500
REFERENCE_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    weights: Path
    """a denoiser that was not distilled"""
    real: Path
    """a data set of real images, made by `deep-bootstrap import`"""
    teacher: Path = WEIGHTS / "teacher-v1.safetensors"
    n: int = 2_000
    """images of each row"""
    guidance: float = 2.0
    nfe: tuple[int, ...] = (8, 16)
    """function evaluations of an image, guidance included"""
    solvers: tuple[str, ...] = ("euler", "heun", "dpm++", "unipc")
    more: tuple[str, ...] = (
        "diffusion()",
        "diffusion(weights='{weights}', solver='dpm++', n_steps=8)",
        "diffusion(weights='{weights}', solver='dpm++', n_steps=8, guidance=1.5)",
        "diffusion(weights='{weights}', solver='dpm++', n_steps=8, guidance=3.0)",
    )
    """further rows, as `generate --source` takes them: here the shipped one, and other guidance"""
    execution: Execution = field(default_factory=Execution)


def sources(options: Options, flags: Flags) -> Iterator[DiffusionSource]:
    """The reference, every solver with about so many evaluations, then the further rows."""
    per_step = 1 if options.guidance == 1 else 2
    asked = [("euler", REFERENCE_STEPS)]
    for nfe in options.nfe:
        n_steps = nfe // per_step
        asked += [(s, (n_steps + 1) // 2 if s == "heun" else n_steps) for s in options.solvers]
    for solver, n_steps in asked:
        spec = DiffusionSpec(
            weights=str(options.weights), solver=solver, n_steps=n_steps, guidance=options.guidance
        )
        yield spec.build(WEIGHTS, flags)
    for text in options.more:
        spec = parse_spec(
            text.replace("{weights}", str(options.weights)), {"diffusion": DiffusionSpec}, "source"
        )
        yield spec.build(WEIGHTS, flags)


def draw(source: DiffusionSource, n: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The first `n` test images, their classes, and images drawn a second, compilation aside."""
    ids = SPLIT_START["test"] + np.arange(n)
    labels, zeros = class_of_ids(ids, len(source.class_names)), np.zeros(n, dtype=np.int64)
    first = slice(0, SAMPLE_BATCH)
    source.sample(ids[first], labels[first], zeros[first])
    started = time.perf_counter()
    images = source.sample(ids, labels, zeros)
    return images, labels, n / (time.perf_counter() - started)


def main() -> None:
    """Print a row of the table as soon as it is known."""
    options = tyro.cli(Options, prog="make bench-solvers", config=(tyro.conf.OmitArgPrefixes,))
    flags: Flags = options.execution.resolve("denoiser", options.n)
    classifier = options.execution.resolve("classifier", options.n)
    teacher = read_teacher(options.teacher, classifier)
    real = in_batches(teacher.features, read_first(options.real, "test").images)
    print(f"{hardware(flags.device)}, torch {torch.__version__}, {flags.describe()}")
    print(f"{options.weights.name}, {options.n:,} images a row, KID of subsets of {SUBSET_N:,}")
    print(f"{'weights':12} {'solver':8} {'steps':>5} {'guidance':>8} {'NFE':>4}", end="")
    print(f" {'KID':>8} {'95 %':>18} {'recall':>6} {'cover':>6}", end="")
    print(f" {'agree':>6} {'rms':>6} {'images/s':>8}")
    networks: dict[Path, Denoiser] = {}
    exact: np.ndarray | None = None
    for source in sources(options, flags):
        config = source.config
        # compiled once for all rows
        vars(source)["denoiser"] = networks.setdefault(source.path, source.denoiser)
        images, labels, rate = draw(source, options.n)
        exact = images if exact is None else exact
        rms = float(np.sqrt(np.mean((images / 127.5 - exact / 127.5) ** 2)))
        seen = in_batches(teacher.logits, images).argmax(dim=1).numpy()
        agreement = float(np.mean(seen == labels))
        found = compare_features(real, in_batches(teacher.features, images), SUBSET_N)
        kid = found["kid"]
        interval = f"{kid.low:.4f} to {kid.high:.4f}" if kid.low and kid.high else ""
        how = f"{config.solver:8} {config.n_steps:5} {config.guidance:8g} {config.nfe:4}"
        print(
            f"{source.name:12} {how} {kid.mean:8.4f} {interval:>18} {found['recall'].mean:6.3f}"
            f" {found['coverage'].mean:6.3f} {agreement:6.3f} {rms:6.3f} {rate:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
