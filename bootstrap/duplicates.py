"""Is an image there twice: equal, equal but for the least bit, or mirrored? No torch.

Equal images have equal hashes. Near-duplicates are found by the means of a coarse grid of blocks:
where no pixel differs by more than 1 no mean does, so only neighbours in the space of means (a k-d
tree) are compared pixel by pixel. A million images take 0.3 GB, and seconds once they are read;
where only equal ones are looked for they take 8 MB.

Copies that are cropped, shifted or recoloured are not found; those are what CIFAR-10 is known for
(3.3 % of its test images have one among the training images: Barz and Denzler 2020).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64
from scipy.spatial import KDTree

from bootstrap.shards import SPLIT_START, ShardReader, ShardRecord, split_stop

Images = UInt8[np.ndarray, "n height width channel"]
Pairs = Int[np.ndarray, "pairs 2"]  # indices of an image and of an earlier one
Means = Float[np.ndarray, "n rows columns"]
Hashes = UInt64[np.ndarray, " n"]

GRID = 4  # blocks a side, one more if it is odd
MAX_STEP = 1  # grey levels by which near-duplicates may differ in every pixel
MAX_NEIGHBOURS = 16  # compared with each image, nearest means first; bounds memory and time
CHUNK = 4_096  # images whose neighbours are looked for at a time
PAIRS = 256  # compared at a time
PARTS = 16  # in which hashes are sorted, for memory's sake


@dataclass(frozen=True, kw_only=True)
class NearDuplicate:
    """An image that nearly is an earlier one."""

    id: int
    first_id: int
    is_mirrored: bool

    def __str__(self) -> str:
        how = "mirrored" if self.is_mirrored else "but for the least bit"
        first = f"{split_of(self.first_id)} id {self.first_id}"
        return f"{split_of(self.id)} id {self.id} is {first} {how}"


def count_by_split(found: tuple[NearDuplicate, ...]) -> str:
    """How many images of which split are nearly in which, e.g. `stream in test 3`."""
    counts = Counter((split_of(pair.id), split_of(pair.first_id)) for pair in found)
    return ", ".join(f"{split} in {first} {n:,}" for (split, first), n in counts.items())


def split_of(id_: int) -> str:
    """The split that an id belongs to."""
    return next(s for s, start in SPLIT_START.items() if start <= id_ < split_stop(s))


def hash_images(images: Images) -> Hashes:
    """64 bits of every image's bytes; of a million images two share them with chance 3e-8."""
    digests = b"".join(hashlib.blake2b(image, digest_size=8).digest() for image in images)
    return np.frombuffer(digests, dtype=np.uint64)


def equal_pairs(hashes: list[Hashes]) -> Pairs:
    """Every image that is there before, and the last of those before; sorted.

    `hashes` are those of one shard after the other; indices count through them all.
    """
    starts = np.cumsum([0, *map(len, hashes)])[:-1]
    found = [np.empty((0, 2), dtype=np.int64)]
    for part in range(PARTS):  # equal images are in one part
        rows = [np.flatnonzero(shard % PARTS == part) for shard in hashes]
        values = np.concatenate([shard[row] for shard, row in zip(hashes, rows, strict=True)])
        index = np.concatenate([start + row for start, row in zip(starts, rows, strict=True)])
        order = np.argsort(values, kind="stable")  # equal images stay in order
        is_again = values[order[1:]] == values[order[:-1]]
        again, before = index[order[1:]][is_again], index[order[:-1]][is_again]
        found.append(np.stack([again, before], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.argsort(pairs[:, 0])]


def leak_lines(hashes: Mapping[str, UInt64[np.ndarray, " n"]]) -> list[str]:
    """For each split with images that are test images too: how many, and which is the first.

    `hashes` are those of all images of each split by id. 64 bits are enough for a warning: of ten
    million images and a hundred thousand to test, two meet by chance once in ten million times.
    """
    if not len(hashes.get("test", ())):
        return []
    test, lines = np.sort(hashes["test"]), []
    for split in (name for name in hashes if name != "test"):
        place = np.searchsorted(test, hashes[split]).clip(max=len(test) - 1)
        found = np.flatnonzero(test[place] == hashes[split])
        if len(found):
            row = int(found[0])
            again = int((hashes["test"] == hashes[split][row]).argmax())
            lines.append(
                f"{len(found):,} images of {split} are test images too ({split} id"
                f" {SPLIT_START[split] + row} is test id {SPLIT_START['test'] + again}): the error"
                " on them says little, and `deep-bootstrap verify` refuses them; remove them from"
                " the source"
            )
    return lines


def block_means(images: Images) -> Means:
    """Means over the blocks of a grid and over channels, float32."""
    edges = [_edges(side) for side in images.shape[1:3]]
    sums = images.sum(axis=3, dtype=np.int64)
    for axis, edge in enumerate(edges, start=1):
        sums = np.add.reduceat(sums, edge[:-1], axis=axis)
    n_pixels = np.outer(np.diff(edges[0]), np.diff(edges[1])) * images.shape[3]
    return (sums / n_pixels).astype(np.float32)


def _edges(side: int) -> Int[np.ndarray, " edges"]:
    """Where blocks begin and end; the same from either side, so a mirror swaps whole blocks."""
    n_blocks = min(GRID + side % 2, side)  # an odd side has a block in its middle
    return np.rint(np.arange(n_blocks + 1) * side / n_blocks).astype(np.int64)  # halves to even


def near_duplicates(
    folder: Path,
    records: list[ShardRecord],
    image_shape: tuple[int, int, int],
    hashes: list[Hashes],
    means: Means,
) -> tuple[NearDuplicate, ...]:
    """Images of these shards that nearly are an earlier one, each named once; equal ones left out.

    `hashes` of each shard and `means` of all are those of their rows, in order.
    """
    kept = np.setdiff1d(np.arange(len(means)), equal_pairs(hashes)[:, 0])
    ids = np.concatenate([np.arange(r.first_id, r.stop_id) for r in records])[kept]
    starts = np.cumsum([0, *(record.n for record in records)])

    def read(index: Int[np.ndarray, " m"]) -> Images:
        rows, images = kept[index], []
        shard_of = np.searchsorted(starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            with closing(ShardReader(folder, records[shard], image_shape)) as reader:
                for row in rows[shard_of == shard] - starts[shard]:
                    images.append(reader.rows(int(row), int(row) + 1).images)
        return np.concatenate(images)

    return tuple(
        NearDuplicate(id=int(ids[again]), first_id=int(ids[before]), is_mirrored=is_mirrored)
        for again, before, is_mirrored in near_pairs(means[kept], read)
    )


def near_pairs(
    means: Means, read: Callable[[Int[np.ndarray, " m"]], Images]
) -> list[tuple[int, int, bool]]:
    """(index, earlier index, is mirrored) of every image that nearly is an earlier one, sorted.

    `read` gives the images at sorted indices.
    """
    points = means.reshape(len(means), -1).astype(np.float64)
    mirrored = means[:, :, ::-1].reshape(points.shape)
    tree = KDTree(points, balanced_tree=False, compact_nodes=False)
    found: dict[int, tuple[int, bool]] = {}
    for is_mirrored, asked in ((False, points), (True, mirrored)):
        for pairs in _neighbours(tree, asked):
            index, place = np.unique(pairs, return_inverse=True)
            images, place = read(index), place.reshape(pairs.shape)
            is_near = nearly_equal(images[place[:, 0]], images[place[:, 1]], is_mirrored)
            for again, before in pairs[is_near]:
                found.setdefault(int(again), (int(before), is_mirrored))
    return [(again, *found[again]) for again in sorted(found)]


def _neighbours(tree: KDTree, asked: Float[np.ndarray, "n blocks"]) -> Iterator[Pairs]:
    """Pairs of different images whose means differ by no more than MAX_STEP."""
    for start in range(0, len(asked), CHUNK):
        _, others = tree.query(
            asked[start : start + CHUNK],
            k=MAX_NEIGHBOURS + 1,  # the image itself is one
            p=np.inf,
            distance_upper_bound=MAX_STEP + 1e-3,  # means are rounded to float32
        )
        rows, columns = np.nonzero(others < tree.n)  # tree.n stands for none
        others, rows = others[rows, columns], rows + start
        pairs = np.stack([np.maximum(rows, others), np.minimum(rows, others)], axis=1)
        pairs = np.unique(pairs[rows != others], axis=0)
        for first in range(0, len(pairs), PAIRS):
            yield pairs[first : first + PAIRS]


def nearly_equal(images: Images, others: Images, is_mirrored: bool) -> Bool[np.ndarray, " n"]:
    """Whether no pixel of an image, mirrored or not, differs by more than MAX_STEP."""
    if is_mirrored:
        images = images[:, :, ::-1]
    steps = np.maximum(images, others) - np.minimum(images, others)
    return (steps <= MAX_STEP).all(axis=(1, 2, 3))
