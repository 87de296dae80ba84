"""Which shards have to be made, and whether they may stand beside those that are there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from bootstrap.errors import ConfigurationError
from bootstrap.shards import SHARD_N, SPLIT_START, ShardRecord, read_records
from bootstrap.worlds import BLOCK

# provenance that --allow-mixed-devices lets differ, and what --accept-new-bytes lets
DEVICE_KEYS = ("hardware",)
HARDWARE_KEYS = ("execution", *DEVICE_KEYS, "torch")

Shard = tuple[str, int, Int[np.ndarray, " n"]]  # split, index, ids


def tolerated_keys(accept_new_bytes: bool, allow_mixed_devices: bool) -> tuple[str, ...]:
    """The provenance in which shards that are there may differ from new ones."""
    return HARDWARE_KEYS if accept_new_bytes else DEVICE_KEYS if allow_mixed_devices else ()


def missing_shards(
    folder: Path, sizes: Mapping[str, int], provenance: dict[str, Any], tolerated: Collection[str]
) -> list[Shard]:
    """Every shard that has to be made, in order; lost ones too.

    Where nothing has to be made it does not matter what hardware made what is there.
    """
    shards = list(_missing(folder, sizes))
    for record in (record for split in sizes for record in read_records(folder, split)):
        refuse_other_provenance(folder, record, provenance, tolerated if shards else HARDWARE_KEYS)
    return shards


def _missing(folder: Path, sizes: Mapping[str, int]) -> Iterator[Shard]:
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


def difference(
    there: dict[str, Any], here: dict[str, Any], tolerated: Collection[str] = ()
) -> dict[str, str]:
    """The keys in which two provenances differ, with both values as text."""
    keys = sorted({*there, *here} - set(tolerated))
    differing = [key for key in keys if there.get(key) != here.get(key)]
    return {k: f"{k}: {there.get(k)!r} there, {here.get(k)!r} asked" for k in differing}


def refuse_other_provenance(
    folder: Path, record: ShardRecord, provenance: dict[str, Any], tolerated: Collection[str]
) -> None:
    """ConfigurationError naming the keys in which the shard was made differently."""
    pairs = difference(record.provenance, provenance, tolerated)
    if pairs:
        hint = " (or pass --accept-new-bytes)" if set(pairs) <= set(HARDWARE_KEYS) else ""
        raise ConfigurationError(
            f"{folder / record.name} was made in another way: {'; '.join(pairs.values())};"
            f" use another folder{hint}, nothing is mixed"
        )
