"""Generating a data set: pure in the id, resumable, extendable, never mixed."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from bootstrap.errors import ConfigurationError, DataError, Interrupted, NumericError
from bootstrap.pool import Pool
from bootstrap.shards import SPLIT_START, Columns
from generators.label import class_of_ids
from generators.toy import ToySource
from generators.write import Labelling, generate, label_and_sample, refuse_constant

SOURCE = ToySource(side=8, n_channels=1)
SIZES = {"test": 300, "reference": 200, "stream": 5_000}


class FakeTeacher:
    """Labels an image by its brightness, so that about a tenth of the redraws agree."""

    sha256 = "fake"

    def probabilities(self, images):
        level = images.reshape(len(images), -1).mean(axis=1)
        guess = np.floor(level * 7).astype(int) % 10
        return np.eye(10, dtype=np.float32)[guess] * 0.9 + 0.01


def all_bytes(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if not path.name.startswith(".lock")
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("write") / "toy"
    generate(SOURCE, folder, SIZES)
    return folder


def test_the_stream_is_rounded_up_to_whole_blocks(data):
    assert Pool(data, "stream").n == 5_120


def test_the_splits_have_ids_of_their_own(data):
    for split, n in (("test", 300), ("reference", 200), ("stream", 5_120)):
        ids = Pool(data, split).first(10_000).ids
        np.testing.assert_array_equal(ids, SPLIT_START[split] + np.arange(n))


def test_generating_again_changes_no_byte(data):
    before = all_bytes(data)
    generate(SOURCE, data, SIZES)
    assert all_bytes(data) == before


def test_a_complete_data_set_does_not_care_what_hardware_made_it(tmp_path, monkeypatch):
    generate(SOURCE, tmp_path, SIZES)
    before = all_bytes(tmp_path)
    elsewhere = {**SOURCE.provenance(), "torch": "another", "execution": {"n_threads": 64}}
    monkeypatch.setattr(ToySource, "provenance", lambda self: elsewhere)
    generate(SOURCE, tmp_path, SIZES)
    assert all_bytes(tmp_path) == before
    with pytest.raises(ConfigurationError, match="--accept-new-bytes"):
        generate(SOURCE, tmp_path, {**SIZES, "test": 400})
    generate(SOURCE, tmp_path, {**SIZES, "test": 400}, accept_new_bytes=True)
    assert Pool(tmp_path, "test").n == 400


def test_mixed_devices_may_differ_in_their_model_alone(tmp_path, monkeypatch):
    larger = {**SIZES, "test": 400}
    generate(SOURCE, tmp_path, SIZES)
    provenance = SOURCE.provenance()
    monkeypatch.setattr(ToySource, "provenance", lambda self: {**provenance, "torch": "another"})
    with pytest.raises(ConfigurationError, match="torch"):
        generate(SOURCE, tmp_path, larger, allow_mixed_devices=True)
    monkeypatch.setattr(ToySource, "provenance", lambda self: {**provenance, "hardware": "H100"})
    generate(SOURCE, tmp_path, larger, allow_mixed_devices=True)
    assert Pool(tmp_path, "test").n == 400


def test_extending_keeps_every_shard_that_was_there(tmp_path):
    generate(SOURCE, tmp_path, {**SIZES, "stream": 2_048})
    before = {k: v for k, v in all_bytes(tmp_path).items() if k != "manifest.json"}
    generate(SOURCE, tmp_path, SIZES)
    after = all_bytes(tmp_path)
    assert before.items() <= after.items()


def test_an_extended_stream_holds_the_same_samples_as_one_made_at_once(tmp_path, data):
    generate(SOURCE, tmp_path, {**SIZES, "stream": 2_048})
    generate(SOURCE, tmp_path, SIZES)
    extended, at_once = Pool(tmp_path).first(5_120), Pool(data).first(5_120)
    np.testing.assert_array_equal(extended.images, at_once.images)
    np.testing.assert_array_equal(extended.labels, at_once.labels)


def test_a_stopped_generation_goes_on_to_the_same_bytes(tmp_path, data):
    with pytest.raises(Interrupted):
        generate(SOURCE, tmp_path, SIZES, is_interrupted=lambda: True)
    assert not (tmp_path / "manifest.json").exists()
    generate(SOURCE, tmp_path, SIZES)
    assert all_bytes(tmp_path) == all_bytes(data)


def test_shards_that_were_made_but_cannot_be_seen_are_not_passed_over(tmp_path):
    generate(SOURCE, tmp_path, {"test": 300, "reference": 200})
    with pytest.raises(DataError, match="stream are to be seen here; run the same command again"):
        generate(SOURCE, tmp_path, SIZES, make_all=lambda job, shards, *_: len(shards))


def test_a_truncated_shard_is_made_again(tmp_path, data):
    generate(SOURCE, tmp_path, SIZES)
    shard = tmp_path / "stream-00001.h5"
    shard.write_bytes(shard.read_bytes()[:1_000])
    generate(SOURCE, tmp_path, SIZES)
    assert all_bytes(tmp_path) == all_bytes(data)


def test_a_shard_without_its_record_is_not_counted_and_made_again(tmp_path, data):
    generate(SOURCE, tmp_path, SIZES)
    (tmp_path / "stream-00001.json").unlink()
    generate(SOURCE, tmp_path, SIZES)
    assert all_bytes(tmp_path) == all_bytes(data)


def test_a_lost_shard_in_the_middle_is_made_again(tmp_path, data):
    generate(SOURCE, tmp_path, SIZES)
    for suffix in ("h5", "json"):
        (tmp_path / f"stream-00000.{suffix}").unlink()
    generate(SOURCE, tmp_path, SIZES)
    assert all_bytes(tmp_path) == all_bytes(data)


@pytest.mark.parametrize("change", [{"noise": 0.2}, {"seed": 1}, {"n_modes": 3}], ids=str)
def test_a_folder_of_another_configuration_is_refused_naming_the_key(data, change):
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        generate(replace(SOURCE, **change), data, SIZES)


class Described(ToySource):
    """A toy whose provenance holds what a denoiser's does."""

    changes: ClassVar = {}

    def provenance(self):
        described = {"weights_sha256": "0", "sampler": {"n_steps": 8}, "hardware": "mine"}
        return {**super().provenance(), **described, **self.changes}


@pytest.mark.parametrize("accept_new_bytes", [False, True])
@pytest.mark.parametrize(
    "change", [{"weights_sha256": "1"}, {"sampler": {"n_steps": 4}}], ids=["weights", "sampler"]
)
def test_other_weights_and_another_sampler_are_refused_whatever_is_accepted(
    tmp_path, monkeypatch, change, accept_new_bytes
):
    generate(Described(side=8), tmp_path, {"test": 10, "reference": 10})
    before = all_bytes(tmp_path)
    monkeypatch.setattr(Described, "changes", change)
    with pytest.raises(ConfigurationError, match=f"made in another way: {next(iter(change))}"):
        generate(Described(side=8), tmp_path, {"test": 20}, accept_new_bytes=accept_new_bytes)
    assert all_bytes(tmp_path) == before


def test_other_hardware_is_refused_unless_its_bytes_are_accepted(tmp_path, monkeypatch):
    generate(Described(side=8), tmp_path, {"test": 10, "reference": 10})
    monkeypatch.setattr(Described, "changes", {"hardware": "another"})
    with pytest.raises(ConfigurationError, match="pass --accept-new-bytes"):
        generate(Described(side=8), tmp_path, {"test": 20})
    manifest = generate(Described(side=8), tmp_path, {"test": 20}, accept_new_bytes=True)
    assert [shard.provenance["hardware"] for shard in manifest.split("test")] == ["mine", "another"]


def test_a_sampler_that_fails_later_leaves_the_shards_before_it_and_goes_on(tmp_path, data):
    class FailsLater(ToySource):
        def sample(self, ids, labels, attempts):
            if SPLIT_START["stream"] + 4_100 in ids:
                raise NumericError(f"ids {ids[:1]}: the sampler returned NaN or infinity")
            return super().sample(ids, labels, attempts)

    with pytest.raises(NumericError, match="ids"):
        generate(FailsLater(side=8, n_channels=1), tmp_path, SIZES)
    whole = all_bytes(data)
    assert all_bytes(tmp_path) == {
        name: content
        for name, content in whole.items()
        if name != "manifest.json" and "stream-00001" not in name
    }
    generate(SOURCE, tmp_path, SIZES)
    assert all_bytes(tmp_path) == whole


def test_two_workers_with_one_seed_never_make_the_same_sample():
    ids = SPLIT_START["stream"] + np.arange(512)
    halves = [
        label_and_sample(SOURCE, part, Labelling(), lambda n: None)
        for part in (ids[::2], ids[1::2])
    ]
    assert len({image.tobytes() for columns in halves for image in columns.images}) == 512


def test_the_class_of_an_id_depends_on_the_id_alone():
    ids = SPLIT_START["stream"] + np.arange(5_000)
    shuffled = np.random.default_rng(0).permutation(5_000)
    classes = class_of_ids(ids, 10)
    np.testing.assert_array_equal(class_of_ids(ids[shuffled], 10), classes[shuffled])


def test_classes_are_drawn_independently_not_in_turn():
    classes = class_of_ids(np.arange(10_240), 10)
    counts = np.bincount(classes, minlength=10)
    assert 20 < counts.std() < 60  # binomial: 30; in turn: 0
    assert abs((classes[1:] == classes[:-1]).mean() - 0.1) < 0.01


def test_teacher_labels_are_what_the_teacher_says():
    ids, teacher = np.arange(200), FakeTeacher()
    columns = label_and_sample(
        SOURCE, ids, Labelling(mode="teacher", teacher=teacher), lambda n: None
    )
    expected = teacher.probabilities(columns.images)
    np.testing.assert_array_equal(columns.labels, expected.argmax(axis=1))
    np.testing.assert_allclose(columns.extra["confidence"], expected.max(axis=1))


def test_agree_keeps_the_class_and_redraws_until_the_teacher_agrees():
    ids, teacher = np.arange(200), FakeTeacher()
    columns = label_and_sample(
        SOURCE, ids, Labelling(mode="agree", teacher=teacher), lambda n: None
    )
    np.testing.assert_array_equal(columns.labels, class_of_ids(ids, 10))
    agreed = teacher.probabilities(columns.images).argmax(axis=1) == columns.labels
    np.testing.assert_array_equal(columns.extra["agreed"], agreed)
    assert agreed.mean() > 0.5
    assert columns.extra["attempt"].max() > 0


def test_an_id_that_never_agrees_keeps_attempt_0():
    ids, teacher = np.arange(200), FakeTeacher()
    columns = label_and_sample(
        SOURCE, ids, Labelling(mode="agree", teacher=teacher), lambda n: None
    )
    never = ~columns.extra["agreed"]
    assert never.any()
    assert (columns.extra["attempt"][never] == 0).all()
    first = SOURCE.sample(ids[never], columns.labels[never], np.zeros(never.sum(), dtype=int))
    np.testing.assert_array_equal(columns.images[never], first)


def test_a_redraw_is_the_same_whatever_else_is_redrawn():
    labelling = Labelling(mode="agree", teacher=FakeTeacher())
    many = label_and_sample(SOURCE, np.arange(64), labelling, lambda n: None)
    few = label_and_sample(SOURCE, np.arange(32, 64), labelling, lambda n: None)
    np.testing.assert_array_equal(few.images, many.images[32:])


def test_images_of_a_single_colour_are_refused(tmp_path):
    class Black(ToySource):
        def sample(self, ids, labels, attempts):
            images = super().sample(ids, labels, attempts)
            images[3] = 0
            return images

    with pytest.raises(NumericError, match="single colour"):
        generate(Black(side=8), tmp_path, {"test": 10})
    assert not list(tmp_path.glob("*.h5"))


@pytest.fixture(params=[1, 3])
def columns(request):
    images = np.zeros((5, 4, 4, request.param), dtype=np.uint8) + np.arange(request.param) * 7
    images[:, 1, 2, -1] = 255
    return Columns(images=images.astype(np.uint8), labels=np.arange(5), ids=np.arange(5))


@pytest.mark.parametrize("pixel", [(0, 0), (3, 3)])
def test_one_pixel_of_another_colour_saves_an_image(columns, pixel):
    columns.images[3, 1, 2] = columns.images[3, 0, 0]
    columns.images[(3, *pixel)][-1] += 1
    refuse_constant(columns)


def test_an_image_of_a_single_colour_is_named_whatever_the_colour(columns):
    columns.images[3, 1, 2] = columns.images[3, 0, 0]
    with pytest.raises(NumericError, match=r"ids \[3\]"):
        refuse_constant(columns)


def test_teacher_labels_without_a_teacher_are_refused():
    with pytest.raises(ConfigurationError, match="teacher"):
        Labelling(mode="agree")
