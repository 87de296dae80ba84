"""Data conditions: other labels, images or samples, by a hash of the id, alike in both worlds."""

import json
from contextlib import closing
from dataclasses import replace

import h5py
import numpy as np
import pytest
from test_paired import FLAGS
from tiny_pair import TINY

from bootstrap.errors import ConfigurationError, NotEnoughData
from bootstrap.filtered import kept_samples
from bootstrap.interventions import Choice
from bootstrap.interventions.label_noise import LabelNoise, LabelNoiseTrainAndTest
from bootstrap.interventions.long_tail import LongTail, acceptance
from bootstrap.interventions.pruning import RandomPruning
from bootstrap.interventions.spurious import Spurious, palette
from bootstrap.interventions.superclasses import Superclasses
from bootstrap.pair import run_pair
from bootstrap.plan import plan_pair
from bootstrap.pool import Pool
from bootstrap.runlog import load_run
from bootstrap.verify_run import verify_run
from bootstrap.worlds import SeedOrder

pytestmark = pytest.mark.usefixtures("no_figure")
K = 10


def rows(data, split, *choices):
    """All samples of a split under these conditions."""
    plan = plan_pair(replace(TINY, choices=choices), data, data, n_samples=(48,), flags=FLAGS)
    with closing(plan.pool(split)) as pool:
        return pool.first(pool.n)


def test_the_asked_share_of_training_labels_is_wrong_and_no_test_label(toy_data):
    noisy, plain = (rows(toy_data, "stream", *c) for c in ((LabelNoise(rate=0.4),), ()))
    assert (noisy.labels != plain.labels).mean() == pytest.approx(0.4, abs=0.03)
    np.testing.assert_array_equal(noisy.extra["true_label"], plain.labels)
    wrong = noisy.labels[noisy.labels != plain.labels]
    assert np.bincount(wrong, minlength=K).min() > 0.5 * len(wrong) / K
    tests = [rows(toy_data, "test", *c).labels for c in ((LabelNoise(rate=0.4),), ())]
    np.testing.assert_array_equal(*tests)


def test_test_labels_can_be_wrong_too(toy_data):
    noise = LabelNoiseTrainAndTest(rate=0.4)
    noisy, plain = (rows(toy_data, "test", *c).labels for c in ((noise,), ()))
    assert (noisy != plain).mean() == pytest.approx(0.4, abs=0.07)


def test_a_wrong_label_belongs_to_the_id_not_to_how_it_is_read(toy_data):
    plan = plan_pair(
        replace(TINY, choices=(LabelNoise(rate=0.5),)),
        toy_data,
        toy_data,
        n_samples=(48,),
        flags=FLAGS,
    )
    whole = rows(toy_data, "stream", LabelNoise(rate=0.5))
    index = np.array([1_500, 3, 1_023, 1_024, 3])
    with closing(plan.pool("stream")) as pool:
        found = pool.rows(whole.ids[index])
    np.testing.assert_array_equal(found.labels, whole.labels[index])
    np.testing.assert_array_equal(found.extra["true_label"], whole.extra["true_label"][index])


def test_records_have_the_training_error_by_true_labels_in_real_worlds_only(toy_data, tmp_path):
    recipe = replace(TINY, choices=(LabelNoise(rate=0.9),))
    folder = run_pair(recipe, toy_data, tmp_path, n_samples=(48, 96), flags=FLAGS)
    run = load_run(folder)
    for n in (48, 96):
        by_true = run.real[n].columns["extra.train_error_true_labels"]
        assert np.isfinite(by_true).all()
        assert (by_true != run.real[n].train_error).any()
    assert "extra" not in run.rows(0, "ideal")[-1]
    assert verify_run(folder).problems == ()


def test_an_n_that_is_asked_for_later_leaves_no_training_error_in_the_ideal_world(
    toy_data, tmp_path
):
    recipe = replace(TINY, choices=(LabelNoise(),), n_steps=120)
    run_pair(recipe, toy_data, tmp_path, n_samples=(96,), flags=FLAGS)
    folder = run_pair(recipe, toy_data, tmp_path, n_samples=(45 * 16,), flags=FLAGS)
    run = load_run(folder)
    assert 45 in run.steps
    assert all("extra" not in row for row in run.rows(0, "ideal"))


def test_superclasses_have_the_labels_of_their_groups_in_training_and_test(toy_data):
    choice = Superclasses(groups=((2, 3, 4, 5, 6, 7), (0, 1, 8, 9)))
    for split in ("stream", "test"):
        grouped, plain = (rows(toy_data, split, *c).labels for c in ((choice,), ()))
        np.testing.assert_array_equal(grouped, np.isin(plain, (0, 1, 8, 9)))


@pytest.mark.parametrize("groups", [((0, 1), (1,)), ((1, 2),), ((0, 2),)])
def test_groups_that_leave_a_class_out_or_hold_one_twice_are_refused(groups):
    with pytest.raises(ConfigurationError, match="must hold each class from 0 on once"):
        Superclasses(groups=groups)


def test_groups_of_fewer_classes_than_the_data_has_are_refused(toy_data):
    with pytest.raises(ConfigurationError, match="hold 3 classes, the data set has 10"):
        rows(toy_data, "stream", Superclasses(groups=((0, 1), (2,))))


def test_a_long_tail_has_the_asked_shares_and_a_balanced_test(toy_data):
    recipe = replace(TINY, choices=(LongTail(rho=10.0),))
    plan = plan_pair(recipe, toy_data, toy_data, n_samples=(48,), flags=FLAGS)
    order = plan.order(0)
    with closing(plan.pool("stream")) as pool:
        labels = pool.rows(order.ids(np.arange(plan.n_kept))).labels
        everything = pool.first(pool.n).labels
    shares = np.bincount(labels, minlength=K) / np.bincount(everything, minlength=K)
    np.testing.assert_allclose(shares, acceptance(K, 10.0), atol=0.1)
    assert shares[0] == 1
    test = rows(toy_data, "test", LongTail(rho=10.0))
    np.testing.assert_array_equal(test.ids, Pool(toy_data, "test").first(512).ids)


def test_the_real_world_has_the_first_n_that_are_kept(toy_data):
    recipe = replace(TINY, choices=(LongTail(rho=10.0),))
    plan = plan_pair(recipe, toy_data, toy_data, n_samples=(48,), flags=FLAGS)
    everything = SeedOrder(pool_n_samples=2_048, seed=3).ids(np.arange(2_048))
    kept = plan.order(3).ids(np.arange(plan.n_kept))
    at = np.flatnonzero(np.isin(everything, kept))
    np.testing.assert_array_equal(everything[at], kept)
    assert plan.order(3).n_drawn(48) == at[47] + 1


def test_a_pair_on_a_long_tail_says_how_many_samples_it_was_drawn_from(toy_data, tmp_path):
    recipe = replace(TINY, choices=(LongTail(rho=10.0),))
    folder = run_pair(recipe, toy_data, tmp_path, n_samples=(48,), flags=FLAGS)
    n_kept = json.loads((folder / "pair.json").read_bytes())["n_kept"]
    done = json.loads((folder / "seed-0" / "real-n48.done.json").read_bytes())
    assert n_kept < 2_048
    assert 48 < done["n_drawn"] < 48 * 2_048 / n_kept * 2
    run = load_run(folder)
    assert run.real[48].unique_samples_seen[0, -1] == 48
    np.testing.assert_array_equal(run.ideal.unique_samples_seen, run.ideal.samples_seen)
    assert verify_run(folder).problems == ()


def kept(data, *choices):
    """Which samples of the stream stay, and the names of the arrays that are read to find out."""
    names, read = set(), h5py.Dataset.__getitem__

    def noted(array, *args, **options):
        names.add(array.name)
        return read(array, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h5py.Dataset, "__getitem__", noted)
        return kept_samples.__wrapped__(data, choices, 2_048), names


def test_no_image_is_read_to_find_out_what_a_long_tail_keeps(toy_data):
    is_kept, names = kept(toy_data, LongTail(rho=10.0))
    assert 0 < is_kept.sum() < len(is_kept)
    assert names == {"/labels", "/ids"}


@pytest.mark.parametrize(
    "choice", [LabelNoise(), Spurious(), Superclasses(), RandomPruning(keep=0.5)], ids=str
)
def test_without_images_a_long_tail_keeps_what_it_keeps_with_them(toy_data, choice):
    found = []
    for looks in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LongTail, "looks_at_images", looks)
            found.append(kept(toy_data, choice, LongTail(rho=10.0)))
    assert ["/images" in names for _, names in found] == [False, True]
    np.testing.assert_array_equal(found[0][0], found[1][0])


def test_a_long_tail_is_of_the_labels_that_choices_before_it_made(toy_data):
    noise, tail = LabelNoise(rate=0.5), LongTail(rho=10.0)
    is_kept, _ = kept(toy_data, noise, tail)
    np.testing.assert_array_equal(is_kept, tail.keeps(rows(toy_data, "stream", noise), K))


class Bright(Choice):
    """Keeps what has a bright first pixel."""

    def keeps(self, columns, n_classes):
        return columns.images[:, 0, 0, 0] > 127


def test_a_choice_of_ones_own_that_filters_by_images_is_given_them(toy_data):
    is_kept, _ = kept(toy_data, LongTail(rho=1.0), Bright())
    images = Pool(toy_data).first(2_048).images
    np.testing.assert_array_equal(is_kept, images[:, 0, 0, 0] > 127)


def test_a_stream_with_too_few_samples_that_are_kept_is_refused_with_what_to_draw(toy_data):
    recipe = replace(TINY, choices=(LongTail(rho=100.0),), n_steps=100)
    with pytest.raises(NotEnoughData, match=r"samples that are kept, 1,600 are needed.*--n \d+"):
        plan_pair(recipe, toy_data, toy_data, n_samples=(48,), flags=FLAGS)


def test_a_painted_corner_agrees_with_the_class_as_often_as_asked(toy_data):
    painted = rows(toy_data, "stream", Spurious(agreement=(0.9, 0.5), size_px=2))
    agrees = painted.extra["attribute"] == painted.labels
    for environment, share in ((0, 0.9), (1, 0.5)):
        there = painted.extra["environment"] == environment
        assert there.mean() == pytest.approx(0.5, abs=0.05)
        assert agrees[there].mean() == pytest.approx(share, abs=0.05)
    test = rows(toy_data, "test", Spurious())
    assert (test.extra["attribute"] == test.labels).mean() == pytest.approx(0.1, abs=0.05)
    assert set(test.extra["environment"]) == {2}


def test_a_corner_has_the_colour_of_its_attribute_and_the_rest_is_left(toy_data):
    painted, plain = (rows(toy_data, "stream", *c) for c in ((Spurious(size_px=2),), ()))
    colours = palette(K, 3)[painted.extra["attribute"]]
    assert (painted.images[:, :2, :2] == colours[:, None, None]).all()
    np.testing.assert_array_equal(painted.images[:, 2:], plain.images[:, 2:])
    np.testing.assert_array_equal(
        painted.extra["group"], painted.labels * K + painted.extra["attribute"]
    )


def test_records_have_errors_by_group(toy_data, tmp_path):
    recipe = replace(TINY, choices=(Spurious(size_px=3),))
    folder = run_pair(recipe, toy_data, tmp_path, n_samples=(48,), flags=FLAGS)
    extra = load_run(folder).rows(0, "ideal")[-1]["extra"]
    assert extra["test_error_worst_group"] >= extra["test_error_conflicting"] > 0


class NeedsGroups(Choice):
    world_class = LabelNoise.world_class
    needs = ("group",)


def test_a_column_that_nobody_has_is_refused(toy_data):
    recipe = replace(TINY, choices=(NeedsGroups(),))
    with pytest.raises(
        ConfigurationError, match="needs the column group, which the data set has not"
    ):
        plan_pair(recipe, toy_data, toy_data, n_samples=(48,), flags=FLAGS)
    both = replace(TINY, choices=(Spurious(), NeedsGroups()))
    assert plan_pair(both, toy_data, toy_data, n_samples=(48,), flags=FLAGS)
