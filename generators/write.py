"""Ids -> sample -> label -> shards: makes or extends a data set.

What was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from bootstrap.dataset import collect_manifest
from bootstrap.errors import ConfigurationError, Interrupted, NumericError
from bootstrap.files import remove_leftovers
from bootstrap.locks import locked
from bootstrap.shards import (
    SHARD_N,
    SPLIT_START,
    Columns,
    Manifest,
    ShardRecord,
    publish_shard,
    read_manifest,
    read_records,
)
from bootstrap.worlds import BLOCK
from generators.label import MAX_ATTEMPTS, LabelMode, Teacher, class_of_ids

# provenance that --accept-new-bytes lets another machine change
HARDWARE_KEYS = ("execution", "hardware", "torch")
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


def generate(
    source: Source,
    folder: Path,
    sizes: Mapping[str, int],
    labelling: Labelling = Labelling(),
    *,
    accept_new_bytes: bool = False,
    on_images: Callable[[int], None] = lambda n: None,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Bring every split in `sizes` to at least its size; returns the manifest.

    The stream grows to whole blocks; a data set that is large enough is left alone.
    ConfigurationError if the folder was made in another way, naming the keys that differ;
    Interrupted at a shard's end when asked to stop.
    """
    if labelling.mode != "teacher" and not source.has_classes:
        raise ConfigurationError(
            f"{source.name} draws no classes, so labels={labelling.mode!r} mean nothing;"
            " use --labels teacher"
        )
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {**source.provenance(), "labels": labelling.provenance()}
    with locked(folder):
        remove_leftovers(folder)
        n_made = 0
        for split, index, ids in missing_shards(folder, sizes, provenance, accept_new_bytes):
            columns = label_and_sample(source, ids, labelling, on_images)
            refuse_constant(columns)
            publish_shard(folder, split, index, columns, len(source.class_names), provenance)
            n_made += 1
            if is_interrupted():
                raise Interrupted(
                    f"{folder}: stopped after {split}-{index:05d}.h5; run the same command to go on"
                )
        is_new = n_made > 0 or not (folder / "manifest.json").exists()
        return collect_manifest(
            folder,
            name=source.name,
            image_shape=source.image_shape,
            class_names=source.class_names,
            label_source=labelling.mode,
            generator=provenance if is_new else read_manifest(folder).generator,
        )


def missing_shards(
    folder: Path, sizes: Mapping[str, int], provenance: dict[str, Any], accept_new_bytes: bool
) -> Iterator[tuple[str, int, Int[np.ndarray, " n"]]]:
    """(split, shard index, ids) of every shard that has to be made, in order; lost ones too.

    Where nothing has to be made it does not matter what hardware made what is there.
    """
    shards = list(_missing(folder, sizes))
    for record in (record for split in sizes for record in read_records(folder, split)):
        refuse_other_provenance(folder, record, provenance, accept_new_bytes or not shards)
    yield from shards


def _missing(
    folder: Path, sizes: Mapping[str, int]
) -> Iterator[tuple[str, int, Int[np.ndarray, " n"]]]:
    for split, n in sizes.items():
        wanted = -(-n // BLOCK) * BLOCK if split == "stream" else n
        first_id, index, row = SPLIT_START[split], 0, 0
        for record in read_records(folder, split):
            for lost, rows in enumerate(_cut(row, record.first_id - first_id), start=index):
                yield split, lost, first_id + rows
            if not is_whole(folder, record):
                yield split, record.index, np.arange(record.first_id, record.stop_id)
            index, row = record.index + 1, record.stop_id - first_id
        for new, rows in enumerate(_cut(row, wanted), start=index):
            yield split, new, first_id + rows


def _cut(start: int, stop: int) -> Iterator[Int[np.ndarray, " n"]]:
    """Rows start..stop-1 of a split, cut at multiples of SHARD_N."""
    while start < stop:
        end = min((start // SHARD_N + 1) * SHARD_N, stop)
        yield np.arange(start, end)
        start = end


def is_whole(folder: Path, record: ShardRecord) -> bool:
    """Whether the shard is there in its full size (`verify` reads its bytes too)."""
    path = folder / record.name
    return path.exists() and path.stat().st_size == record.n_bytes


def n_missing(
    folder: Path, sizes: Mapping[str, int], provenance: dict[str, Any], accept_new_bytes: bool
) -> int:
    """How many images have to be made."""
    return sum(
        len(ids) for _, _, ids in missing_shards(folder, sizes, provenance, accept_new_bytes)
    )


def refuse_other_provenance(
    folder: Path, record: ShardRecord, provenance: dict[str, Any], accept_new_bytes: bool
) -> None:
    """ConfigurationError naming the keys in which the shard was made differently."""
    ignored = HARDWARE_KEYS if accept_new_bytes else ()
    keys = sorted({*record.provenance, *provenance} - set(ignored))
    differing = [key for key in keys if record.provenance.get(key) != provenance.get(key)]
    if differing:
        pairs = "; ".join(
            f"{k}: {record.provenance.get(k)!r} there, {provenance.get(k)!r} asked"
            for k in differing
        )
        hint = " (or pass --accept-new-bytes)" if set(differing) <= set(HARDWARE_KEYS) else ""
        raise ConfigurationError(
            f"{folder / record.name} was made in another way: {pairs};"
            f" use another folder{hint}, nothing is mixed"
        )


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
    flat = columns.images.reshape(len(columns), -1, columns.images.shape[-1])
    constant = (flat.min(axis=1) == flat.max(axis=1)).all(axis=1)
    if constant.any():
        raise NumericError(
            f"ids {columns.ids[constant][:5].tolist()}: images of a single colour;"
            " nothing was written"
        )
