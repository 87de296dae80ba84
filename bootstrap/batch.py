"""The one thing that flows: a batch of images, from uint8 on disk to what a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bootstrap.shards import Columns


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images uint8 (n, height, width, channel), labels and global ids int64 (n,), more columns."""

    images: UInt8[Tensor, "n height width channel"]
    labels: Int[Tensor, " n"]
    ids: Int[np.ndarray, " n"]
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_columns(
        cls, columns: Columns, device: torch.device, names: Sequence[str] = ()
    ) -> Batch:
        """Rows of a split, as tensors on `device`, with the optional columns of these names."""
        images, labels = torch.from_numpy(columns.images), torch.from_numpy(columns.labels)
        if device.type == "cuda":  # from pinned memory, a copy waits for nothing
            images, labels = images.pin_memory(), labels.pin_memory()
        return cls(
            images=images.to(device, non_blocking=True),
            labels=labels.to(device, non_blocking=True),
            ids=columns.ids,
            columns={name: torch.from_numpy(columns.extra[name]).to(device) for name in names},
        )

    def first(self, n: int) -> Batch:
        """The first `n` rows."""
        return self.rows(slice(n))

    def rows(self, index: slice) -> Batch:
        """The rows of `index`."""
        return Batch(
            images=self.images[index],
            labels=self.labels[index],
            ids=self.ids[index],
            columns={name: column[index] for name, column in self.columns.items()},
        )


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation per channel in [0, 1] pixel units, the same in both worlds."""

    mean: Float[Tensor, " channel"]
    deviation: Float[Tensor, " channel"]

    @classmethod
    def of(
        cls, mean: tuple[float, ...], deviation: tuple[float, ...], device: torch.device
    ) -> Normalisation:
        """From the manifest's numbers."""
        return cls(torch.tensor(mean, device=device), torch.tensor(deviation, device=device))

    def __call__(
        self, x: Float[Tensor, "n height width channel"]
    ) -> Float[Tensor, "n channel height width"]:
        """Normalised images, channels-last in memory."""
        return ((x - self.mean) / self.deviation).permute(0, 3, 1, 2)


def to_unit_range(
    images: UInt8[Tensor, "n height width channel"],
) -> Float[Tensor, "n height width channel"]:
    """uint8 -> float32 in [0, 1]."""
    return images.float() / 255
