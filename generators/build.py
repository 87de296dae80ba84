"""From text to what `generate` needs: a source, where labels come from, and what it will cost."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path

import numpy as np

from bootstrap.errors import ConfigurationError
from bootstrap.execution import Flags
from bootstrap.spec import parse_spec
from generators.label import read_teacher
from generators.pipeline import PipelineSpec
from generators.sample import DiffusionSpec
from generators.toy import ToySource
from generators.write import REDRAW_N, Labelling, Source, label_and_sample

SOURCES: dict[str, type] = {
    "toy": ToySource,
    "diffusion": DiffusionSpec,
    "pipeline": PipelineSpec,
}


def build_source(text: str, shipped: Path, flags: Flags) -> Source:
    """The source that `text` names; `shipped` is the folder of the package's own weights."""
    spec = parse_spec(text, SOURCES, "source")
    if isinstance(spec, DiffusionSpec):
        return spec.build(shipped, flags)
    return spec.build(flags) if isinstance(spec, PipelineSpec) else spec


def build_labelling(mode: str, teacher: Path, flags: Flags) -> Labelling:
    """Where labels come from; the teacher is read only if the mode asks it."""
    if mode not in ("conditional", "teacher", "agree"):
        raise ConfigurationError(f"--labels {mode}: use conditional, teacher or agree")
    asks = mode != "conditional"
    return Labelling(mode=mode, teacher=read_teacher(teacher, flags) if asks else None)  # type: ignore[arg-type]


def refuse_other_images(labelling: Labelling, source: Source) -> None:
    """ConfigurationError if a teacher would be asked of images unlike those it was trained on."""
    teacher = labelling.teacher
    if teacher is not None and teacher.image_shape != tuple(source.image_shape):
        sides = ("x".join(map(str, shape)) for shape in (teacher.image_shape, source.image_shape))
        raise ConfigurationError(
            "{} knows images of {}, not of {}; make one for them with `deep-bootstrap"
            " train-teacher` and give it as --teacher".format(teacher.path, *sides)
        )


def images_per_s(source: Source, labelling: Labelling) -> float:
    """How fast images are made here: the best of three batches, the first of which compiles."""
    rate = 0.0
    for _ in range(3):
        started = time.perf_counter()
        label_and_sample(source, np.arange(REDRAW_N), labelling, lambda n: None)
        rate = max(rate, REDRAW_N / (time.perf_counter() - started))
    return rate


def n_bytes_of(n: int, image_shape: tuple[int, ...]) -> int:
    """What `n` images take on disk, with their labels, ids, other columns and records."""
    return int(1.05 * n * (prod(image_shape) + 64))
