"""A pool finds rows by global id, across shards and blocks, in bounded memory."""

import multiprocessing
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from bootstrap import pool as pool_module
from bootstrap.dataset import collect_manifest
from bootstrap.errors import DataError
from bootstrap.pool import Pool
from bootstrap.shards import Columns, publish_shard
from bootstrap.worlds import BLOCK, STREAM_START

SHARD_SIZES = (1_500, 1_500, 1_096)  # shards and blocks do not end together
N = sum(SHARD_SIZES)


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    return Columns(
        images=rng.integers(0, 256, (N, 4, 4, 1), dtype=np.uint8),
        labels=rng.integers(0, 10, N),
        ids=STREAM_START + np.arange(N),
        extra={"confidence": rng.random(N, dtype=np.float32)},
    )


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    folder, start = tmp_path_factory.mktemp("pool"), 0
    for index, n in enumerate(SHARD_SIZES):
        publish_shard(folder, "stream", index, source.rows(slice(start, start + n)), 10, {})
        start += n
    collect_manifest(
        folder,
        name="pool",
        image_shape=(4, 4, 1),
        class_names=tuple("0123456789"),
        label_source="conditional",
        generator={},
    )
    return folder


@pytest.fixture
def pool(folder):
    with closing(Pool(folder)) as pool:
        yield pool


def assert_same(found, expected):
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.extra["confidence"], expected.extra["confidence"])


def test_rows_in_any_order_are_those_of_the_source(pool, source):
    index = np.random.default_rng(1).permutation(N)
    assert_same(pool.rows(STREAM_START + index), source.rows(index))


def test_a_row_may_be_asked_for_twice(pool, source):
    index = np.array([7, 3_000, 7, 2_047, 2_048, 7])
    assert_same(pool.rows(STREAM_START + index), source.rows(index))


def test_rows_of_one_block_across_two_shards_are_those_of_the_source(pool, source):
    index = np.arange(1_490, 1_510)[::-1]
    assert_same(pool.rows(STREAM_START + index), source.rows(index))


def test_a_single_row_is_found(pool, source):
    assert_same(pool.rows(np.array([STREAM_START + N - 1])), source.rows(slice(N - 1, N)))


def test_a_contiguous_read_across_all_shards_is_that_of_the_source(pool, source):
    assert_same(pool.read(10, N - 10), source.rows(slice(10, N - 10)))


def test_the_first_rows_are_those_of_the_source(pool, source):
    assert_same(pool.first(1_600), source.rows(slice(0, 1_600)))


def test_more_first_rows_than_there_are_is_all_of_them(pool, source):
    assert_same(pool.first(10 * N), source)


def test_chunks_hold_every_row_once_in_order(pool, source):
    chunks = list(pool.chunks(1_000))
    assert [len(chunk) for chunk in chunks] == [1_000] * 4 + [96]
    np.testing.assert_array_equal(np.concatenate([chunk.ids for chunk in chunks]), source.ids)


@pytest.mark.parametrize("id_", [STREAM_START - 1, STREAM_START + N, 0, -1])
def test_an_id_outside_the_split_is_refused_by_name(pool, id_):
    with pytest.raises(DataError, match=f"id {id_} is not in split stream"):
        pool.rows(np.array([STREAM_START, id_]))


def test_the_number_of_blocks_kept_is_bounded(pool, monkeypatch):
    monkeypatch.setattr(pool, "_max_blocks", 2)
    pool.rows(STREAM_START + np.random.default_rng(2).permutation(N))
    assert len(pool._blocks) == 2


@pytest.mark.parametrize(("n_samples", "n_blocks"), [(0, 1), (1, 2), (2 * 1_024, 3), (10**9, 4)])
def test_the_blocks_of_samples_that_repeat_are_kept_up_to_a_cap(
    pool, monkeypatch, n_samples, n_blocks
):
    monkeypatch.setattr(pool_module, "MIN_BLOCKS", 1)
    monkeypatch.setattr(pool, "_cap", 4)
    index = STREAM_START + np.arange(N)
    pool.rows(index)
    pool.keep(n_samples)
    assert len(pool._blocks) == n_blocks
    pool.rows(index)
    assert len(pool._blocks) == n_blocks


def test_few_shards_are_open_at_a_time(pool, source, monkeypatch):
    monkeypatch.setattr(pool_module, "MAX_OPEN", 1)
    pool = Pool(pool.folder, "stream", pool.manifest)
    index = np.random.default_rng(2).permutation(N)[:500]
    assert_same(pool.rows(STREAM_START + index), source.rows(index))
    assert len(pool._readers) > 1
    assert sum(reader._file is not None for reader in pool._readers) == 1


def test_rows_are_right_when_there_are_more_blocks_than_are_kept(pool, source, monkeypatch):
    monkeypatch.setattr(pool, "_max_blocks", 1)
    index = np.random.default_rng(2).permutation(N)[:500]
    assert_same(pool.rows(STREAM_START + index), source.rows(index))


def test_a_block_in_use_is_read_once(pool, monkeypatch):
    reads = []
    read = pool.read
    monkeypatch.setattr(pool, "read", lambda a, b: reads.append((a, b)) or read(a, b))
    for _ in range(3):
        pool.rows(STREAM_START + np.arange(5))
    assert reads == [(0, BLOCK)]


def test_a_contiguous_read_keeps_no_block(pool):
    pool.first(N)
    assert len(pool._blocks) == 0


def test_a_missing_middle_shard_is_refused(pool, folder):
    first, _, last = pool.manifest.split("stream")
    with pytest.raises(DataError, match=r"stream-00002\.h5 starts at id 1000003000, not 10000015"):
        Pool(folder, "stream", replace(pool.manifest, shards=(first, last)))


def test_a_missing_first_shard_is_refused(pool, folder):
    with pytest.raises(DataError, match="a shard is missing"):
        Pool(folder, "stream", replace(pool.manifest, shards=pool.manifest.shards[1:]))


def test_an_empty_split_is_refused_by_name(folder):
    with pytest.raises(DataError, match="split test is empty"):
        Pool(folder, "test")


def test_a_closed_pool_opens_its_files_again(pool, source):
    pool.rows(np.array([STREAM_START]))
    pool.close()
    assert_same(pool.read(0, 5), source.rows(slice(0, 5)))


def save_rows(pool, ids, path):
    """What a child does with a pool that its parent had open."""
    rows = pool.rows(ids)
    np.savez(path, images=rows.images, labels=rows.labels, ids=rows.ids, **rows.extra)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, and so it is
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_any_kind_read_the_same_rows_from_a_pool_that_is_open(
    pool, source, tmp_path, method
):
    pool.rows(STREAM_START + np.array([0, 3_500]))  # opens two shards, and keeps two blocks
    index = np.random.default_rng(3).permutation(N)[:700]
    context = multiprocessing.get_context(method)
    paths = [tmp_path / f"{k}.npz" for k in range(2)]
    children = [
        context.Process(target=save_rows, args=(pool, STREAM_START + index, path)) for path in paths
    ]
    for child in children:
        child.start()
    assert_same(pool.rows(STREAM_START + index), source.rows(index))  # while they read
    for child, path in zip(children, paths, strict=True):
        child.join(60)
        assert child.exitcode == 0
        with np.load(path) as file:
            found = {name: file[name] for name in file}
        extra = {"confidence": found.pop("confidence")}
        assert_same(Columns(**found, extra=extra), source.rows(index))
    assert_same(pool.rows(STREAM_START + index[::-1]), source.rows(index[::-1]))
