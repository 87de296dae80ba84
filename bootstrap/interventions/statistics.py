"""More than one forward pass in a step, without more than one trace in batch norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Forward passes in here leave the model's buffers as they were, to the bit."""
    buffers = list(model.buffers())
    before = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)
