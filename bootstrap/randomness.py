"""Randomness has coordinates, not history.

Every draw of the project is a function of (seed, purpose, coordinates), made from raw Philox4x64
bits: the key is (seed, purpose), the coordinates sit in the counter's upper three words and the
lowest word counts the draws. Nothing depends on how many draws came before, and nothing touches
a global generator. numpy only.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from jaxtyping import Float, Float32, Int, UInt64

WORD = 1 << 64


class Stream(IntEnum):
    """What a draw is for; two purposes never share a stream. Values are part of the format."""

    ORDER = 1
    AUGMENT = 2
    LABEL_NOISE = 3
    INIT = 4
    EVERY_STEP_TEST = 5
    SAMPLE_CLASS = 6
    SAMPLE_NOISE = 7
    IMPORT_ORDER = 8
    TOY = 9
    DENOISER_BATCH = 10
    DENOISER_NOISE = 11
    BOOTSTRAP = 12
    ARCHITECTURE = 13
    CHOICE = 14
    CONDITION = 15
    LINEAR_TOY = 16
    PRETRAIN = 20


def bits(seed: int, stream: Stream, *coordinates: int, n: int) -> UInt64[np.ndarray, " n"]:
    """`n` raw bits at these (at most three) coordinates.

    Same coordinates, same bits: in any order, process or version of numpy.
    """
    if len(coordinates) > 3:
        raise ValueError(f"{len(coordinates)} coordinates given, a Philox counter holds 3")
    high = (*coordinates, 0, 0, 0)[:3]  # word 0 counts the draws, so no coordinate may sit there
    philox = np.random.Philox(key=_words(seed % WORD, stream), counter=_words(0, *high))
    return np.asarray(philox.random_raw(n), dtype=np.uint64)


def _words(*values: int) -> UInt64[np.ndarray, " n"]:
    return np.array(values, dtype=np.uint64)  # numpy rounds a list with large integers to floats


def uniforms(seed: int, stream: Stream, *coordinates: int, n: int) -> Float[np.ndarray, " n"]:
    """`n` float64 draws from [0, 1) at these coordinates (the upper 53 bits of each word)."""
    return (bits(seed, stream, *coordinates, n=n) >> np.uint64(11)) * 2.0**-53


def integers(
    high: int, seed: int, stream: Stream, *coordinates: int, n: int
) -> Int[np.ndarray, " n"]:
    """`n` draws from range(high); the bias of at most high / 2^53 is ignored."""
    return (uniforms(seed, stream, *coordinates, n=n) * high).astype(np.int64)


def permutation(seed: int, stream: Stream, *coordinates: int, n: int) -> Int[np.ndarray, " n"]:
    """A shuffle of range(n) that depends on its coordinates alone."""
    return np.argsort(bits(seed, stream, *coordinates, n=n), kind="stable")


def normals(seed: int, stream: Stream, *coordinates: int, n: int) -> Float32[np.ndarray, " n"]:
    """`n` standard normal float32 draws (Box and Muller 1958), two from each raw word."""
    words = bits(seed, stream, *coordinates, n=(n + 1) // 2)
    u1 = (
        (words >> np.uint64(32)).astype(np.float64) + 1
    ) * 2.0**-32  # (0, 1]: its logarithm is finite
    u2 = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) * 2.0**-32
    radius = np.sqrt(-2 * np.log(u1))
    pairs = np.stack([radius * np.cos(2 * np.pi * u2), radius * np.sin(2 * np.pi * u2)], axis=1)
    return pairs.reshape(-1)[:n].astype(np.float32)


def torch_seed(seed: int, stream: Stream, *coordinates: int) -> int:
    """A seed for a torch.Generator that serves this purpose at these coordinates only."""
    return int(bits(seed, stream, *coordinates, n=1)[0] >> np.uint64(1))  # manual_seed takes int64
