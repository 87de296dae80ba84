"""Training on several devices: `torchrun --nproc-per-node=W -m bootstrap compare ...`.

Every rank holds the whole state and takes its share of each batch. Gradients are averaged before
they are used, so a step is what one device would do, but for the order of additions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed

from bootstrap.errors import ConfigurationError
from bootstrap.execution import BatchNormOver, Flags, resolve_device


class SumOverRanks(torch.autograd.Function):
    """The sum of every rank's value; each value gets the sum of every rank's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """A new tensor, the same on each rank."""
        total = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient of the ranks' losses together, to be differentiated again."""
        return SumOverRanks.apply(gradients[0])


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is; one process is alone by default."""

    rank: int = 0
    n: int = 1

    @property
    def is_first(self) -> bool:
        """The first rank writes files and speaks."""
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """The rows that are this rank's: its own number, and every `n`-th from there."""
        return slice(self.rank, None, self.n)

    def share(self, n_rows: int) -> slice:
        """The rows of a batch that are this rank's; ConfigurationError if they do not divide."""
        if n_rows % self.n:
            raise ConfigurationError(
                f"--batch-size {n_rows} does not divide among {self.n} processes;"
                f" use a multiple of {self.n}"
            )
        return self.rows

    def average(self, values: Sequence[Tensor]) -> None:
        """Replace each value by its mean over the ranks, in place and in one message."""
        if self.n > 1:
            flat = torch.cat([value.detach().flatten() for value in values])
            distributed.all_reduce(flat)
            pieces = (flat / self.n).split([value.numel() for value in values])
            for value, piece in zip(values, pieces, strict=True):
                value.detach().copy_(piece.view_as(value))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks, to be differentiated: the loss of a whole batch from its shares.

        What a design choice does to it (flooding: |loss - b| + b) it does to the batch's mean, and
        `average` of the gradients is the gradient of that, whatever the number of ranks.
        """
        return value if self.n == 1 else SumOverRanks.apply(value) / self.n

    def stack(self, own: Tensor) -> Tensor:
        """`own` of every rank along a new first dimension, to be differentiated."""
        if self.n == 1:
            return own[None]
        every = own.new_zeros(self.n, *own.shape)
        every[self.rank] = own
        return SumOverRanks.apply(every)

    def gather(self, own: Tensor, n: int) -> Tensor:
        """(k, n) columns from those that are each rank's `rows` of them."""
        if self.n == 1:
            return own
        whole = own.new_zeros(len(own), n)
        whole[:, self.rows] = own
        distributed.all_reduce(whole)
        return whole

    def any(self, is_asked: bool) -> bool:
        """Whether one of the ranks asks; every rank gets the same answer."""
        if self.n == 1:
            return is_asked
        answer = torch.tensor(int(is_asked))
        distributed.all_reduce(answer, distributed.ReduceOp.MAX)
        return bool(answer)

    def broadcast(self, content: bytes = b"") -> bytes:
        """What the first rank gives, on every rank; RuntimeError once that one is gone."""
        if self.n == 1:
            return content
        size = torch.tensor(len(content))
        distributed.broadcast(size, 0)
        if not size:
            return b""
        sent = torch.empty(int(size), dtype=torch.uint8)
        if self.is_first:
            sent = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        distributed.broadcast(sent, 0)
        return sent.numpy().tobytes()


ALONE = Ranks()


@contextmanager
def joined(flags: Flags, bn: BatchNormOver = "global") -> Iterator[tuple[Ranks, Flags]]:
    """The ranks that torchrun started and the flags of this one: its own device, its own cores.

    Of a single process both values of `bn` are the same, and its flags are left as they are.
    """
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1:
        yield ALONE, flags
        return
    flags = replace(flags, ranks=n, bn=bn)
    backend = "gloo"
    if flags.torch_device.type == "cuda":
        flags = replace(flags, device=resolve_device(f"cuda:{os.environ['LOCAL_RANK']}"))
        torch.cuda.set_device(flags.torch_device)
        backend = "cpu:gloo,cuda:nccl"
    flags.apply()
    distributed.init_process_group(backend)
    try:
        yield Ranks(rank=distributed.get_rank(), n=n), flags
    finally:
        distributed.destroy_process_group()
