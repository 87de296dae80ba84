"""Data that are damaged or edited after a run began are never trained on."""

import dataclasses
import json
import shutil
from contextlib import closing

import h5py
import pytest
from test_paired import FLAGS, RECIPE, SIZES, N, content, stop_after
from test_verify import flip_byte

from bootstrap.errors import DataError, Interrupted
from bootstrap.pair import run_pair, run_real
from bootstrap.plan import run_name
from bootstrap.shards import ShardReader, read_manifest
from generators.toy import ToySource
from generators.write import generate

SHARD = "stream-00000.h5"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    generate(ToySource(side=8), folder, SIZES)
    return folder


@pytest.fixture
def data(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "data")


def run(data, out, **options):
    return run_pair(RECIPE, data, out, n_samples=N, flags=FLAGS, **options)


def run_real_world(data, out, **options):
    return run_real(RECIPE, data, out, n_samples=N[0], flags=FLAGS, **options)


def stop_early(start, data, out):
    with pytest.raises(Interrupted):
        start(data, out, control=stop_after(20))
    (folder,) = out.iterdir()
    assert list(folder.glob("seed-0/checkpoints/*.safetensors"))
    return folder


def zero_chunk(path, column, index):
    """Zeros in the place of a chunk and of its checksum, which is 0 for zeros."""
    with h5py.File(path) as file:
        chunk = file[column].id.get_chunk_info(index)
    held = bytearray(path.read_bytes())
    held[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(held)


DAMAGE = {
    "a flipped byte": lambda path: flip_byte(path, 50_000),
    "zeros for labels": lambda path: zero_chunk(path, "labels", 1),
    "zeros for images": lambda path: zero_chunk(path, "images", 1),
}


def held(folder):
    """Every file of a run; what locks it is no part of it."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".lock" not in path.name]
    return {path: path.read_bytes() for path in paths}


@pytest.mark.parametrize("start", [run, run_real_world])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_stopped_run_whose_data_are_damaged_is_not_gone_on_with(data, tmp_path, start, damage):
    folder = stop_early(start, data, tmp_path / "out")
    before = held(folder)
    DAMAGE[damage](data / SHARD)
    with pytest.raises(DataError, match=rf"{SHARD}: bytes have changed \(sha256 ") as caught:
        start(data, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert held(folder) == before


@pytest.mark.parametrize("name", ["test-00000.h5", "reference-00000.h5"])
def test_damaged_test_and_reference_images_are_noticed_too(data, tmp_path, name):
    stop_early(run, data, tmp_path / "out")
    flip_byte(data / name, 5_000)
    with pytest.raises(DataError, match=name):
        run(data, tmp_path / "out")


def test_only_the_hash_tells_that_a_chunk_was_zeroed_together_with_its_checksum(data):
    zero_chunk(data / SHARD, "labels", 1)
    manifest = read_manifest(data)
    with closing(ShardReader(data, manifest.split("stream")[0], (8, 8, 3))) as reader:
        assert (reader.rows(256, 512).labels == 0).all()


def test_once_the_data_are_mended_the_run_goes_on_to_the_same_records(data, tmp_path):
    folder = stop_early(run, data, tmp_path / "out")
    flip_byte(data / SHARD, 50_000)
    with pytest.raises(DataError):
        run(data, tmp_path / "out")
    flip_byte(data / SHARD, 50_000)
    assert run(data, tmp_path / "out") == folder
    assert content(folder) == content(run(data, tmp_path / "again"))


def test_a_teachers_first_run_on_damaged_data_is_refused(data, tmp_path):
    zero_chunk(data / SHARD, "labels", 1)
    with pytest.raises(DataError, match=SHARD):
        run_real_world(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The manifest


def edit(data, **changes):
    path = data / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


@pytest.mark.parametrize("key", ["mean", "deviation"])
def test_an_edited_normalisation_is_refused_and_the_stopped_run_is_left_alone(data, tmp_path, key):
    folder = stop_early(run, data, tmp_path / "out")
    before = held(folder)
    edit(data, **{key: [0.5, 0.5, 0.5]})
    with pytest.raises(DataError, match=r"manifest\.json: not the normalisation of its images"):
        run(data, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [folder]
    assert held(folder) == before


@pytest.mark.parametrize("mean", [[float("nan")] * 3, ["0.5"] * 2, [0.5]], ids=str)
def test_a_normalisation_that_cannot_be_is_refused(data, tmp_path, mean):
    edit(data, mean=mean)
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest"):
        run(data, tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.5, 0.5, 0.5)},
        {"deviation": (0.2, 0.2, 0.2)},
        {"class_names": tuple("0123456789X")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_normalisation_or_number_of_classes_is_another_run(whole, change):
    manifest = read_manifest(whole)
    names = {
        run_name("pair", RECIPE, known, 2_048, FLAGS)
        for known in (manifest, dataclasses.replace(manifest, **change))
    }
    assert len(names) == 2
