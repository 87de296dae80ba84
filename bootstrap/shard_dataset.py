"""A split of a data set for torch's DataLoader, for a training loop of your own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from bootstrap.pool import Pool
from bootstrap.shards import SPLIT_START, Columns, read_manifest


class ShardDataset(Dataset[tuple[Any, int]]):
    """Pairs (image, label) of a split, by index; safe to pickle and to fork, as workers do.

    Without `transform` an image is float32 (channel, height, width), normalised as the manifest
    says; a transform gets it as uint8 (channel, height, width). A batch is read at once, and fast
    if its indices are near each other; for the order of a world see `bootstrap.loop.stream`.
    DataError if the split is empty or cannot be read.
    """

    def __init__(
        self,
        data: Path | str,
        split: str = "stream",
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self.data, self.split, self.transform = Path(data), split, transform
        self.manifest = read_manifest(self.data)
        self._pool: Pool | None = None
        self._owner = 0  # the process that opened the pool: file handles are not shared
        self._open()

    def __len__(self) -> int:
        return self._open().n

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """Several samples at once: torch's loaders ask for a batch so."""
        n = len(self)
        places = np.array([index + n if index < 0 else index for index in indices], dtype=np.int64)
        if ((places < 0) | (places >= n)).any():
            raise IndexError(f"{self.data}, split {self.split}: an index is not below {n:,}")
        columns = self._open().rows(SPLIT_START[self.split] + places)
        return list(zip(self._images(columns), columns.labels.tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def _images(self, columns: Columns) -> list[Any]:
        images = torch.from_numpy(columns.images).permute(0, 3, 1, 2)
        if self.transform is None:
            return list(self._normalised(images))
        return [self.transform(image) for image in images]

    def _normalised(self, images: Tensor) -> Float[Tensor, "n channel height width"]:
        mean, deviation = (
            torch.tensor(values)[:, None, None]
            for values in (self.manifest.mean, self.manifest.deviation)
        )
        return (images.float() / 255 - mean) / deviation

    def _open(self) -> Pool:
        if self._pool is None or self._owner != os.getpid():
            self._pool = Pool(self.data, self.split, self.manifest)
            self._owner = os.getpid()
        return self._pool
