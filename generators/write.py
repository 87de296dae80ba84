"""Ids -> sample -> label -> shards: makes or extends a data set.

What was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from bootstrap.dataset import collect_manifest
from bootstrap.errors import ConfigurationError, DataError, Interrupted, NumericError
from bootstrap.files import disk_errors, remove_leftovers
from bootstrap.locks import locked
from bootstrap.shards import (
    SPLIT_START,
    Columns,
    Manifest,
    ShardRecord,
    publish_shard,
    read_manifest,
    read_records,
)
from generators.label import MAX_ATTEMPTS, LabelMode, Teacher, class_of_ids
from generators.missing import Shard, missing_shards, tolerated_keys

REDRAW_N = 128  # redraws of mode `agree` run in batches of this size


class Source(Protocol):
    """Where images come from: a function of (id, label, attempt)."""

    @property
    def name(self) -> str:
        """The data set's name."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channel."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class."""
        ...

    @property
    def has_classes(self) -> bool:
        """Whether it draws the class it is asked for; if not, labels must come from a teacher."""
        ...

    @property
    def seed(self) -> int:
        """The seed of classes and noise."""
        ...

    def provenance(self) -> dict[str, Any]:
        """What decides every byte."""
        ...

    def sample(
        self,
        ids: Int[np.ndarray, " n"],
        labels: Int[np.ndarray, " n"],
        attempts: Int[np.ndarray, " n"],
    ) -> UInt8[np.ndarray, "n height width channel"]:
        """One image for each (id, label, attempt)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Where labels come from: the class that was asked for, a teacher, or both where they agree."""

    mode: LabelMode = "conditional"
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        if self.mode != "conditional" and self.teacher is None:
            raise ConfigurationError(
                f"labels={self.mode!r} need a teacher; give --teacher or use conditional"
            )

    def provenance(self) -> dict[str, Any]:
        """What decides the labels."""
        teacher = self.teacher.sha256 if self.teacher and self.mode != "conditional" else None
        return {"mode": self.mode, "teacher_sha256": teacher}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the shards of a data set have in common; it travels to whoever makes them."""

    source: Source
    labelling: Labelling
    folder: Path
    allow_mixed_devices: bool = False

    def provenance(self) -> dict[str, Any]:
        """What decides every byte of a shard that this process makes."""
        return {**self.source.provenance(), "labels": self.labelling.provenance()}


# makes the shards until asked to stop; returns how many were made
MakeAll = Callable[[Job, list[Shard], Callable[[int], None], Callable[[], bool]], int]


def make_shard(
    job: Job, shard: Shard, provenance: dict[str, Any], on_images: Callable[[int], None]
) -> ShardRecord:
    """Sample, label and publish one shard; made twice it is there once, as it was."""
    split, index, ids = shard
    columns = label_and_sample(job.source, ids, job.labelling, on_images)
    refuse_constant(columns)
    n_classes = len(job.source.class_names)
    return publish_shard(job.folder, split, index, columns, n_classes, provenance)


def make_in_turn(
    job: Job,
    shards: list[Shard],
    on_images: Callable[[int], None],
    is_interrupted: Callable[[], bool],
) -> int:
    """Make one shard after the other in this process; returns how many were made."""
    provenance = job.provenance()
    for n_made, shard in enumerate(shards, start=1):
        make_shard(job, shard, provenance, on_images)
        if is_interrupted():
            return n_made
    return len(shards)


@disk_errors()
def generate(
    source: Source,
    folder: Path,
    sizes: Mapping[str, int],
    labelling: Labelling = Labelling(),
    *,
    accept_new_bytes: bool = False,
    allow_mixed_devices: bool = False,
    make_all: MakeAll = make_in_turn,
    on_images: Callable[[int], None] = lambda n: None,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Bring every split in `sizes` to at least its size; returns the manifest.

    The stream grows to whole blocks; a data set that is large enough is left alone.
    `make_all` is who makes the shards: this process, or generators.cluster.RayWorkers.
    ConfigurationError if the folder was made in another way, naming the keys that differ;
    Interrupted at a shard's end when asked to stop; StorageError if the disk is full or fails.
    """
    if labelling.mode != "teacher" and not source.has_classes:
        raise ConfigurationError(
            f"{source.name} draws no classes, so labels={labelling.mode!r} mean nothing;"
            " use --labels teacher"
        )
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(
        source=source, labelling=labelling, folder=folder, allow_mixed_devices=allow_mixed_devices
    )
    provenance = job.provenance()
    tolerated = tolerated_keys(accept_new_bytes, allow_mixed_devices)
    with locked(folder):
        remove_leftovers(folder)
        shards = missing_shards(folder, sizes, provenance, tolerated)
        n_made = make_all(job, shards, on_images, is_interrupted) if shards else 0
        remove_leftovers(folder)  # of workers that died
        if n_made < len(shards):
            raise Interrupted(
                f"{folder}: stopped after {n_made} of {len(shards)} shards;"
                " run the same command to go on"
            )
        is_new = n_made > 0 or not (folder / "manifest.json").exists()
        manifest = collect_manifest(
            folder,
            name=source.name,
            image_shape=source.image_shape,
            class_names=source.class_names,
            label_source=labelling.mode,
            generator=with_every_device(folder, provenance)
            if is_new
            else read_manifest(folder).generator,
        )
    refuse_short(folder, manifest, sizes)
    return manifest


def refuse_short(folder: Path, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """DataError if a split is not of its size: a network file system may show new files late."""
    short = [split for split, n in sizes.items() if manifest.n(split) < n]
    if short:
        raise DataError(
            f"{folder}: not all shards of {', '.join(short)} are to be seen here;"
            " run the same command again"
        )


def with_every_device(folder: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance, naming the models of all devices that shards were made on."""
    records = [record for split in SPLIT_START for record in read_records(folder, split)]
    models = {r.provenance["hardware"] for r in records if "hardware" in r.provenance}
    return {**provenance, "hardware": " + ".join(sorted(models))} if models else provenance


def label_and_sample(
    source: Source,
    ids: Int[np.ndarray, " n"],
    labelling: Labelling,
    on_images: Callable[[int], None],
) -> Columns:
    """Images and labels of one shard; every value depends on its own id only."""
    classes = class_of_ids(ids, len(source.class_names), source.seed)
    images = np.empty((len(ids), *source.image_shape), dtype=np.uint8)
    first = np.zeros(len(ids), dtype=np.int64)
    for start in range(0, len(ids), REDRAW_N):
        rows = slice(start, start + REDRAW_N)
        images[rows] = source.sample(ids[rows], classes[rows], first[rows])
        on_images(len(ids[rows]))
    if labelling.mode == "conditional" or labelling.teacher is None:
        return Columns(images=images, labels=classes, ids=ids)
    if labelling.mode == "teacher":
        labels, confidence = ask_teacher(labelling.teacher, images)
        return Columns(images=images, labels=labels, ids=ids, extra={"confidence": confidence})
    return redraw_until_agreed(
        source, labelling.teacher, Columns(images=images, labels=classes, ids=ids)
    )


def ask_teacher(
    teacher: Teacher, images: UInt8[np.ndarray, "n h w c"]
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's label of each image and its confidence in it, in batches of one fixed shape."""
    probabilities = []
    for start in range(0, len(images), REDRAW_N):
        piece = images[start : start + REDRAW_N]
        padded = np.concatenate([piece, np.repeat(piece[:1], REDRAW_N - len(piece), axis=0)])
        probabilities.append(teacher.probabilities(padded)[: len(piece)])
    p = np.concatenate(probabilities)
    return p.argmax(axis=1).astype(np.int64), p.max(axis=1).astype(np.float32)


def redraw_until_agreed(source: Source, teacher: Teacher, columns: Columns) -> Columns:
    """Redraw images whose teacher label is not their class.

    An id that never agrees keeps attempt 0.
    """
    images = columns.images.copy()
    teacher_labels, confidence = ask_teacher(teacher, images)
    attempt = np.zeros(len(columns), dtype=np.int64)
    pending = np.flatnonzero(teacher_labels != columns.labels)
    for number in range(1, MAX_ATTEMPTS):
        if len(pending) == 0:
            break
        drawn = source.sample(
            columns.ids[pending], columns.labels[pending], np.full(len(pending), number)
        )
        labels, p = ask_teacher(teacher, drawn)
        agreed = labels == columns.labels[pending]
        rows = pending[agreed]
        images[rows], teacher_labels[rows], confidence[rows] = (
            drawn[agreed],
            labels[agreed],
            p[agreed],
        )
        attempt[rows] = number
        pending = pending[~agreed]
    extra = {
        "confidence": confidence,
        "teacher_label": teacher_labels,
        "attempt": attempt,
        "agreed": teacher_labels == columns.labels,
    }
    return Columns(images=images, labels=columns.labels, ids=columns.ids, extra=extra)


def refuse_constant(columns: Columns) -> None:
    """NumericError if an image is a single colour: what a diverged sampler returns."""
    flat, n_channels = columns.images.reshape(len(columns), -1), columns.images.shape[-1]
    constant = (flat[:, n_channels:] == flat[:, :-n_channels]).all(axis=1)  # each pixel the next
    if constant.any():
        raise NumericError(
            f"ids {columns.ids[constant][:5].tolist()}: images of a single colour;"
            " nothing was written"
        )
