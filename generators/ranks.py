"""Training on several devices: `torchrun --nproc-per-node=K -m bootstrap train-generator ...`.

Every rank holds the whole state and takes its share of each batch. Gradients are averaged before
they are used, so a step is what one device would do, but for the order of additions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed

from bootstrap.errors import ConfigurationError
from bootstrap.execution import Flags


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is; one process is alone by default."""

    rank: int = 0
    n: int = 1

    @property
    def is_first(self) -> bool:
        """The first rank writes files and speaks."""
        return self.rank == 0

    def share(self, n_rows: int) -> slice:
        """The rows of a batch that are this rank's; ConfigurationError if they do not divide."""
        if n_rows % self.n:
            raise ConfigurationError(
                f"--batch-size {n_rows} does not divide among {self.n} processes"
            )
        size = n_rows // self.n
        return slice(self.rank * size, (self.rank + 1) * size)

    def average(self, values: Sequence[Tensor]) -> None:
        """Replace each value by its mean over the ranks, in place and in one message."""
        if self.n > 1:
            flat = torch.cat([value.detach().flatten() for value in values])
            distributed.all_reduce(flat)
            pieces = (flat / self.n).split([value.numel() for value in values])
            for value, piece in zip(values, pieces, strict=True):
                value.detach().copy_(piece.view_as(value))


ALONE = Ranks()


@contextmanager
def joined(flags: Flags) -> Iterator[tuple[Ranks, Flags]]:
    """The ranks that torchrun started and the flags of this one: its own device, its own cores."""
    n, local = (int(os.environ.get(key, "1")) for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if n == 1:
        yield ALONE, flags
        return
    if flags.torch_device.type == "cuda":
        flags = replace(flags, device=f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(flags.torch_device)
    else:
        flags = replace(flags, n_threads=max(1, flags.n_threads // local))
    flags.apply()
    distributed.init_process_group("nccl" if flags.torch_device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank=distributed.get_rank(), n=n), flags
    finally:
        distributed.destroy_process_group()
