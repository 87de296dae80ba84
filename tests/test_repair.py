"""What is broken in a generated data set is made again, byte for byte; the rest is left alone."""

import json
from dataclasses import replace

import pytest
from test_sample import TINY
from test_verify import flip_byte
from test_write import SIZES, SOURCE, all_bytes

from bootstrap.errors import DataError
from bootstrap.locks import locked
from bootstrap.shards import read_manifest, write_manifest
from bootstrap.verify import verify_data
from generators.denoiser import build_denoiser, write_denoiser
from generators.repair import remake_lost_shards
from generators.sample import DiffusionSpec
from generators.write import generate


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "toy"
    generate(SOURCE, folder, {**SIZES, "stream": 1_024})
    generate(SOURCE, folder, {**SIZES, "stream": 2_048})  # its shards have sizes of their own
    return folder


def break_shards(folder, *names):
    for name in names:
        flip_byte(folder / name, 5_000)


def inodes(folder):
    return {path.name: path.stat().st_ino for path in folder.iterdir() if path.name[0] != "."}


def remake(folder):
    return list(remake_lost_shards(folder, folder, folder / "teacher.safetensors"))


def repair(folder):
    verify_data(folder, repair=True)
    return remake(folder)


DAMAGE = {
    "flipped byte": lambda path: flip_byte(path, 5_000),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "lost": lambda path: path.unlink(),
    "lost record": lambda path: path.with_suffix(".json").unlink(),
    "torn record": lambda path: path.with_suffix(".json").write_bytes(b"{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_repair_makes_only_the_broken_shard_again_with_the_same_bytes(damage, data):
    bytes_before, inodes_before = all_bytes(data), inodes(data)
    DAMAGE[damage](data / "stream-00001.h5")
    assert repair(data) == ["stream-00001.h5"]
    assert all_bytes(data) == bytes_before
    touched = {name for name, inode in inodes(data).items() if inode != inodes_before[name]}
    assert touched <= {"stream-00001.h5", "stream-00001.json"}


def test_several_broken_shards_are_made_again_as_they_were_cut(data):
    before = all_bytes(data)
    break_shards(data, "test-00000.h5", "stream-00000.h5", "stream-00001.h5")
    assert repair(data) == ["test-00000.h5", "stream-00000.h5", "stream-00001.h5"]
    assert all_bytes(data) == before


def test_without_a_lost_shard_nothing_is_touched(data):
    before = inodes(data)
    assert remake(data) == []
    assert inodes(data) == before


def test_a_shard_that_the_manifest_does_not_list_is_removed_and_not_made_again(data):
    manifest = read_manifest(data)
    write_manifest(data, replace(manifest, shards=manifest.shards[:-1]))
    break_shards(data, manifest.shards[-1].name)
    assert repair(data) == []
    assert verify_data(data).problems == ()


def edit_manifest(folder, **provenance):
    """Change what the manifest says of how its shards were made."""
    path = folder / "manifest.json"
    value = json.loads(path.read_bytes())
    for shard in value["shards"]:
        shard["provenance"] |= provenance
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("provenance", "why"),
    [
        ({"source": "import", "kind": "npz"}, "run the `deep-bootstrap import npz` command"),
        ({"source": "mine.py:Own"}, "run the `deep-bootstrap generate` command"),
        ({"noise": "0.12; import os"}, "cannot be made again"),
        ({"labels": {"mode": "teacher", "teacher_sha256": "0"}}, "cannot be made again"),
        ({"side": 1 << 40}, "not those of the manifest"),
        ({"weights": 7, "source": "diffusion"}, "cannot be made again"),
    ],
    ids=str,
)
def test_what_cannot_be_made_again_says_which_command_to_run(data, provenance, why):
    break_shards(data, "stream-00001.h5")
    verify_data(data, repair=True)
    edit_manifest(data, **provenance)
    with pytest.raises(DataError, match=why):
        remake(data)
    assert not (data / "stream-00001.h5").exists()


def test_a_shard_that_would_have_other_bytes_is_not_written(data):
    break_shards(data, "stream-00001.h5")
    verify_data(data, repair=True)
    edit_manifest(data, noise=0.2)
    with pytest.raises(DataError, match="made again it has other bytes"):
        remake(data)
    assert not (data / "stream-00001.h5").exists()


@pytest.fixture
def drawn(tmp_path, flags):
    """A data set of a tiny denoiser, and the folder of its weights."""
    shipped = tmp_path / "weights"
    write_denoiser(shipped / "tiny.safetensors", build_denoiser(TINY, seed=0), {})
    source = DiffusionSpec(weights="tiny.safetensors", n_steps=1).build(shipped, flags)
    generate(source, tmp_path / "tiny", {"test": 20, "reference": 20})
    return tmp_path / "tiny", shipped


def test_a_shard_drawn_by_a_denoiser_is_made_again(drawn):
    folder, shipped = drawn
    before = all_bytes(folder)
    break_shards(folder, "reference-00000.h5")
    verify_data(folder, repair=True)
    made = list(remake_lost_shards(folder, shipped, shipped / "teacher.safetensors"))
    assert made == ["reference-00000.h5"]
    assert all_bytes(folder) == before


def test_another_denoiser_under_the_same_name_does_not_make_it(drawn):
    folder, shipped = drawn
    break_shards(folder, "reference-00000.h5")
    verify_data(folder, repair=True)
    write_denoiser(shipped / "tiny.safetensors", build_denoiser(TINY, seed=1), {})
    with pytest.raises(DataError, match="weights_sha256"):
        list(remake_lost_shards(folder, shipped, shipped / "teacher.safetensors"))


# The command


def test_verify_repair_ends_with_a_valid_data_set(data, deep_bootstrap):
    before = all_bytes(data)
    break_shards(data, "stream-00001.h5")
    assert deep_bootstrap("verify", data)[0] == 3
    code, out, err = deep_bootstrap("verify", data, "--repair")
    assert (code, "valid" in out) == (0, True)
    assert "removed stream-00001.json, stream-00001.h5" in err
    assert "stream-00001.h5: made again" in err
    assert all_bytes(data) == before


def test_verify_repair_of_what_cannot_be_made_again_exits_3(data, deep_bootstrap):
    break_shards(data, "stream-00001.h5")
    edit_manifest(data, source="import", kind="image-folder")
    code, _, err = deep_bootstrap("verify", data, "--repair")
    assert code == 3
    assert "run the `deep-bootstrap import image-folder` command that made it again" in err


def test_verify_repair_beside_a_writer_is_refused(data, deep_bootstrap):
    break_shards(data, "stream-00001.h5")
    with locked(data):
        code, _, err = deep_bootstrap("verify", data, "--repair")
    assert code == 2
    assert "is being written by process" in err
    assert (data / "stream-00001.h5").exists()
