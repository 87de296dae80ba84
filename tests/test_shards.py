"""Shards are whole, checked and never rewritten."""

import dataclasses
import json
import pickle
from contextlib import closing

import h5py
import numpy as np
import pytest

from bootstrap.errors import DataError
from bootstrap.files import file_sha256
from bootstrap.shards import (
    SPLIT_START,
    Columns,
    Manifest,
    ShardReader,
    ShardRecord,
    build_shard,
    check_columns,
    publish_shard,
    read_manifest,
    read_records,
    record_path,
    write_manifest,
)

SHAPE = (8, 8, 3)
N = 300  # more than a chunk and not a multiple of one


def make_columns(n=N, first_id=0, seed=0, **extra):
    rng = np.random.default_rng(seed)
    return Columns(
        images=rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8),
        labels=rng.integers(0, 10, n),
        ids=first_id + np.arange(n),
        extra=extra,
    )


def publish(folder, columns=None, index=0, provenance=None):
    columns = make_columns() if columns is None else columns
    return publish_shard(folder, "test", index, columns, 10, provenance or {"source": "test"})


def read_all(folder, record):
    with closing(ShardReader(folder, record, SHAPE)) as reader:
        return reader.rows(0, record.n)


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def adopt(folder, path):
    """A commit record for whatever is at `path`, as a hostile or buggy writer would make it."""
    return ShardRecord(
        split="test",
        index=0,
        first_id=0,
        n=N,
        n_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        provenance={},
    )


def test_equal_columns_give_equal_bytes():
    assert build_shard(make_columns(), 10) == build_shard(make_columns(), 10)


def test_the_order_in_which_extra_columns_are_given_does_not_change_the_bytes():
    a, b = np.zeros(N, dtype=np.int64), np.ones(N, dtype=bool)
    first = build_shard(make_columns(attempt=a, agreed=b), 10)
    assert first == build_shard(make_columns(agreed=b, attempt=a), 10)


def test_memory_order_does_not_change_the_bytes():
    columns = make_columns()
    fortran = dataclasses.replace(columns, images=np.asfortranarray(columns.images))
    assert build_shard(columns, 10) == build_shard(fortran, 10)


@pytest.mark.parametrize("name", ["images", "labels", "ids"])
def test_bytes_do_not_hold_the_time_at_which_they_were_made(tmp_path, name):
    record = publish(tmp_path)
    with h5py.File(tmp_path / record.name) as file:
        assert not file[name].id.get_create_plist().get_obj_track_times()


def test_what_is_published_is_what_is_read(tmp_path):
    columns = make_columns(confidence=np.linspace(0, 1, N, dtype=np.float32))
    found = read_all(tmp_path, publish(tmp_path, columns))
    for name in ("images", "labels", "ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(columns, name))
    np.testing.assert_array_equal(found.extra["confidence"], columns.extra["confidence"])


def test_rows_are_those_asked_for(tmp_path):
    record = publish(tmp_path)
    with closing(ShardReader(tmp_path, record, SHAPE)) as reader:
        np.testing.assert_array_equal(reader.rows(250, 260).images, make_columns().images[250:260])


def test_a_commit_record_round_trips(tmp_path):
    assert [publish(tmp_path)] == read_records(tmp_path, "test")


def test_records_are_in_the_order_of_their_index(tmp_path):
    indices = (100_000, 2, 99_999, 7, 5, 3, 20)
    for index in indices:
        publish(tmp_path, make_columns(first_id=index, n=1), index)
    assert [r.index for r in read_records(tmp_path, "test")] == sorted(indices)


def test_a_second_writer_of_the_same_shard_loses_and_goes_on(tmp_path):
    first = publish(tmp_path)
    before = (tmp_path / first.name).stat()
    assert publish(tmp_path) == first
    assert (tmp_path / first.name).stat().st_ino == before.st_ino


def test_a_committed_shard_stands_against_other_content(tmp_path):
    first = publish(tmp_path)
    assert publish(tmp_path, make_columns(seed=1), provenance={"source": "other"}) == first
    assert file_sha256(tmp_path / first.name) == first.sha256


def test_a_shard_without_a_record_is_remade(tmp_path):
    (tmp_path / "test-00000.h5").write_bytes(b"left by something else")
    record = publish(tmp_path)
    assert file_sha256(tmp_path / record.name) == record.sha256


def test_a_damaged_shard_and_its_record_are_remade_together(tmp_path):
    first = publish(tmp_path)
    flip_byte(tmp_path / first.name, 5_000)
    second = publish(tmp_path, make_columns(seed=1))
    assert file_sha256(tmp_path / second.name) == second.sha256
    assert read_records(tmp_path, "test") == [second]


def test_nothing_temporary_is_left_behind(tmp_path):
    publish(tmp_path)
    publish(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"test-00000.h5", "test-00000.json"}


def test_a_shard_without_its_record_is_not_counted(tmp_path):
    record_path(tmp_path, publish(tmp_path)).unlink()
    assert read_records(tmp_path, "test") == []


def test_a_truncated_shard_is_refused_with_both_sizes(tmp_path):
    record = publish(tmp_path)
    path = tmp_path / record.name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{record.n_bytes - 1} bytes.*{record.n_bytes}"):
        read_all(tmp_path, record)


@pytest.mark.parametrize("column", ["images", "labels"])
def test_a_flipped_byte_in_a_column_is_refused_with_the_rows(tmp_path, column):
    record = publish(tmp_path)
    with h5py.File(tmp_path / record.name) as file:
        position = file[column].id.get_chunk_info(0).byte_offset + 17
    flip_byte(tmp_path / record.name, position)
    with pytest.raises(DataError, match=r"test-00000\.h5: rows 0\.\.299 cannot be read"):
        read_all(tmp_path, record)


def test_a_flipped_byte_in_the_header_is_refused(tmp_path):
    record = publish(tmp_path)
    flip_byte(tmp_path / record.name, 20)
    with pytest.raises(DataError, match="cannot be read"):
        read_all(tmp_path, record)


def test_a_missing_file_is_refused_by_name(tmp_path):
    record = publish(tmp_path)
    (tmp_path / record.name).unlink()
    with pytest.raises(DataError, match=r"test-00000\.h5"):
        read_all(tmp_path, record)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split", "../../elsewhere"),
        ("index", 1),
        ("index", "0"),
        ("first_id", -1),
        ("n", 0),
        ("n_bytes", 1.5),
        ("sha256", None),
        ("provenance", []),
        ("schema", 99),
    ],
)
def test_an_impossible_commit_record_is_refused_by_name(tmp_path, key, value):
    path = record_path(tmp_path, publish(tmp_path))
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DataError, match=r"test-00000\.json: not a commit record"):
        read_records(tmp_path, "test")


def test_a_torn_commit_record_is_refused_by_name(tmp_path):
    path = record_path(tmp_path, publish(tmp_path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"test-00000\.json: not a commit record"):
        read_records(tmp_path, "test")


def test_ids_other_than_the_records_are_refused(tmp_path):
    record = publish(tmp_path)
    with pytest.raises(DataError, match="do not hold the ids from 7"):
        read_all(tmp_path, dataclasses.replace(record, first_id=7))


def test_an_open_reader_pickles_and_reads_on(tmp_path):
    record = publish(tmp_path)
    with closing(ShardReader(tmp_path, record, SHAPE)) as reader:
        reader.rows(0, 1)
        with closing(pickle.loads(pickle.dumps(reader))) as copy:
            np.testing.assert_array_equal(copy.rows(0, 9).images, reader.rows(0, 9).images)


def test_a_refused_file_is_closed(tmp_path):
    record = publish(tmp_path)
    reader = ShardReader(tmp_path, record, (4, 4, 3))
    with pytest.raises(DataError) as caught:
        reader.rows(0, 1)
    with h5py.File(tmp_path / record.name, "r+"):  # fails while anything has it open to read
        assert caught.traceback  # which keeps what was local alive


# Columns that are not a shard's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((N, *SHAPE), np.float32)}, "images are float32"),
        ({"images": np.zeros((N - 1, *SHAPE), np.uint8)}, r"images are uint8 \(299, 8, 8, 3\)"),
        ({"images": np.zeros((N, 64), np.uint8)}, r"images are uint8 \(300, 64\)"),
        ({"labels": np.zeros(N, np.int32)}, "labels are int32"),
        ({"labels": np.where(np.arange(N) == 41, 10, 0)}, r"id 41: label 10 is not in 0\.\.9"),
        ({"labels": np.where(np.arange(N) == 7, -1, 0)}, "id 7: label -1"),
        ({"ids": np.arange(N)[::-1]}, "consecutive"),
        ({"ids": np.arange(N, dtype=np.int32)}, "consecutive int64"),
        ({"extra": {"surprise": np.zeros(N)}}, "surprise"),
        ({"extra": {"confidence": np.zeros(N - 1)}}, "confidence"),
        ({"extra": {"group": np.array([None] * N)}}, "group is object"),
    ],
)
def test_columns_that_are_not_a_shards_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_columns(dataclasses.replace(make_columns(), **change), 10)


def test_an_empty_shard_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        build_shard(make_columns(n=0), 10)


def test_ids_that_reach_into_another_split_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="not of split test"):
        publish(tmp_path, make_columns(first_id=SPLIT_START["reference"] - 1))
    assert not list(tmp_path.iterdir())


# Files that are not a shard


def write_shard(path, **replaced):
    """A shard made with plain h5py calls; `replaced` gives what to do instead of a column."""
    columns = make_columns()
    with h5py.File(path, "w") as file:
        for name in ("images", "labels", "ids"):
            make = replaced.pop(name, None)
            if make is None:
                file[name] = getattr(columns, name)
            else:
                make(file, name)
        for name, make in replaced.items():
            make(file, name)


def array(value):
    return lambda file, name: file.create_dataset(name, data=value)


def empty(shape, dtype, **options):
    return lambda file, name: file.create_dataset(name, shape, dtype, **options)


def link(value):
    return lambda file, name: file.__setitem__(name, value)


def external_storage(file, name):
    file.create_dataset(name, (N, *SHAPE), "u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file, name):
    layout = h5py.VirtualLayout((N, *SHAPE), "u1")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "images", (N, *SHAPE))
    file.create_virtual_dataset(name, layout)


def partly_stored(file, name):
    images = file.create_dataset(name, (N, *SHAPE), "u1", chunks=(50, *SHAPE))
    images[:50] = 1


HOSTILE = {
    "external link": (
        {"labels": link(h5py.ExternalLink("other.h5", "/labels"))},
        "labels is a Ext",
    ),
    "soft link": ({"labels": link(h5py.SoftLink("/ids"))}, "labels is a SoftLink"),
    "dangling soft link": ({"group": link(h5py.SoftLink("/nowhere"))}, "group is a SoftLink"),
    "external storage": ({"images": external_storage}, "images is not a plain"),
    "virtual data set": ({"images": virtual}, "images is not a plain"),
    "group": ({"ids": lambda file, name: file.create_group(name)}, "ids is not a plain"),
    "huge shape": (
        {"images": empty((1 << 40, *SHAPE), "u1", chunks=(1, *SHAPE))},
        "images is uint8",
    ),
    "no storage": ({"images": empty((N, *SHAPE), "u1")}, "images is only partly stored"),
    "part storage": ({"images": partly_stored}, "images is only partly stored"),
    "variable length": (
        {"labels": empty((N,), h5py.vlen_dtype(np.int64))},
        "labels is object",
    ),
    "strings": ({"group": empty((N,), h5py.string_dtype())}, "group is object"),
    "unknown filter": (
        {"images": empty((N, *SHAPE), "u1", compression="lzf")},
        "images uses the unknown filter",
    ),
    "unknown name": ({"surprise": array(np.zeros(N))}, "unknown data set surprise"),
    "missing column": ({"ids": lambda file, name: None}, "no data set ids"),
    "float images": ({"images": array(np.zeros((N, *SHAPE), np.float32))}, "images is float32"),
    "channels first": (
        {"images": array(np.zeros((N, 3, 8, 8), np.uint8))},
        r"asks for uint8 \(300",
    ),
    "other side": ({"images": array(np.zeros((N, 7, 7, 3), np.uint8))}, r"\(300, 7, 7, 3\)"),
    "float labels": ({"labels": array(np.zeros(N))}, "labels is float64"),
    "short column": ({"group": array(np.zeros(N - 1))}, r"group is float64 \(299,\)"),
}


@pytest.mark.parametrize(("replaced", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_not_a_plain_shard_is_refused_with_the_name(tmp_path, replaced, message):
    write_shard(tmp_path / "test-00000.h5", **replaced)
    with pytest.raises(DataError, match=message):
        read_all(tmp_path, adopt(tmp_path, tmp_path / "test-00000.h5"))


def test_the_plain_shard_that_hostile_ones_are_made_from_is_accepted(tmp_path):
    write_shard(tmp_path / "test-00000.h5")
    record = adopt(tmp_path, tmp_path / "test-00000.h5")
    np.testing.assert_array_equal(read_all(tmp_path, record).images, make_columns().images)


def test_a_chunk_too_large_to_read_is_refused(tmp_path):
    shape = (1 << 18, 40, 40, 1)  # deflated zeros: small on disk, 400 MiB in memory
    with h5py.File(tmp_path / "test-00000.h5", "w") as file:
        file.create_dataset("images", shape, "u1", chunks=shape, compression="gzip")
    record = dataclasses.replace(adopt(tmp_path, tmp_path / "test-00000.h5"), n=shape[0])
    with (
        closing(ShardReader(tmp_path, record, shape[1:])) as reader,
        pytest.raises(DataError, match="images has chunks"),
    ):
        reader.rows(0, 1)


def test_a_record_that_agrees_with_a_huge_shape_does_not_help_it(tmp_path):
    n = 1 << 40
    with h5py.File(tmp_path / "test-00000.h5", "w") as file:
        file.create_dataset("images", (n, *SHAPE), "u1", chunks=(1, *SHAPE))
    record = dataclasses.replace(adopt(tmp_path, tmp_path / "test-00000.h5"), n=n)
    with pytest.raises(DataError, match="images is larger than a shard may be"):
        read_all(tmp_path, record)


# Manifests


def make_manifest(*shards):
    return Manifest(
        name="tiny",
        image_shape=SHAPE,
        class_names=tuple("abcdefghij"),
        mean=(0.5, 0.5, 0.5),
        deviation=(0.25, 0.25, 0.25),
        label_source="given",
        generator={"source": "test"},
        shards=shards,
    )


def test_a_manifest_round_trips(tmp_path):
    manifest = make_manifest(publish(tmp_path))
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_a_manifest_that_lists_a_shard_outside_its_folder_is_refused(tmp_path):
    write_manifest(tmp_path, make_manifest(publish(tmp_path)))
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"split": "test"', '"split": "../test"'))
    with pytest.raises(DataError, match=r"split '\.\./test' is not one of test, reference"):
        read_manifest(tmp_path)


def test_a_manifest_counts_only_whole_blocks_of_the_stream():
    start = SPLIT_START["stream"]
    shard = ShardRecord(
        split="stream", index=0, first_id=start, n=2_000, n_bytes=1, sha256="", provenance={}
    )
    assert make_manifest(shard).n_stream == 1_024


def test_a_folder_without_a_manifest_is_refused_with_the_next_command(tmp_path):
    with pytest.raises(DataError, match="make generate"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema": 99}', b"\xff"])
def test_what_is_not_a_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="not a manifest"):
        read_manifest(tmp_path)


def test_no_flipped_byte_changes_what_is_read(tmp_path):
    record = publish(tmp_path, make_columns(n=20))
    path, expected = tmp_path / record.name, read_all(tmp_path, record)
    good = path.read_bytes()
    for position in range(0, len(good), 31):
        path.write_bytes(good)
        flip_byte(path, position)
        try:
            found = read_all(tmp_path, record)
        except DataError:
            continue
        np.testing.assert_array_equal(found.images, expected.images)  # it sat in padding
        np.testing.assert_array_equal(found.labels, expected.labels)
