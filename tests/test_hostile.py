"""Files that mean harm are refused from their headers: nothing is followed, run or allocated."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_shards import HOSTILE, SHAPE, N, empty, link, write_shard
from test_sources import HUGE, MALFORMED, X, Y, npy, write_bomb, write_zip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
CHILD = Path(__file__).with_name("hostile_child.py")
MAX_GROWTH_MIB = 200


def open_all(kind, folder):
    """What became of every hostile file in a process of its own, which must not hang."""
    command = [sys.executable, str(CHILD), kind, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def assert_all_refused(found, names):
    assert found["errors"].keys() == names
    for name, error in found["errors"].items():
        assert error.startswith("DataError 3: "), (name, error)
    assert max(found["grown"].values()) < MAX_GROWTH_MIB, found["grown"]


def test_hostile_npz_files_are_refused_without_taking_memory(tmp_path):
    write_zip(tmp_path / "good.npz", X=X, Y=Y)
    for name, (members, _) in MALFORMED.items():
        write_zip(tmp_path / f"{name.replace(' ', '-')}.npz", **members)
    write_bomb(tmp_path / "bomb-of-images.npz", "X", n_mib=400)
    write_bomb(tmp_path / "bomb-of-labels.npz", "Y", n_mib=400)
    huge = npy(header=HUGE | {"shape": (1 << 44,), "descr": "<i8"}, body=b"0123456789")
    write_zip(tmp_path / "huge-labels.npz", zipfile.ZIP_DEFLATED, X=X, Y=huge)
    long_header = npy(header=HUGE | {"shape": (1,) * 20_000})
    write_zip(tmp_path / "long-header.npz", zipfile.ZIP_DEFLATED, X=long_header, Y=Y)
    names = {path.stem for path in tmp_path.glob("*.npz")} - {"good"}
    assert_all_refused(open_all("npz", tmp_path), names)
    assert {path.suffix for path in tmp_path.parent.rglob("*.np*")} == {".npz"}  # none unpacked


def external(fifo):
    return lambda file, name: file.create_dataset(
        name, (N, *SHAPE), "u1", external=[(str(fifo), 0, h5py.h5f.UNLIMITED)]
    )


def virtual(fifo):
    def make(file, name):
        layout = h5py.VirtualLayout((N, *SHAPE), "u1")
        layout[:] = h5py.VirtualSource(str(fifo), "images", (N, *SHAPE))
        file.create_virtual_dataset(name, layout)

    return make


def unknown_filter(file, name):
    """A filter of which the library has never heard."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((N, *SHAPE))
    properties.set_filter(32_767, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((N, *SHAPE))
    dataset = h5py.h5d.create(file.id, name.encode(), h5py.h5t.STD_U8LE, space, properties)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros((N, *SHAPE), np.uint8))


def deflated(values):
    """An array that is small on disk, in one chunk."""
    return lambda file, name: file.create_dataset(
        name, data=values, chunks=values.shape, compression=1, shuffle=True
    )


def test_hostile_hdf5_files_are_refused_without_taking_memory_or_following_anything(tmp_path):
    fifo = tmp_path / "opened"  # whoever opens it waits for ever
    os.mkfifo(fifo)
    write_shard(tmp_path / f"good-{N}.h5")
    for name, (replaced, _) in HOSTILE.items():
        write_shard(tmp_path / f"{name.replace(' ', '-')}-{N}.h5", **replaced)
    followed = {
        "fifo-link": {"labels": link(h5py.ExternalLink(str(fifo), "/labels"))},
        "fifo-storage": {"images": external(fifo)},
        "fifo-source": {"images": virtual(fifo)},
        "filter": {"images": unknown_filter},
    }
    for name, replaced in followed.items():
        write_shard(tmp_path / f"{name}-{N}.h5", **replaced)
    n = 1 << 20  # 200 MB of images
    columns = {"ids": deflated(np.arange(n)), "labels": deflated(np.zeros(n, np.int64))}
    large = {
        "bomb": deflated(np.zeros((n, *SHAPE), np.uint8)),
        "no-storage": empty((n, *SHAPE), "u1"),
        "no-chunk": empty((n, *SHAPE), "u1", chunks=(256, *SHAPE)),
    }
    for name, images in large.items():
        write_shard(tmp_path / f"{name}-{n}.h5", images=images, **columns)
    more = 1 << 40  # than any disk holds
    columns = {name: empty((more,), "i8", chunks=(256,)) for name in ("ids", "labels")}
    images = empty((more, *SHAPE), "u1", chunks=(256, *SHAPE))
    write_shard(tmp_path / f"huge-{more}.h5", images=images, **columns)
    names = {path.stem for path in tmp_path.glob("*.h5")} - {f"good-{N}"}
    found = open_all("h5", tmp_path)
    assert_all_refused(found, names)
    assert all(": images " in found["errors"][f"{name}-{n}"] for name in large)


def test_what_refuses_is_not_the_size_of_the_file_but_what_it_says(tmp_path):
    write_shard(tmp_path / f"plain-{N}.h5")
    assert open_all("h5", tmp_path)["errors"] == {f"plain-{N}": "it was read"}
