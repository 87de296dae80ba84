"""Import CIFAR-5m with one part of full length: time, memory, disk, every row: `make bench-import`.

Writes npz parts of toy images (part 0 has the published 1,000,448 rows of 32x32x3, the others are
short), imports them with the command line in a process of its own, and compares every image and
label of the data set with what was written. Needs 10 GB of disk, which are free again at the end.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import tyro

from bootstrap.files import check_space
from bootstrap.shards import ShardReader, read_manifest
from generators.toy import ToySource

ROW_BYTES = 32 * 32 * 3
PIECE = 8_192  # rows made at a time
MAX_MEMORY_MIB = 512


@dataclass(frozen=True, kw_only=True)
class Options:
    """How long the parts are, and where they are written for a while."""

    n: int = 1_000_448
    n_short: int = 4_000
    n_test: int = 1_000
    folder: Path = Path("build")


@cache
def toy() -> tuple[np.ndarray, np.ndarray]:
    """A prototype of each class, and some noise to add."""
    prototypes = np.rint(255 * ToySource(side=32).prototypes[:, 0]).astype(np.uint8, order="C")
    noise = np.random.default_rng(0).integers(0, 32, (997, 32, 32, 3), dtype=np.uint8)
    return prototypes, noise


def label_of(rows: np.ndarray) -> np.ndarray:
    """The label of each row of the parts, counted through all of them."""
    return rows * 2_654_435_761 % (1 << 32) * 10 >> 32


def images_of(rows: np.ndarray) -> np.ndarray:
    """The image of each row: its prototype and noise, its number in the first four bytes."""
    prototypes, noise = toy()
    images = prototypes[label_of(rows)] + noise[rows % len(noise)]
    images.reshape(len(rows), -1)[:, :4] = rows.astype("<u4")[:, None].view(np.uint8)
    return images


def rows_of(images: np.ndarray) -> np.ndarray:
    """The numbers that `images_of` wrote."""
    return images.reshape(len(images), -1)[:, :4].copy().view("<u4")[:, 0].astype(np.int64)


def write_part(path: Path, first: int, n: int) -> None:
    """What `np.savez(path, X=..., Y=...)` writes, a piece at a time."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("X.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (n, 32, 32, 3)}
            np.lib.format.write_array_header_1_0(member, header)
            for start in range(0, n, PIECE):
                member.write(images_of(first + np.arange(start, min(start + PIECE, n))).data)
        with archive.open("Y.npy", "w") as member:
            np.lib.format.write_array(member, label_of(first + np.arange(n)))


@dataclass(frozen=True)
class Cost:
    """Of one import: seconds, and memory and disk at their fullest."""

    seconds: float
    memory_mib: float
    disk_bytes: int


def memory_mib(pid: int) -> float:
    """The most memory that a process has held; Linux only, 0 elsewhere or when it is over."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


def run_import(parts: Path, out: Path, n_test: int) -> Cost:
    """Run `deep-bootstrap import` and watch it."""
    words = ["import", "cifar5m-npz", str(parts), str(out), "--n-test", str(n_test)]
    free = least = shutil.disk_usage(parts).free
    most = 0.0
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "bootstrap", *words])
    while child.poll() is None:
        least = min(least, shutil.disk_usage(parts).free)
        most = max(most, memory_mib(child.pid))
        time.sleep(0.05)
    if child.returncode:
        raise SystemExit(child.returncode)
    return Cost(time.perf_counter() - started, most, free - least)


def check_rows(out: Path, rows: dict[str, tuple[int, int]]) -> None:
    """Every row of each split is there once, in random order, byte for byte."""
    manifest = read_manifest(out)
    for split, (first, stop) in rows.items():
        order = []
        for record in manifest.split(split):
            with closing(ShardReader(out, record, manifest.image_shape)) as reader:
                columns = reader.rows(0, record.n)
            found = rows_of(columns.images)
            assert np.array_equal(columns.images, images_of(found)), f"{record.name}: images"
            assert np.array_equal(columns.labels, label_of(found)), f"{record.name}: labels"
            order.append(found)
        found = np.concatenate(order)
        assert np.array_equal(np.sort(found), np.arange(first, stop)), f"{split}: rows"
        assert 0.45 < (np.diff(found) > 0).mean() < 0.55, f"{split}: not in random order"


def main() -> None:
    """Print what an import costs; AssertionError if a row is not what was written."""
    options = tyro.cli(Options, prog="make bench-import")
    lengths = [options.n, *[options.n_short] * 5]
    firsts = np.cumsum([0, *lengths])
    options.folder.mkdir(parents=True, exist_ok=True)
    check_space(options.folder, 3 * sum(lengths) * (ROW_BYTES + 16))
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-import-") as folder:
        parts, out = Path(folder) / "parts", Path(folder) / "data"
        parts.mkdir()
        started = time.perf_counter()
        for k, n in enumerate(lengths):
            write_part(parts / f"part{k}.npz", int(firsts[k]), n)
        n_bytes = sum(path.stat().st_size for path in parts.iterdir())
        made_s = time.perf_counter() - started
        print(f"parts: {firsts[-1]:,} rows, {n_bytes / 1e9:.2f} GB, written in {made_s:.0f} s")
        cost = run_import(parts, out, options.n_test)
        held = sum(path.stat().st_size for path in out.iterdir())
        print(
            f"import: {cost.seconds:.0f} s, {firsts[-1] / cost.seconds:,.0f} rows/s,"
            f" {cost.memory_mib:.0f} MiB of memory, {cost.disk_bytes / 1e9:.2f} GB of disk at its"
            f" fullest, {held / 1e9:.2f} GB in the end"
        )
        assert cost.memory_mib < MAX_MEMORY_MIB, f"memory must stay below {MAX_MEMORY_MIB} MiB"
        print(f"import again: {run_import(parts, out, options.n_test).seconds:.0f} s")
        started = time.perf_counter()
        ends = (0, firsts[5], firsts[5] + options.n_test, firsts[6])
        splits = ("stream", "test", "reference")
        check_rows(out, {split: ends[k : k + 2] for k, split in enumerate(splits)})
        print(f"every row is there once, as written: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
