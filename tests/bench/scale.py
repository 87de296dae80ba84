"""Do writing and reading keep up at a million images? `make bench-scale ARGS='--n 1000000'`.

Each line has a target, and none of them passes or fails. Two ways of doing the same are timed in
turn, and what counts is the median of their ratios: disks change their speed from minute to minute.
A million images of 32 px take 3.4 GB on disk and about five minutes. Linux only.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
import tyro

from bootstrap.batch import Batch
from bootstrap.environment import hardware
from bootstrap.feed import Feed
from bootstrap.files import check_space
from bootstrap.options import Execution
from bootstrap.pool import Pool
from bootstrap.presets import build_preset
from bootstrap.shards import (
    SHARD_N,
    Columns,
    Manifest,
    ShardRecord,
    build_shard,
    publish_shard,
    read_manifest,
)
from bootstrap.train import Task, build_state, train
from bootstrap.worlds import BLOCK, STREAM_START, SeedOrder, World
from generators.build import n_bytes_of
from generators.write import refuse_constant

IMAGE_SHAPE = (32, 32, 3)
BATCH = 64  # images, as in the laptop's recipe
SHORT_PAIR = (
    *("--preset", "smoke", "--no-every-step", "--batch-size", str(BATCH), "--n-samples", "2000"),
)
PIECE_BYTES = 1 << 20  # of plain reading
N_SHARDS_READ = 8  # at a time, before the other way has its turn
WARM_UP_STEPS, TIMED_STEPS = 4, 60
CHILD = """
import sys
from bootstrap.cli import COMMANDS
COMMANDS[sys.argv[1]](sys.argv[2:])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0])
"""

Ways = dict[str, Callable[[], object]]
Seconds = defaultdict[str, list[float]]  # of each call of each way
Line = Literal["generate", "verify", "compare", "write", "read", "train"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    n: int = 100_000
    """images of the large data set; the small one, for comparison, has a tenth"""
    lines: tuple[Line, ...] = ("generate", "verify", "compare", "write", "read", "train")
    folder: Path | None = None
    """make the data sets here and keep them, for lines that are measured later; by default they are
    in ./data and are removed"""


@dataclass(frozen=True)
class Row:
    """One measured figure."""

    what: str
    figure: str
    target: str = ""


# ---------------------------------------------------------------- memory


def bench_memory(command: Line, folder: Path, n: int) -> Iterator[Row]:
    """Peak memory of a command on both data sets, each in a process of its own."""
    n_steps = n // 10 // BATCH  # all blocks of the small data set, and N of them again and again
    peaks = []
    for n_images in (n // 10, n):
        started = time.perf_counter()
        peaks.append(run_child(command, data_folder(folder, n_images), n_images, n_steps))
        seconds = time.perf_counter() - started
        yield Row(f"{command} {n_images:,} images", f"{peaks[-1]:.1f} MiB, {seconds:.0f} s")
    yield Row("  peak memory, large / small", f"{peaks[1] / peaks[0]:.3f}", "<= 1.10")


def data_folder(folder: Path, n: int) -> Path:
    """Where the data set of `n` images is."""
    return folder / f"toy-{n}"


def run_child(command: str, data: Path, n: int, n_steps: int) -> float:
    """Peak resident memory of a command in MiB; not of getrusage, which counts the parent too."""
    if command == "generate":
        if data.exists():
            raise SystemExit(f"{data} is there; remove it, or leave out --lines generate")
        arguments = ["--source", "toy(side=32)", "--data", str(data), "--n", str(n)]
    elif command == "verify":
        arguments = [str(data)]
    else:
        where = ("--data", str(data), "--out", str(data.parent / "runs"))
        arguments = [*SHORT_PAIR, "--n-steps", str(n_steps), *where]
    argv = [sys.executable, "-c", CHILD, command, *arguments]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


# ---------------------------------------------------------------- ways in turn


def in_turn(ways: Ways, seconds: Seconds, prepare: Callable[[], None] = lambda: None) -> None:
    """Time each way once, another one first each time; what `prepare` takes does not count."""
    names = list(ways)
    first = len(seconds[names[0]]) % len(names)
    for name in names[first:] + names[:first]:
        prepare()
        started = time.perf_counter()
        ways[name]()
        seconds[name].append(time.perf_counter() - started)


def rows_of(seconds: Seconds, n_bytes: int, target: str = "") -> Iterator[Row]:
    """Speed of each way, and of each against the first."""
    (first, plain), *others = seconds.items()
    speed = n_bytes / statistics.median(plain) / 1e6
    yield Row(first, f"{speed:.0f} MB/s, n = {len(plain)}")
    for name, other in others:
        ratios = sorted(a / b for a, b in zip(plain, other, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        speed = n_bytes / statistics.median(other) / 1e6
        yield Row(name, f"{speed:.0f} MB/s")
        figure = f"{statistics.median(ratios):.2f} (quartiles {low:.2f} to {high:.2f})"
        yield Row("  speed / plain", figure, target)


# ---------------------------------------------------------------- writing


def bench_writing(folder: Path, n_pairs: int = 30) -> Iterator[Row]:
    """Shards of ready columns: check and publish, against write, hash and sync the same bytes."""
    images = np.random.default_rng(0).integers(0, 256, (SHARD_N, *IMAGE_SHAPE), dtype=np.uint8)
    labels, seconds = np.arange(SHARD_N) % 10, Seconds(list)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for index in range(n_pairs):
            ids = STREAM_START + index * SHARD_N + np.arange(SHARD_N)
            columns = Columns(images=images, labels=labels, ids=ids)
            content = build_shard(columns, n_classes=10)
            ways: Ways = {
                "write + sha256 + fsync": partial(write_plain, Path(name) / str(index), content),
                "check and publish": partial(write_shard, Path(name), index, columns),
            }
            in_turn(ways, seconds)
    yield from rows_of(seconds, len(content), ">= 0.50")


def write_shard(folder: Path, index: int, columns: Columns) -> None:
    """What `generate` does with a shard once it is drawn."""
    refuse_constant(columns)
    publish_shard(folder, "stream", index, columns, n_classes=10, provenance={})


def write_plain(path: Path, content: bytes) -> str:
    """The least that a writer does whose bytes are to be there, and known, after a crash."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- reading


def bench_reading(data: Path) -> Iterator[Row]:
    """Read the stream from the disk, a few shards at a time: plainly, in blocks, in batches."""
    manifest = read_manifest(data)
    shards = [shard for shard in manifest.split("stream") if shard.n == SHARD_N]
    seconds, before, n_bytes = Seconds(list), n_bytes_fetched(), 0
    for start in range(0, len(shards) - N_SHARDS_READ + 1, N_SHARDS_READ):
        group = shards[start : start + N_SHARDS_READ]
        n_bytes = sum(shard.n_bytes for shard in group)
        paths = [data / shard.name for shard in group]
        in_turn(reading_ways(data, manifest, group), seconds, partial(forget, paths))
    yield from rows_of(seconds, n_bytes)
    fetched = (n_bytes_fetched() - before) / (n_bytes * sum(map(len, seconds.values())))
    yield Row("  of it from the disk", f"{fetched:.0%}")


def reading_ways(data: Path, manifest: Manifest, group: list[ShardRecord]) -> Ways:
    """Shards as plain files; through the pool in blocks; and in batches, as training does."""
    first, stop = group[0].first_id, group[-1].stop_id

    def blocks() -> None:
        with closing(Pool(data, "stream", manifest)) as pool:
            for start in range(first - pool.start, stop - pool.start, BLOCK):
                pool.read(start, start + BLOCK)

    def batches() -> None:
        with closing(Pool(data, "stream", manifest)) as pool:
            for start in range(first, stop, BATCH):
                pool.rows(np.arange(start, start + BATCH))

    return {
        "read + crc32": partial(read_plain, [data / shard.name for shard in group]),
        f"Pool.read, {BLOCK:,} images": blocks,
        f"Pool.rows, {BATCH} images": batches,
    }


def read_plain(paths: list[Path]) -> int:
    """The least that a reader does who wants to know of damage."""
    crc = 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                crc = zlib.crc32(piece, crc)
    return crc


def forget(paths: list[Path]) -> None:
    """Have the system drop what it holds of files, so that they are read from the disk again."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def n_bytes_fetched() -> int:
    """What this process has had fetched from disks."""
    status = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(status["read_bytes"])


# ---------------------------------------------------------------- training


def bench_training(data: Path) -> Iterator[Row]:
    """How much of its time the ideal world of the laptop's recipe waits for its data."""
    recipe = build_preset("laptop").recipe
    flags = Execution().resolve("classifier", recipe.n_draws)
    manifest = read_manifest(data)
    n = manifest.n_stream
    with ExitStack() as stack:
        pool, test = (
            stack.enter_context(closing(Pool(data, split, manifest)))
            for split in ("stream", "test")
        )
        task = Task(
            recipe=recipe,
            feed=Feed(
                pool=pool,
                order=SeedOrder(pool_n_samples=n, seed=0),
                world=World(n_samples=n, seed=0),
                batch_size=recipe.batch_size,
                n_steps=recipe.n_steps,
                device=flags.torch_device,
            ),
            test=Batch.from_columns(test.first(recipe.n_test_curve), flags.torch_device),
            probes=None,
            grid=frozenset(),
            flags=flags,
        )
        state = build_state(recipe, manifest, n, 0, flags)
        forget([data / shard.name for shard in manifest.split("stream")])
        list(train(task, state, until_step=WARM_UP_STEPS))
        trained_s, state.evaluation_s = -state.wall_s, 0.0
        spent = stack.enter_context(timed(Feed, "batches"))
        list(train(task, state, until_step=WARM_UP_STEPS + TIMED_STEPS))
        trained_s += state.wall_s - state.evaluation_s
    step_ms = 1e3 * trained_s / TIMED_STEPS
    yield Row(f"train, {flags.describe()}", f"{step_ms:.1f} ms a step, n = {TIMED_STEPS}")
    yield Row("  longest wait for one batch", f"{1e3 * max(spent):.1f} ms")
    yield Row("  waiting for data", f"{sum(spent) / trained_s:.2%}", "< 5 %")


@contextmanager
def timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Seconds that each value of a generator is waited for, while the context lasts."""
    original, spent = getattr(owner, name), []

    def measured(*arguments: Any) -> Iterator[Any]:
        with closing(original(*arguments)) as values:
            while True:
                started = time.perf_counter()
                try:
                    value = next(values)
                except StopIteration:
                    return
                spent.append(time.perf_counter() - started)
                yield value

    with mock.patch.object(owner, name, measured):
        yield spent


# ---------------------------------------------------------------- the table


def measure(options: Options, folder: Path) -> Iterator[Row]:
    """The lines asked for, in their order."""
    data = data_folder(folder, options.n)
    for line in options.lines:
        if line in ("generate", "verify", "compare"):
            yield from bench_memory(line, folder, options.n)
        elif line == "write":
            yield from bench_writing(folder)
        else:
            yield from bench_reading(data) if line == "read" else bench_training(data)


def disk_of(folder: Path) -> str:
    """The kind of file system and its device."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    above = {str(path) for path in (folder.resolve(), *folder.resolve().parents)}
    device, _, kind, *_ = max((m for m in mounts if m[1] in above), key=lambda m: len(m[1]))
    return f"{kind} on {device}"


def main() -> None:
    """Print a table: what was measured, and what it is to be."""
    options = tyro.cli(Options, prog="make bench-scale")
    parent = options.folder or Path("data")
    parent.mkdir(parents=True, exist_ok=True)
    check_space(parent, n_bytes_of(int(1.1 * options.n) + 50 * SHARD_N, IMAGE_SHAPE))
    print(
        f"{hardware('cpu')}, {os.cpu_count()} cores, torch {torch.__version__}; {disk_of(parent)}"
    )
    with ExitStack() as stack:
        folder = options.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=parent, prefix="scale-"))
        )
        for row in measure(options, folder):
            print(f"{row.what:40} {row.figure:36} {row.target}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
