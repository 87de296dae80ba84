"""What a step is given: the next batch of its world, on the device before it is asked for.

On an accelerator the samples that a world uses are held as uint8 if they fit half of the memory
that is free there; else, and on a CPU, a thread reads ahead. No bit depends on which.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from bootstrap.batch import Batch
from bootstrap.pool import Pool
from bootstrap.worlds import BLOCK, SeedOrder, World

T = TypeVar("T")
N_AHEAD = 2  # batches in the making while one is used


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The batches of one world, by step."""

    pool: Pool
    order: SeedOrder
    world: World
    batch_size: int
    n_steps: int
    device: torch.device
    columns: tuple[str, ...] = ()  # wanted beside images, labels and ids

    def batches(self, first: int, stop: int) -> Generator[Batch]:
        """Those of the steps first..stop-1; close it when done, for a thread is reading."""
        return read_ahead(self.batch, first, stop)

    def batch(self, step: int) -> Batch:
        """That of one step; DataError for a shard that cannot be read."""
        positions = self.world.positions(step, self.batch_size)
        ids = self.order.ids(positions)
        if self.resident is not None:
            return self.resident.batch(positions, ids)
        return Batch.from_columns(self.pool.rows(ids), self.device, self.columns)

    @cached_property
    def resident(self) -> Resident | None:
        """All samples that the world will use, if they fit."""
        n = min(self.world.n_samples, self.n_steps * self.batch_size)
        n_bytes = n * prod(self.pool.manifest.image_shape)
        if 2 * n_bytes > free_bytes(self.device):
            return None
        return Resident.load(self.pool, self.order, n, self.device, self.columns)


@dataclass(frozen=True)
class Resident:
    """The first samples of a seed's order, on a device."""

    images: UInt8[Tensor, "n height width channel"]
    labels: Int[Tensor, " n"]
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        pool: Pool,
        order: SeedOrder,
        n: int,
        device: torch.device,
        names: Sequence[str] = (),
    ) -> Resident:
        """Read them block by block."""
        images = torch.empty((n, *pool.manifest.image_shape), dtype=torch.uint8, device=device)
        labels = torch.empty(n, dtype=torch.int64, device=device)
        columns: dict[str, list[Tensor]] = {name: [] for name in names}
        for start in range(0, n, BLOCK):
            rows = slice(start, min(start + BLOCK, n))
            part = Batch.from_columns(
                pool.rows(order.ids(np.arange(rows.start, rows.stop))), device, names
            )
            images[rows], labels[rows] = part.images, part.labels
            for name in names:
                columns[name].append(part.columns[name])
        return cls(images, labels, {name: torch.cat(parts) for name, parts in columns.items()})

    def batch(self, positions: Int[np.ndarray, " batch"], ids: Int[np.ndarray, " batch"]) -> Batch:
        """The samples at these positions of the order."""
        index = torch.from_numpy(positions).to(self.images.device, non_blocking=True)
        return Batch(
            images=self.images[index],
            labels=self.labels[index],
            ids=ids,
            columns={name: column[index] for name, column in self.columns.items()},
        )


def free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device; 0 elsewhere, where holding a pool would gain nothing."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def read_ahead(read: Callable[[int], T], first: int, stop: int) -> Generator[T]:
    """read(first), ..., read(stop - 1) in order, in a thread that is `N_AHEAD` ahead."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = deque(thread.submit(read, k) for k in range(first, min(first + N_AHEAD, stop)))
        try:
            for k in range(first + N_AHEAD, stop + N_AHEAD):
                if not coming:
                    return
                if k < stop:
                    coming.append(thread.submit(read, k))
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()
