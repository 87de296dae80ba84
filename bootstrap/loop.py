"""For a training loop of your own: the batches that a world sees, as numpy arrays. No torch.

Records of such a loop go through `bootstrap.runlog.RunWriter`; `bootstrap.shard_dataset` is for
torch's DataLoader.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

from bootstrap.errors import NotEnoughData
from bootstrap.pool import Pool
from bootstrap.shards import Columns, read_manifest
from bootstrap.worlds import SeedOrder, World


def pool_n_samples(data: Path | str) -> int:
    """How many samples the ideal world of a data set has: all whole blocks of its stream."""
    return read_manifest(Path(data)).n_stream


def stream(
    data: Path | str, world: World, batch_size: int, *, allow_reuse: bool = False
) -> Iterator[Columns]:
    """What `world` sees at step 0, 1, 2, ...: `images` uint8 NHWC, `labels` and `ids` int64.

    The order is that of `deep-bootstrap compare`, so the real and the ideal world of a seed see the
    same batches until the first reuse. A world of fewer samples than the data set repeats them
    without end. One of all samples, the ideal one, ends with NotEnoughData where it would repeat,
    unless `allow_reuse`. NotEnoughData, too, if the data set has fewer than `world.n_samples`.
    """
    n = pool_n_samples(data)
    if world.n_samples > n:
        raise NotEnoughData(f"{data}: the stream holds {n:,} samples, not {world.n_samples:,}")
    return _batches(Path(data), world, batch_size, n, allow_reuse)


def _batches(
    data: Path, world: World, batch_size: int, n: int, allow_reuse: bool
) -> Iterator[Columns]:
    order = SeedOrder(pool_n_samples=n, seed=world.seed)
    with closing(Pool(data)) as pool:
        for step in count():
            if world.n_samples == n < (step + 1) * batch_size and not allow_reuse:
                raise NotEnoughData(
                    f"{data}: step {step} needs {(step + 1) * batch_size:,} fresh samples, the"
                    f" stream holds {n:,}; extend it with `deep-bootstrap generate --n`, take fewer"
                    " steps, or pass allow_reuse=True"
                )
            yield pool.rows(order.ids(world.positions(step, batch_size)))
