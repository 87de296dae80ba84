"""For a training loop of your own: batches of a world, a split for torch, records that are read."""

import hashlib
import itertools
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_runs import scores
from torch.utils.data import DataLoader

from bootstrap import RunWriter, Scores, ShardDataset, World, load_runs, pool_n_samples, stream
from bootstrap.errors import DataError, NotEnoughData
from bootstrap.pool import Pool
from bootstrap.report import write_report
from bootstrap.verify_run import verify_run

README = Path(__file__).resolve().parent.parent / "README.md"
BATCH = 64


def long(value):
    return pytest.param(value, marks=pytest.mark.long)


def first_ids(data, world, n_steps):
    return [batch.ids for batch in itertools.islice(stream(data, world, BATCH), n_steps)]


# ---------------------------------------------------------------- stream


def test_both_worlds_of_a_seed_see_the_same_batches_until_the_first_reuse(toy_data):
    ideal = first_ids(toy_data, World(n_samples=pool_n_samples(toy_data), seed=1), 6)
    real = first_ids(toy_data, World(n_samples=4 * BATCH, seed=1), 6)
    np.testing.assert_array_equal(real[:4], ideal[:4])
    assert not np.isin(ideal[4:], real).any()
    assert np.isin(real[4:], real[:4]).all()


def test_a_batch_holds_the_images_and_labels_of_its_ids(toy_data):
    batch = next(stream(toy_data, World(n_samples=100, seed=0), BATCH))
    there = Pool(toy_data).rows(batch.ids)
    assert batch.images.dtype == np.uint8
    np.testing.assert_array_equal(batch.images, there.images)
    np.testing.assert_array_equal(batch.labels, there.labels)


def test_the_ideal_world_ends_where_it_would_repeat(toy_data):
    world = World(n_samples=pool_n_samples(toy_data), seed=0)
    batches = stream(toy_data, world, BATCH)
    assert sum(1 for _ in itertools.islice(batches, 2_048 // BATCH)) == 32
    with pytest.raises(NotEnoughData, match=r"step 32 needs 2,112 fresh samples.* holds 2,048"):
        next(batches)
    again = stream(toy_data, world, BATCH, allow_reuse=True)
    assert len(next(itertools.islice(again, 32, None))) == BATCH


def test_more_samples_than_there_are_is_refused_at_once(toy_data):
    with pytest.raises(NotEnoughData, match=r"holds 2,048 samples, not 4,096"):
        stream(toy_data, World(n_samples=4_096, seed=0), BATCH)


# ---------------------------------------------------------------- a split for torch


def test_an_image_is_normalised_as_in_a_run(toy_data):
    dataset = ShardDataset(toy_data, "reference")
    images = torch.stack([image for image, _ in dataset])
    assert images.shape == (256, 3, 8, 8)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        images.std(dim=(0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5, rtol=0
    )


def test_a_transform_gets_the_bytes(toy_data):
    image, label = ShardDataset(toy_data, "test", transform=lambda image: image)[3]
    row = Pool(toy_data, "test").first(4)
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), row.images[3])
    assert label == row.labels[3]


def test_a_data_set_has_its_length_and_nothing_beyond(toy_data):
    dataset = ShardDataset(toy_data, "test")
    assert len(dataset) == 512
    assert torch.equal(dataset[-1][0], dataset[511][0])
    with pytest.raises(IndexError, match="512"):
        dataset[512]


def test_an_empty_split_is_refused(toy_data):
    with pytest.raises(DataError, match="split pretrain is empty"):
        ShardDataset(toy_data, "pretrain")


def test_a_pickled_data_set_reads_the_same_and_carries_no_images(toy_data):
    dataset = ShardDataset(toy_data, "test")
    before = dataset[5][0]  # now 512 images of 192 bytes are in memory
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 512 * 192 / 2
    assert torch.equal(pickle.loads(pickled)[5][0], before)


def as_it_is(image):
    return image


@pytest.mark.parametrize("method", [None, "fork", *(long("spawn"), long("forkserver"))])
def test_a_loader_reads_every_sample_in_its_place(toy_data, method):
    dataset = ShardDataset(toy_data, "test", transform=as_it_is)
    assert len(dataset[5]) == 2  # open before the workers begin
    workers = {"num_workers": 2, "multiprocessing_context": method} if method else {}
    loader = DataLoader(dataset, batch_size=100, **workers)
    images, labels = map(torch.cat, zip(*loader, strict=True))
    there = Pool(toy_data, "test").first(512)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), there.images)
    np.testing.assert_array_equal(labels.numpy(), there.labels)


# ---------------------------------------------------------------- records


def test_scores_of_probabilities_are_means_over_images():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])
    found = Scores.of(probabilities, np.array([0, 1]))  # of two equal ones the first is predicted
    assert (found.error, found.soft_error) == (0.5, 0.5)
    assert found.loss == pytest.approx(np.log(2))


def test_a_writer_counts_the_samples_and_hashes_them_as_a_run_does(tmp_path):
    with RunWriter(tmp_path, "mine", 0, "real", 40) as writer:
        for ids in (np.arange(4), np.arange(2, 6)):
            writer.note(ids)
        writer.write_scores(2, test=scores(0.5), train=scores(0.25), lr=0.1)
    (row,) = load_runs(tmp_path)[0].rows(0, "real-n40")
    assert (row["samples_seen"], row["unique_samples_seen"]) == (8, 6)
    first = hashlib.sha256(hashlib.sha256().digest() + np.arange(4).tobytes())
    second = hashlib.sha256(first.digest() + np.arange(2, 6).tobytes())
    assert row["ids_hash"] == second.hexdigest()
    assert (row["test_error"], row["train_error"], row["lr"]) == (0.5, 0.25, 0.1)


def test_a_finished_world_is_complete_and_verified(tmp_path):
    with RunWriter(tmp_path, "mine", 0, "ideal") as writer:
        writer.write_scores(0, test=scores(0.5))
        assert load_runs(tmp_path)[0].status == "partial"
        writer.finish()
    assert load_runs(tmp_path)[0].status == "complete"
    verify_run(tmp_path / "mine").raise_if_bad()


# ---------------------------------------------------------------- the README's examples


def examples():
    """The README's blocks of Python for a loop of one's own, by what they show."""
    chapter = README.read_text(encoding="utf-8").split("## A training loop of your own")[1]
    blocks = re.findall(r"```python\n(.*?)```", chapter.split("\n## ")[0], re.DOTALL)
    names = ("ShardDataset", "RunWriter", "stream")
    return {next(name for name in names if name in block): block for block in blocks}


@pytest.fixture
def run_example(toy_data, tmp_path, monkeypatch):
    """Runs an example in a folder where the data set it names is the toy one."""

    def run(name):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "small-v2-teacher").symlink_to(toy_data)
        monkeypatch.chdir(tmp_path)
        known = {}
        exec(compile(examples()[name], f"README, {name}", "exec"), known)
        return known

    return run


def test_the_readme_has_an_example_of_each_in_twenty_lines_at_most():
    assert examples().keys() == {"ShardDataset", "stream", "RunWriter"}
    assert max(block.count("\n") for block in examples().values()) <= 20


def test_the_readme_example_of_a_data_set_reads_all_of_it(run_example):
    assert run_example("ShardDataset")["n_seen"] == 2_048


def test_the_readme_example_of_a_stream_leaves_the_other_world_at_the_first_reuse(run_example):
    known = run_example("stream")
    assert known["steps_with_equal_batches"] == list(range(500 // BATCH))


def test_the_readme_example_of_a_writer_is_read_plotted_reported_and_verified(
    run_example, tmp_path, deep_bootstrap
):
    run_example("RunWriter")
    (run,) = load_runs(tmp_path / "results")
    assert (run.status, run.n_samples) == ("complete", (500,))
    assert run.ideal.test_error[0, -1] < run.ideal.test_error[0, 0]  # it learns
    verify_run(run.path).raise_if_bad()
    assert deep_bootstrap("plot", tmp_path / "results")[0] == 0
    summary = json.loads((run.path / "summary.json").read_bytes())
    assert summary["n_samples"]["500"]["final_gap"]["error"]["mean"] is not None
    assert 'aria-label="Test error' in write_report(tmp_path / "results").read_text()
