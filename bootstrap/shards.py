"""Shards: labelled images on disk that are whole, checked and never rewritten.

A split is a row of files `<split>-00000.h5`, each with a commit record `<split>-00000.json` that
is published after it; `manifest.json` collects the records. HDF5 is not a crash-safe store, so a
shard's bytes are built in memory and published with ordinary I/O. No torch.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int, UInt8

from bootstrap.errors import DataError
from bootstrap.files import file_sha256, pretty_json, publish, replace, sha256_hex
from bootstrap.worlds import BLOCK, STREAM_START

SCHEMA = 1
CHUNK = 256  # images a chunk: fletcher32 guards each one
SHARD_N = 4_096  # images a shard, four blocks
SPLIT_START = {"test": 0, "reference": 100_000_000, "pretrain": 500_000_000, "stream": STREAM_START}
OPTIONAL_COLUMNS = ("confidence", "teacher_label", "attempt", "agreed", "group", "environment")
END_OF_IDS = 1 << 62
MAX_DATASET_BYTES = 1 << 32  # more in one shard is refused before it is read
MAX_CHUNK_BYTES = 1 << 28  # HDF5 allocates a whole chunk to read one row of it
MAX_INFLATED_CHUNK_BYTES = 1 << 26  # a deflated one costs a thousandth of that on disk
PLAIN_FILTERS = {h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}
# what h5py raises for damaged bytes, depending on which structure they sit in
UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Rows of a split: images uint8 NHWC, labels and ids int64, optional columns as long."""

    images: UInt8[np.ndarray, "n height width channel"]
    labels: Int[np.ndarray, " n"]
    ids: Int[np.ndarray, " n"]
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: slice | np.ndarray) -> Columns:
        """The rows at `index`, every column alike."""
        return Columns(
            images=self.images[index],
            labels=self.labels[index],
            ids=self.ids[index],
            extra={name: column[index] for name, column in self.extra.items()},
        )


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """The commit record of one shard: what makes it count."""

    split: str
    index: int
    first_id: int
    n: int
    n_bytes: int
    sha256: str
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """The shard's file name."""
        return f"{self.split}-{self.index:05d}.h5"

    @property
    def stop_id(self) -> int:
        """One past the last id."""
        return self.first_id + self.n

    def to_json(self) -> dict[str, Any]:
        """The record as it is stored; `schema` first."""
        return {"schema": SCHEMA, **vars(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardRecord:
        """Read `to_json`; KeyError for a missing field, ValueError for one that cannot be."""
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']}, this version reads {SCHEMA}")
        if value["split"] not in SPLIT_START:  # it becomes part of a path
            raise ValueError(f"split {value['split']!r} is not one of {', '.join(SPLIT_START)}")
        for name, least in (("index", 0), ("first_id", 0), ("n", 1), ("n_bytes", 1)):
            if type(value[name]) is not int or value[name] < least:
                raise ValueError(f"{name} {value[name]!r} is not an integer of at least {least}")
        if not (isinstance(value["sha256"], str) and isinstance(value["provenance"], dict)):
            raise TypeError("sha256 must be text and provenance an object")
        names = ("split", "index", "first_id", "n", "n_bytes", "sha256", "provenance")
        return cls(**{name: value[name] for name in names})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data set is: shapes, names, normalisation, where it came from, and its shards."""

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, in [0, 1] pixel units
    deviation: tuple[float, ...]
    label_source: str
    generator: dict[str, Any]
    shards: tuple[ShardRecord, ...]

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def split(self, name: str) -> tuple[ShardRecord, ...]:
        """The shards of one split in the order of their ids."""
        return tuple(sorted((s for s in self.shards if s.split == name), key=lambda s: s.first_id))

    def n(self, split: str) -> int:
        """How many samples a split holds."""
        return sum(shard.n for shard in self.split(split))

    @property
    def n_stream(self) -> int:
        """Stream samples in whole blocks, the only ones that are used."""
        return self.n("stream") // BLOCK * BLOCK

    def to_json(self) -> dict[str, Any]:
        """The manifest as it is stored; `schema` first."""
        shards = [shard.to_json() for shard in self.shards]
        return {"schema": SCHEMA, **vars(self), "shards": shards}


def split_stop(split: str) -> int:
    """One past the last id that a split may ever hold: where the next split starts."""
    later = [start for start in SPLIT_START.values() if start > SPLIT_START[split]]
    return min(later, default=END_OF_IDS)


def build_shard(columns: Columns, n_classes: int) -> bytes:
    """The bytes of a shard: equal columns, equal bytes.

    ValueError if the columns are not a shard's.
    """
    check_columns(columns, n_classes)
    n = len(columns)
    extra = dict(sorted(columns.extra.items()))  # the order of a dict is not part of its value
    arrays = {"images": columns.images, "labels": columns.labels, "ids": columns.ids, **extra}
    with h5py.File(
        "shard.h5", "w", driver="core", backing_store=False, libver=("v110", "v110")
    ) as file:
        for name, array in arrays.items():
            chunks = (min(CHUNK, n), *array.shape[1:])
            file.create_dataset(name, data=array, chunks=chunks, fletcher32=True, track_times=False)
        file.flush()
        return file.id.get_file_image()


def check_columns(columns: Columns, n_classes: int) -> None:
    """ValueError naming what is wrong with the first bad column or row."""
    images, labels, ids, n = columns.images, columns.labels, columns.ids, len(columns.ids)
    if n < 1:
        raise ValueError("a shard holds at least one sample")
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != n:
        raise ValueError(
            f"images are {images.dtype} {images.shape}; they must be uint8"
            f" ({n}, height, width, channel)"
        )
    if labels.dtype != np.int64 or labels.shape != (n,):
        raise ValueError(f"labels are {labels.dtype} {labels.shape}; they must be int64 ({n},)")
    bad = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(bad):
        raise ValueError(f"id {ids[bad[0]]}: label {labels[bad[0]]} is not in 0..{n_classes - 1}")
    if ids.dtype != np.int64 or not np.array_equal(ids, ids[0] + np.arange(n)):
        raise ValueError("ids must be consecutive int64")
    unknown = [name for name in columns.extra if name not in OPTIONAL_COLUMNS]
    if unknown:
        raise ValueError(f"unknown columns {unknown}; optional columns are {OPTIONAL_COLUMNS}")
    for name, column in columns.extra.items():
        if column.shape != (n,) or column.dtype.kind not in "uifb":
            raise ValueError(
                f"column {name} is {column.dtype} {column.shape}; it must be numbers ({n},)"
            )


def publish_shard(
    folder: Path,
    split: str,
    index: int,
    columns: Columns,
    n_classes: int,
    provenance: dict[str, Any],
) -> ShardRecord:
    """Write a shard and then its commit record; returns the record that stands.

    A shard that another writer has committed stays as it is. One without a record, or whose bytes
    are not its record's, is remade.
    """
    content = build_shard(columns, n_classes)
    record = ShardRecord(
        split=split,
        index=index,
        first_id=int(columns.ids[0]),
        n=len(columns),
        n_bytes=len(content),
        sha256=sha256_hex(content),
        provenance=provenance,
    )
    if not SPLIT_START[split] <= record.first_id < record.stop_id <= split_stop(split):
        raise ValueError(f"ids {record.first_id}..{record.stop_id - 1} are not of split {split}")
    standing = _committed(folder, record)
    if standing is not None:
        return standing
    try:
        publish(folder / record.name, content)
    except FileExistsError:
        if file_sha256(folder / record.name) != record.sha256:
            replace(folder / record.name, content)
    try:
        publish(record_path(folder, record), pretty_json(record.to_json()))
    except FileExistsError:
        standing = _committed(folder, record)
        if standing is not None:
            return standing
        replace(record_path(folder, record), pretty_json(record.to_json()))
    return record


def _committed(folder: Path, record: ShardRecord) -> ShardRecord | None:
    """The record on disk of the shard that `record` would commit, if the shard's bytes are its."""
    with suppress(DataError, FileNotFoundError):
        standing = read_record(record_path(folder, record))
        if file_sha256(folder / record.name) == standing.sha256:
            return standing
    return None


def record_path(folder: Path, record: ShardRecord) -> Path:
    """Where the commit record of a shard is."""
    return (folder / record.name).with_suffix(".json")


def record_paths(folder: Path, split: str) -> list[Path]:
    """The files in `folder` that are named like commit records of a split, in order.

    OSError if the folder cannot be listed, which is not the same as an empty one.
    """
    name = re.compile(rf"{re.escape(split)}-(\d{{5,}})\.json")
    with suppress(FileNotFoundError):
        matches = [(name.fullmatch(path.name), path) for path in folder.iterdir()]
        return [path for _, path in sorted((int(m[1]), path) for m, path in matches if m)]
    return []


def read_record(path: Path) -> ShardRecord:
    """One commit record; DataError if it cannot be read or is another shard's."""
    try:
        record = ShardRecord.from_json(json.loads(path.read_bytes()))
        if record_path(path.parent, record) != path:
            raise ValueError(f"it is the record of {record.name}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a commit record ({error!r});"
            f" run `deep-bootstrap verify {path.parent} --repair`"
        ) from error
    return record


def read_records(folder: Path, split: str) -> list[ShardRecord]:
    """The commit records of a split, in order; DataError for one that cannot be read."""
    return [read_record(path) for path in record_paths(folder, split)]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest; readers see the old one or the new one."""
    replace(folder / "manifest.json", pretty_json(manifest.to_json()))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data set; DataError if there is none or it is not one."""
    path = folder / "manifest.json"
    try:
        value = json.loads(path.read_bytes())
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']}, this version reads {SCHEMA}")
        manifest = Manifest(
            name=value["name"],
            image_shape=tuple(value["image_shape"]),
            class_names=tuple(value["class_names"]),
            mean=tuple(value["mean"]),
            deviation=tuple(value["deviation"]),
            label_source=value["label_source"],
            generator=value["generator"],
            shards=tuple(ShardRecord.from_json(shard) for shard in value["shards"]),
        )
        check_values(manifest)
        return manifest
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no data set (no manifest.json); make one with `make generate`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a manifest this version reads ({error!r})") from error


def check_values(manifest: Manifest) -> None:
    """ValueError or TypeError unless shape and normalisation are possible."""
    shape = manifest.image_shape
    if len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
        raise ValueError(f"image_shape {shape} is not (height, width, channel)")
    check_normalisation(manifest.mean, manifest.deviation, shape[2])


def check_normalisation(
    mean: tuple[float, ...], deviation: tuple[float, ...], n_channels: int
) -> None:
    """ValueError or TypeError unless it has finite numbers, one per channel."""
    numbers = np.array([mean, deviation], dtype=np.float64)
    if numbers.shape != (2, n_channels) or not np.isfinite(numbers).all() or numbers[1].min() <= 0:
        raise ValueError(
            "mean and deviation must be finite, one per channel, the deviation above 0"
        )


class ShardReader:
    """Reads rows of one shard; opens it when first asked, refuses what is not a plain shard."""

    def __init__(
        self, folder: Path, record: ShardRecord, image_shape: tuple[int, int, int]
    ) -> None:
        self.path = folder / record.name
        self.record = record
        self.image_shape = image_shape
        self._file: h5py.File | None = None

    def rows(self, start: int, stop: int, *, with_images: bool = True) -> Columns:
        """Rows start..stop-1; DataError naming the file and rows if they cannot be read.

        Without images those have no pixels, (n, 0, 0, channel), and none of their bytes is read.
        """
        try:
            file = self._open()
            labels = file["labels"][start:stop]
            no_pixels = np.empty((len(labels), 0, 0, self.image_shape[2]), np.uint8)
            columns = Columns(
                images=file["images"][start:stop] if with_images else no_pixels,
                labels=labels,
                ids=file["ids"][start:stop],
                extra={name: file[name][start:stop] for name in OPTIONAL_COLUMNS if name in file},
            )
        except UNREADABLE as error:
            raise self._error(f"rows {start}..{stop - 1} cannot be read ({error})") from error
        first_id = self.record.first_id + start
        if not np.array_equal(columns.ids, first_id + np.arange(len(columns))):
            raise self._error(f"rows {start}..{stop - 1} do not hold the ids from {first_id}")
        return columns

    def _open(self) -> h5py.File:
        if self._file is None:
            n_bytes = self.path.stat().st_size
            if n_bytes != self.record.n_bytes:
                raise self._error(f"{n_bytes} bytes, its commit record says {self.record.n_bytes}")
            file = h5py.File(self.path, "r", locking="best-effort")
            try:
                check_layout(file, self.path, self.record.n, self.image_shape)
            except BaseException:
                file.close()  # an open handle would outlive the error and complain at exit
                raise
            self._file = file
        return self._file

    def _error(self, why: str) -> DataError:
        remedy = f"run `deep-bootstrap verify {self.path.parent} --repair`"
        return DataError(f"{self.path}: {why}; {remedy}")

    def close(self) -> None:
        """Close the file; reading again reopens it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # handles do not survive a fork or a pickle


def check_layout(file: h5py.File, path: Path, n: int, image_shape: tuple[int, int, int]) -> None:
    """DataError unless the file holds plain, wholly stored arrays of the promised shapes.

    Only headers are read and no link is followed.
    """
    expected = {"images": (n, *image_shape), "labels": (n,), "ids": (n,)}
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = type(link).__name__
            raise DataError(f"{path}: {name} is a {kind}; shards hold plain data sets only")
        if name not in expected and name not in OPTIONAL_COLUMNS:
            raise DataError(f"{path}: unknown data set {name}")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise DataError(f"{path}: {name} is not a plain data set")
        _check_type(dataset, name, path, expected.get(name, (n,)))
        _check_storage(dataset, name, path)
    missing = [name for name in expected if name not in file]
    if missing:
        raise DataError(f"{path}: no data set {missing[0]}")


def _check_type(dataset: h5py.Dataset, name: str, path: Path, shape: tuple[int, ...]) -> None:
    types = {"images": "uint8", "labels": "int64", "ids": "int64"}
    is_type = dataset.dtype == types[name] if name in types else dataset.dtype.kind in "uifb"
    if not is_type or dataset.shape != shape:
        wanted = types.get(name, "numbers")
        raise DataError(
            f"{path}: {name} is {dataset.dtype} {dataset.shape};"
            f" the manifest asks for {wanted} {shape}"
        )
    if dataset.dtype.itemsize * math.prod(shape) > MAX_DATASET_BYTES:
        raise DataError(f"{path}: {name} is larger than a shard may be")


def _check_storage(dataset: h5py.Dataset, name: str, path: Path) -> None:
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if not filters <= PLAIN_FILTERS:
        raise DataError(f"{path}: {name} uses the unknown filter {min(filters - PLAIN_FILTERS)}")
    is_deflated = h5py.h5z.FILTER_DEFLATE in filters
    max_chunk_bytes = MAX_INFLATED_CHUNK_BYTES if is_deflated else MAX_CHUNK_BYTES
    if dataset.chunks is None:
        stored, wanted = dataset.id.get_storage_size(), dataset.nbytes
    elif dataset.dtype.itemsize * math.prod(dataset.chunks) > max_chunk_bytes:
        raise DataError(f"{path}: {name} has chunks of {dataset.chunks}, more than may be read")
    else:
        sides = zip(dataset.shape, dataset.chunks, strict=True)
        stored, wanted = dataset.id.get_num_chunks(), math.prod(-(-s // c) for s, c in sides)
    if stored != wanted:  # HDF5 makes up zeros for what was never written
        raise DataError(f"{path}: {name} is only partly stored ({stored} of {wanted})")
