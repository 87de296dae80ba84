"""Batches are there before they are asked for, and are the same however they come."""

import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from test_paired import FLAGS, content
from tiny_pair import TINY

from bootstrap import feed as feed_module
from bootstrap.errors import DataError
from bootstrap.feed import N_AHEAD, Feed, read_ahead
from bootstrap.pair import run_pair
from bootstrap.pool import Pool
from bootstrap.worlds import SeedOrder, World

CPU = torch.device("cpu")


@pytest.fixture
def pool(toy_data):
    with closing(Pool(toy_data, "stream")) as pool:
        yield pool


def build_feed(pool, n_samples, n_steps=10):
    return Feed(
        pool=pool,
        order=SeedOrder(pool_n_samples=2_048, seed=3),
        world=World(n_samples=n_samples, seed=3),
        batch_size=48,
        n_steps=n_steps,
        device=CPU,
    )


@pytest.fixture(params=["streamed", "resident"])
def how(request, monkeypatch):
    if request.param == "resident":
        monkeypatch.setattr(feed_module, "free_bytes", lambda device: 10**9)
    return request.param


@pytest.mark.parametrize("n_samples", [2_048, 100], ids=["fresh", "re-used"])
def test_batches_are_the_rows_of_the_worlds_ids(pool, how, n_samples):
    feed = build_feed(pool, n_samples)
    assert (feed.resident is not None) == (how == "resident")
    with closing(feed.batches(2, 10)) as batches:
        found = list(batches)
    assert len(found) == 8
    for step, batch in enumerate(found, start=2):
        ids = feed.order.ids(feed.world.positions(step, 48))
        rows = pool.rows(ids)
        np.testing.assert_array_equal(batch.ids, ids)
        np.testing.assert_array_equal(batch.images, rows.images)
        np.testing.assert_array_equal(batch.labels, rows.labels)


@pytest.mark.usefixtures("no_figure")
def test_a_run_has_the_same_bytes_whether_its_samples_are_resident_or_not(
    toy_data, tmp_path, monkeypatch
):
    streamed = run_pair(TINY, toy_data, tmp_path / "a", n_samples=(48,), flags=FLAGS)
    monkeypatch.setattr(feed_module, "free_bytes", lambda device: 10**9)
    resident = run_pair(TINY, toy_data, tmp_path / "b", n_samples=(48,), flags=FLAGS)
    assert content(streamed) == content(resident)


@pytest.mark.parametrize(("n_samples", "n_held"), [(2_048, 480), (100, 100)])
def test_only_the_samples_that_are_used_are_resident(pool, monkeypatch, n_samples, n_held):
    needed = 2 * n_held * 8 * 8 * 3
    monkeypatch.setattr(feed_module, "free_bytes", lambda device: needed)
    assert len(build_feed(pool, n_samples).resident.labels) == n_held
    monkeypatch.setattr(feed_module, "free_bytes", lambda device: needed - 1)
    assert build_feed(pool, n_samples).resident is None


def test_nothing_is_resident_on_a_cpu(pool):
    assert build_feed(pool, 100).resident is None


@pytest.mark.parametrize(("first", "stop"), [(0, 0), (3, 3), (0, 1), (2, 4), (0, 50)])
def test_what_is_read_ahead_comes_in_order(first, stop):
    assert list(read_ahead(lambda k: k, first, stop)) == list(range(first, stop))


def test_reading_is_a_few_ahead_and_no_more():
    begun = []
    with closing(read_ahead(begun.append, 0, 50)) as values:
        for _ in range(5):
            next(values)
    assert 5 <= len(begun) <= 5 + N_AHEAD


def test_the_next_is_read_while_one_is_used():
    is_read = threading.Event()

    def read(k):
        if k == 1:
            is_read.set()

    with closing(read_ahead(read, 0, 50)) as values:
        next(values)
        assert is_read.wait(timeout=10)


def test_an_error_comes_at_its_own_step():
    def read(k):
        if k == 3:
            raise DataError("gone")
        return k

    with closing(read_ahead(read, 0, 10)) as values:
        assert [next(values) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DataError, match="gone"):
            next(values)


def test_no_thread_is_left_behind():
    before = threading.active_count()
    with closing(read_ahead(lambda k: k, 0, 50)) as values:
        next(values)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
