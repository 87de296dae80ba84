"""A world says which sample is seen at which step, and nothing else differs between two worlds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.worlds import BLOCK, STREAM_START, SeedOrder, World, block_order, pass_order


def run(world, n_steps, batch_size):
    return np.concatenate([world.positions(step, batch_size) for step in range(n_steps)])


def endless(n_samples, seed, n):
    """The first `n` positions of a world, written down pass by pass."""
    stream = list(range(n_samples))
    p = 1
    while len(stream) < n:
        stream += pass_order(seed, p, n_samples).tolist()
        p += 1
    return np.array(stream[:n])


def test_worlds_agree_until_the_first_reuse():
    real, ideal = World(n_samples=10, seed=0), World(n_samples=1_024, seed=0)
    for step in range(real.first_reuse_step(5)):
        np.testing.assert_array_equal(real.positions(step, 5), ideal.positions(step, 5))


def test_worlds_differ_from_the_first_reuse_on():
    real, ideal = World(n_samples=10, seed=0), World(n_samples=1_024, seed=0)
    at = real.first_reuse_step(5)
    assert {*real.positions(at, 5)}.isdisjoint({*ideal.positions(at, 5)})


def test_the_real_world_sees_the_first_n_samples_only():
    assert {*run(World(n_samples=10, seed=0), 40, 5)} == {*range(10)}


def test_every_pass_visits_each_sample_once():
    passes = run(World(n_samples=12, seed=3), 30, 4).reshape(10, 12)
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(np.arange(12), (10, 1)))


def test_the_first_pass_counts_up():
    np.testing.assert_array_equal(run(World(n_samples=12, seed=3), 3, 4), np.arange(12))


def test_later_passes_have_orders_of_their_own():
    passes = run(World(n_samples=12, seed=3), 30, 4).reshape(10, 12)
    assert len({tuple(order) for order in passes.tolist()}) == 10


def test_other_seeds_reshuffle_in_other_ways():
    assert pass_order(0, 1, 50).tolist() != pass_order(1, 1, 50).tolist()


def test_a_batch_straddles_passes_if_n_is_not_a_multiple_of_it():
    batch = World(n_samples=10, seed=0).positions(2, 4)
    assert batch.tolist() == [8, 9, *pass_order(0, 1, 10)[:2]]


def test_a_batch_larger_than_n_spans_several_passes():
    counts = np.bincount(World(n_samples=3, seed=0).positions(0, 9))
    assert counts.tolist() == [3, 3, 3]


def test_the_ideal_world_never_repeats_within_the_pool():
    seen = run(World(n_samples=2_048, seed=5), 256, 8)
    assert len({*seen}) == 2_048


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    n_samples=st.integers(1, 60),
    seed=st.integers(0, 2**32),
    step=st.integers(0, 30),
    batch_size=st.integers(1, 20),
)
def test_any_step_of_any_world_can_be_replayed_alone(n_samples, seed, step, batch_size):
    pass_order.cache_clear()
    alone = World(n_samples=n_samples, seed=seed).positions(step, batch_size)
    whole = endless(n_samples, seed, (step + 1) * batch_size)
    np.testing.assert_array_equal(alone, whole[step * batch_size :])


def test_a_world_without_samples_is_refused():
    with pytest.raises(ValueError, match="n_samples=0 must be at least 1"):
        World(n_samples=0, seed=0)


def test_the_seed_order_holds_each_id_of_the_pool_once():
    ids = SeedOrder(pool_n_samples=8 * BLOCK, seed=1).ids(np.arange(8 * BLOCK))
    np.testing.assert_array_equal(np.sort(ids), STREAM_START + np.arange(8 * BLOCK))


def test_the_seed_order_shuffles_blocks_and_reads_each_in_sequence():
    ids = SeedOrder(pool_n_samples=8 * BLOCK, seed=1).ids(np.arange(8 * BLOCK))
    blocks = (ids - STREAM_START).reshape(8, BLOCK)
    np.testing.assert_array_equal(blocks, blocks[:, :1] + np.arange(BLOCK))
    assert (blocks[:, 0] % BLOCK == 0).all()
    assert blocks[:, 0].tolist() != sorted(blocks[:, 0])


def test_other_seeds_have_other_first_samples():
    firsts = {tuple(block_order(seed, 64)[:2].tolist()) for seed in range(5)}
    assert len(firsts) == 5


def test_the_order_of_blocks_is_not_that_of_a_pass():
    assert block_order(0, 16).tolist() != pass_order(0, 1, 16).tolist()


@pytest.mark.parametrize("pool_n_samples", [0, 1_000, BLOCK + 1, -BLOCK])
def test_a_pool_that_is_not_whole_blocks_is_refused(pool_n_samples):
    with pytest.raises(ValueError, match="only whole blocks are used"):
        SeedOrder(pool_n_samples=pool_n_samples, seed=0)
