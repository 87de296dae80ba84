"""Pool: global ids -> columns, over the shards of a split; memory does not grow with the split.

Blocks of 1,024 samples are read as contiguous slices and kept while they are in use: the ideal
world needs the one it is in, a real world of N samples its N / 1,024.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
from jaxtyping import Int

from bootstrap.errors import DataError
from bootstrap.shards import SPLIT_START, Columns, Manifest, ShardReader, read_manifest
from bootstrap.worlds import BLOCK

CACHE_BYTES = 256 << 20  # of blocks kept in memory
MIN_BLOCKS = 4  # kept whatever their size
MAX_OPEN = 32  # shards; each open file costs a handle and some memory


Condition = Callable[[Columns, str, int], Columns]  # of rows of a split with so many classes


class Pool:
    """One split of a data set, by global id, with its samples under all `conditions`."""

    def __init__(
        self,
        folder: Path | str,
        split: str = "stream",
        manifest: Manifest | None = None,
        conditions: Sequence[Condition] = (),
    ) -> None:
        folder = Path(folder)
        self.folder = folder
        self.split = split
        self._conditions = conditions
        self.manifest = manifest or read_manifest(folder)
        shards = self.manifest.split(split)
        self.start = SPLIT_START[split]
        self.n = sum(shard.n for shard in shards)
        self._readers = [ShardReader(folder, shard, self.manifest.image_shape) for shard in shards]
        self._first_ids = [shard.first_id for shard in shards]
        self._blocks: OrderedDict[int, Columns] = OrderedDict()
        self._open: OrderedDict[int, None] = OrderedDict()
        self._cap = max(MIN_BLOCKS, CACHE_BYTES // (BLOCK * prod(self.manifest.image_shape)))
        self._max_blocks = self._cap
        if not shards:
            raise DataError(f"{folder}: split {split} is empty; generate or import it")
        expected = self.start
        for shard in shards:
            if shard.first_id != expected:
                raise DataError(
                    f"{folder / shard.name} starts at id {shard.first_id}, not {expected}:"
                    " a shard is missing"
                )
            expected = shard.stop_id

    def rows(self, ids: Int[np.ndarray, " n"]) -> Columns:
        """The samples of these ids, in their order; DataError for an id that is not there."""
        index = ids - self.start
        if len(ids) and (index.min() < 0 or index.max() >= self.n):
            absent = ids[(index < 0) | (index >= self.n)][0]
            raise DataError(f"{self.folder}: id {absent} is not in split {self.split}")
        blocks, offsets = np.divmod(index, BLOCK)
        parts = [(np.flatnonzero(blocks == b), int(b)) for b in np.unique(blocks)]
        if len(parts) == 1:
            return self._block(parts[0][1]).rows(offsets)
        gathered = [self._block(b).rows(offsets[at]) for at, b in parts]
        back = np.argsort(np.concatenate([at for at, _ in parts]), kind="stable")
        return concatenate(gathered).rows(back)

    def keep(self, n_samples: int) -> None:
        """Keep the blocks of so many samples, which will be read again and again, up to a cap."""
        n_blocks = -(-n_samples // BLOCK) + 1  # they may begin in the middle of one
        self._max_blocks = min(max(n_blocks, MIN_BLOCKS), self._cap)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def first(self, n: int) -> Columns:
        """The first `n` samples by id, without keeping their blocks."""
        return self.read(0, min(n, self.n))

    def read(self, start: int, stop: int, *, with_images: bool = True) -> Columns:
        """Samples start..stop-1 by index in the split, as contiguous reads.

        Without images those have no pixels, see `ShardReader.rows`.
        """
        columns = concatenate(list(self._pieces(start, stop, with_images)))
        for condition in self._conditions:
            columns = condition(columns, self.split, self.manifest.n_classes)
        return columns

    def chunks(self, n_rows: int, *, with_images: bool = True) -> Iterator[Columns]:
        """All samples by id, `n_rows` at a time."""
        for start in range(0, self.n, n_rows):
            yield self.read(start, min(start + n_rows, self.n), with_images=with_images)

    def close(self) -> None:
        """Close the files; reading again reopens them."""
        for reader in self._readers:
            reader.close()

    def _block(self, block: int) -> Columns:
        if block not in self._blocks:
            self._blocks[block] = self.read(block * BLOCK, min((block + 1) * BLOCK, self.n))
            if len(self._blocks) > self._max_blocks:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(block)
        return self._blocks[block]

    def _keep_few_open(self, shard: int) -> None:
        """Close the shard that was used longest ago when too many are open."""
        self._open[shard] = None
        self._open.move_to_end(shard)
        while len(self._open) > MAX_OPEN:
            self._readers[self._open.popitem(last=False)[0]].close()

    def _pieces(self, start: int, stop: int, with_images: bool) -> Iterator[Columns]:
        first_id, stop_id = self.start + start, self.start + stop
        while first_id < stop_id:
            shard = bisect_right(self._first_ids, first_id) - 1
            self._keep_few_open(shard)
            record = self._readers[shard].record
            until, row = min(stop_id, record.stop_id), first_id - record.first_id
            stop_row = until - record.first_id
            piece = self._readers[shard].rows(row, stop_row, with_images=with_images)
            if len(piece) == 0 or piece.ids[0] != first_id:
                raise DataError(
                    f"{self._readers[shard].path}: row {row} does not hold id {first_id}"
                )
            yield piece
            first_id = until


def concatenate(parts: list[Columns]) -> Columns:
    """One value from several with the same columns."""
    if len(parts) == 1:
        return parts[0]
    return Columns(
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        extra={
            name: np.concatenate([part.extra[name] for part in parts]) for name in parts[0].extra
        },
    )
