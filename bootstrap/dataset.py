"""A data set as a whole: its normalisation, its manifest, and what it may not be mixed with.

Whoever makes shards ends with `collect_manifest`: the manifest is written last and means
"complete". No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from bootstrap.errors import ConfigurationError, DataError
from bootstrap.files import canonical_json
from bootstrap.shards import (
    SPLIT_START,
    Manifest,
    ShardReader,
    ShardRecord,
    read_manifest,
    read_records,
    write_manifest,
)
from bootstrap.worlds import BLOCK


@dataclass(frozen=True)
class PixelSums:
    """Exact sums over pixels, per channel: they add up, however the images are cut."""

    n: int = 0
    values: Any = 0  # arrays of Python integers, which never overflow
    squares: Any = 0

    @classmethod
    def of(cls, images: UInt8[np.ndarray, "n height width channel"]) -> PixelSums:
        """The sums over some images."""
        pixels = images.reshape(-1, images.shape[-1])
        histogram = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
        values = (histogram @ np.arange(256)).astype(object)
        return cls(len(pixels), values, (histogram @ np.arange(256) ** 2).astype(object))

    def __add__(self, other: PixelSums) -> PixelSums:
        return PixelSums(self.n + other.n, self.values + other.values, self.squares + other.squares)

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation per channel in [0, 1] pixel units; ValueError if there is no image."""
        n = self.n
        if n == 0:
            raise ValueError("no images to take the normalisation from")
        moments = list(zip(self.values, self.squares, strict=True))
        variances = [(n * q - s * s) / (n * n * 255 * 255) for s, q in moments]
        # a constant channel carries nothing, so it may have any scale but 0
        deviation = tuple(v**0.5 if v > 0 else 1.0 for v in variances)
        return tuple(s / (n * 255) for s, _ in moments), deviation


def normalisation(
    images: Iterable[UInt8[np.ndarray, "n height width channel"]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel in [0, 1] pixel units; ValueError if there is no image."""
    return sum(map(PixelSums.of, images), PixelSums()).normalisation()


def collect_manifest(
    folder: Path,
    *,
    name: str,
    image_shape: tuple[int, int, int],
    class_names: tuple[str, ...],
    label_source: str,
    generator: dict[str, Any],
) -> Manifest:
    """Gather the commit records of all splits and write `manifest.json`; returns the manifest.

    The normalisation is computed once, from `reference` (from the first stream block if there is
    none), and kept from then on. DataError if there is no shard or one is missing in the middle.
    """
    shards = tuple(record for split in SPLIT_START for record in whole_split(folder, split))
    if not shards:
        raise DataError(f"{folder}: no committed shards; run the command that makes them again")
    before = read_manifest(folder) if (folder / "manifest.json").exists() else None
    if before is not None:
        mean, deviation = before.mean, before.deviation
    else:
        mean, deviation = normalisation(_normalisation_images(folder, shards, image_shape))
    manifest = Manifest(
        name=name,
        image_shape=image_shape,
        class_names=class_names,
        mean=mean,
        deviation=deviation,
        label_source=label_source,
        generator=generator,
        shards=shards,
    )
    if before is None or canonical_json(before.to_json()) != canonical_json(manifest.to_json()):
        write_manifest(folder, manifest)
    return manifest


def whole_split(folder: Path, split: str) -> list[ShardRecord]:
    """The commit records of a split; DataError if their ids leave a gap."""
    records, next_id = read_records(folder, split), SPLIT_START[split]
    for record in records:
        if record.first_id != next_id:
            raise DataError(
                f"{folder}: {record.name} starts at id {record.first_id}, not {next_id}: a shard"
                " before it is missing; run the command that makes them again"
            )
        next_id = record.stop_id
    return records


def check_configuration(folder: Path, generator: dict[str, Any]) -> None:
    """ConfigurationError if `folder` holds shards or a manifest of another `generator`.

    A shard's provenance may hold more than `generator` (versions, devices); that is not compared.
    """
    wanted = json.loads(canonical_json(generator))  # tuples become lists, as they do on disk
    found = [record.provenance for split in SPLIT_START for record in read_records(folder, split)]
    differing = {key for row in found for key in wanted if row.get(key) != wanted[key]}
    if (folder / "manifest.json").exists():
        before = read_manifest(folder).generator
        differing |= {k for k in wanted.keys() | before.keys() if wanted.get(k) != before.get(k)}
        found.append(before)
    if differing:
        raise ConfigurationError(
            f"{folder} holds a data set of another configuration: it differs in"
            f" {', '.join(_difference(key, wanted, found) for key in sorted(differing))};"
            " choose another folder, or remove this one"
        )


def _difference(key: str, wanted: dict[str, Any], found: list[dict[str, Any]]) -> str:
    there = next(row.get(key) for row in found if row.get(key) != wanted.get(key))
    return f"{key} ({there!r} there, {wanted.get(key)!r} asked for)"


def _normalisation_images(
    folder: Path, shards: tuple[ShardRecord, ...], image_shape: tuple[int, int, int]
) -> Iterator[UInt8[np.ndarray, "n height width channel"]]:
    reference = [(shard, shard.n) for shard in shards if shard.split == "reference"]
    stream = [(shard, min(shard.n, BLOCK)) for shard in shards if shard.split == "stream"][:1]
    for shard, n in reference or stream:
        with closing(ShardReader(folder, shard, image_shape)) as reader:
            for start in range(0, n, BLOCK):
                yield reader.rows(start, min(start + BLOCK, n)).images
