"""A data set is valid when nothing about it is wrong; each test makes one thing wrong."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest

from bootstrap.dataset import collect_manifest
from bootstrap.errors import DataError
from bootstrap.files import file_sha256
from bootstrap.shards import (
    SPLIT_START,
    Columns,
    publish_shard,
    read_manifest,
    read_records,
    record_path,
    split_stop,
    write_manifest,
)
from bootstrap.verify import order_p_values, verify_data
from bootstrap.verify_run import verify_run

N_CLASSES = 10
SHARD = 1_024


def make_columns(split, n, seed, first=0, labels=None):
    rng = np.random.default_rng(seed)
    return Columns(
        images=rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
        labels=rng.integers(0, N_CLASSES, n) if labels is None else labels,
        ids=SPLIT_START[split] + first + np.arange(n),
    )


def publish(folder, split, index, columns):
    return publish_shard(folder, split, index, columns, 256, {"source": "test"})


def collect(folder):
    return collect_manifest(
        folder,
        name="tiny",
        image_shape=(8, 8, 3),
        class_names=tuple("0123456789"),
        label_source="given",
        generator={"source": "test"},
    )


def write_data(folder, stream_labels=None):
    """A valid data set: 50 test images, 60 of reference and four stream shards of a block each."""
    publish(folder, "test", 0, make_columns("test", 50, seed=100))
    publish(folder, "reference", 0, make_columns("reference", 60, seed=101))
    for index in range(4):
        first = index * SHARD
        labels = None if stream_labels is None else stream_labels[first : first + SHARD]
        columns = make_columns("stream", SHARD, index, first, labels)
        publish(folder, "stream", index, columns)
    collect(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def problems(folder):
    return [str(problem) for problem in verify_data(folder).problems]


def replace_shard(folder, split, index, columns):
    """Put another shard in place with records to match, as a buggy writer would leave it."""
    record = next(r for r in read_records(folder, split) if r.index == index)
    (folder / record.name).unlink()
    record_path(folder, record).unlink()
    publish(folder, split, index, columns)
    collect(folder)


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_valid_data_set_has_no_problems(data):
    report = verify_data(data)
    assert report.problems == ()
    assert report.n_shards == 6
    assert report.n_samples == {"test": 50, "reference": 60, "pretrain": 0, "stream": 4_096}
    report.raise_if_bad()


def test_a_data_set_without_problems_is_left_alone_by_repair(data):
    before = contents(data)
    assert verify_data(data, repair=True).removed == ()
    assert contents(data) == before


# One shard


def test_a_truncated_shard_is_reported_with_both_sizes(data):
    path = data / "stream-00002.h5"
    n_bytes = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = problems(data)
    assert problem.startswith("stream-00002.h5: wrong size")
    assert f"{n_bytes - 1} bytes, its record says {n_bytes}" in problem


@pytest.mark.parametrize("position", [20, 5_000, -1_000])
def test_a_flipped_byte_is_reported(data, position):
    flip_byte(data / "stream-00001.h5", position)
    (problem,) = problems(data)
    assert problem.startswith("stream-00001.h5: bytes have changed")


def test_a_flipped_byte_in_a_commit_record_is_reported(data):
    path = data / "stream-00001.json"
    path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0'))
    found = problems(data)
    assert found[0].startswith("stream-00001.h5: bytes have changed")
    assert found[1].startswith("manifest.json: does not agree with the commit records")


def test_a_commit_record_that_is_no_json_is_reported(data):
    (data / "stream-00001.json").write_bytes(b"{")
    assert problems(data)[0].startswith("stream-00001.json: not a commit record")


def test_a_shard_without_a_commit_record_is_reported(data):
    (data / "stream-00003.json").unlink()
    assert problems(data)[0].startswith("stream-00003.h5: no commit record")


def test_a_commit_record_without_a_shard_is_reported(data):
    (data / "test-00000.h5").unlink()
    assert problems(data)[0].startswith("test-00000.h5: no such file")


@pytest.mark.parametrize("label", [-1, N_CLASSES])
def test_a_label_out_of_range_is_reported_with_its_row(data, label, monkeypatch):
    monkeypatch.setattr("bootstrap.shards.check_columns", lambda columns, n_classes: None)
    columns = make_columns("test", 50, seed=100)
    columns.labels[[7, 9]] = label
    replace_shard(data, "test", 0, columns)
    (problem,) = problems(data)
    assert problem.startswith("test-00000.h5 row 7: impossible value")
    assert f"label {label} of id 7 is not in 0..9" in problem


def test_a_confidence_that_is_no_number_is_reported_with_its_row(data):
    confidence = np.ones(50)
    confidence[31] = np.nan
    columns = dataclasses.replace(
        make_columns("test", 50, seed=100), extra={"confidence": confidence}
    )
    replace_shard(data, "test", 0, columns)
    (problem,) = problems(data)
    assert problem.startswith("test-00000.h5 row 31: impossible value (confidence nan")


def test_another_shape_than_the_manifests_is_reported(data):
    columns = make_columns("test", 50, seed=100)
    columns = dataclasses.replace(columns, images=columns.images[:, 1:])
    replace_shard(data, "test", 0, columns)
    (problem,) = problems(data)
    assert "(50, 7, 8, 3); the manifest asks for uint8 (50, 8, 8, 3)" in problem


def test_a_shard_of_constant_images_is_reported(data):
    columns = make_columns("test", 50, seed=100)
    columns.images[:] = np.arange(50)[:, None, None, None]
    replace_shard(data, "test", 0, columns)
    (problem,) = problems(data)
    assert problem.startswith("test-00000.h5: only constant images")


def test_one_constant_image_is_not_a_problem(data):
    columns = make_columns("test", 50, seed=100)
    columns.images[3] = 0
    replace_shard(data, "test", 0, columns)
    assert problems(data) == []


# Shards together


def test_a_gap_between_shards_is_reported(data):
    for suffix in ("h5", "json"):
        (data / f"stream-00001.{suffix}").unlink()
    found = problems(data)
    assert found[0].startswith("stream-00002.h5: a gap in the ids")
    assert found[1].startswith("manifest.json: does not agree with the commit records")


def test_ids_that_do_not_follow_are_reported(tmp_path):
    write_data(tmp_path)
    columns = make_columns("stream", 10, seed=9, first=4 * SHARD + 1)
    publish(tmp_path, "stream", 4, columns)
    assert problems(tmp_path)[0].startswith("stream-00004.h5: a gap in the ids")


def test_ids_of_another_split_are_reported(data, monkeypatch):
    monkeypatch.setitem(SPLIT_START, "reference", 40)
    assert any(p.startswith("test-00000.h5: ids of another split") for p in problems(data))


def test_an_image_that_is_in_two_splits_is_reported_with_both_places(data):
    columns = make_columns("stream", SHARD, 2, 2 * SHARD)
    columns.images[77] = make_columns("test", 50, seed=100).images[13]
    replace_shard(data, "stream", 2, columns)
    (problem,) = problems(data)
    assert problem.startswith("stream-00002.h5 row 77: the image of test-00000.h5 row 13 again")
    assert "1 images are there more than once" in problem


def test_an_image_that_is_twice_in_one_shard_is_reported(data):
    columns = make_columns("stream", SHARD, 2, 2 * SHARD)
    columns.images[77] = columns.images[76]
    replace_shard(data, "stream", 2, columns)
    (problem,) = problems(data)
    assert problem.startswith("stream-00002.h5 row 77: the image of stream-00002.h5 row 76 again")


def test_an_image_that_differs_in_one_bit_is_another_image(data):
    columns = make_columns("stream", SHARD, 2, 2 * SHARD)
    columns.images[77] = columns.images[76]
    columns.images[77, 0, 0, 0] ^= 1
    replace_shard(data, "stream", 2, columns)
    assert problems(data) == []


# rows of the first shard of each split, and the seed of its images
SPLIT_SEEDS = {"test": (50, 100), "reference": (60, 101), "stream": (SHARD, 0)}


def plant(folder, split, row, image):
    """Put an image into a shard of a split, with records to match."""
    n, seed = SPLIT_SEEDS[split]
    index = 2 if split == "stream" else 0
    columns = make_columns(split, n, seed + index, index * SHARD)
    columns.images[row] = image
    replace_shard(folder, split, index, columns)


@pytest.mark.parametrize("source", SPLIT_SEEDS)
@pytest.mark.parametrize("target", SPLIT_SEEDS)
def test_a_planted_image_is_refused_whichever_split_it_is_from_and_in(
    data, deep_bootstrap, source, target
):
    n, seed = SPLIT_SEEDS[source]
    plant(data, target, 41, make_columns(source, n, seed).images[7])
    code, _, err = deep_bootstrap("verify", data)
    assert code == 3
    assert "1 images are there more than once; fresh samples must be new" in err
    places = {"test": "test-00000.h5", "reference": "reference-00000.h5"}
    assert places.get(source, "stream-00000.h5 row 7") in err
    assert f"{places.get(target, 'stream-00002.h5')} row 41" in err


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda image: image[:, ::-1], "mirrored"),
        (lambda image: image ^ 1, "but for the least bit"),
    ],
    ids=["mirrored", "least bit"],
)
def test_a_planted_near_duplicate_is_counted_and_shown_and_valid(data, deep_bootstrap, change, how):
    plant(data, "stream", 41, change(make_columns("test", 50, seed=100).images[7]))
    code, out, _ = deep_bootstrap("verify", data, "--deep")
    assert code == 0
    assert "near-duplicates (least bit or mirrored): stream in test 1" in out
    assert f"  stream id {SPLIT_START['stream'] + 2 * SHARD + 41} is test id 7 {how}" in out
    assert "near-duplicates" not in deep_bootstrap("verify", data)[1]


def test_a_data_set_without_near_duplicates_says_so(data):
    assert verify_data(data, deep=True).describe().endswith("(least bit or mirrored): none")


def test_an_equal_image_is_refused_and_no_near_duplicate(data):
    plant(data, "stream", 41, make_columns("test", 50, seed=100).images[7])
    report = verify_data(data, deep=True)
    assert len(report.problems) == 1
    assert report.near_duplicates == ()


def test_near_duplicates_are_looked_for_in_the_shards_that_are_whole(data):
    plant(data, "stream", 41, make_columns("test", 50, seed=100).images[7][:, ::-1])
    flip_byte(data / "stream-00001.h5", 5_000)
    report = verify_data(data, deep=True)
    assert [pair.first_id for pair in report.near_duplicates] == [7]


def test_only_the_first_near_duplicates_are_shown_but_all_are_counted(data):
    columns = make_columns("stream", SHARD, 2, 2 * SHARD)
    columns.images[:8] = make_columns("test", 50, seed=100).images[:8, :, ::-1]
    replace_shard(data, "stream", 2, columns)
    text = verify_data(data, deep=True).describe()
    assert "stream in test 8" in text
    assert text.count(" is test id ") == 5


def test_no_two_splits_can_ever_hold_the_same_id():
    ranges = sorted((start, split_stop(split)) for split, start in SPLIT_START.items())
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ranges))
    assert ranges[0][0] == 0


def test_a_shard_written_twice_under_other_ids_is_reported(data):
    replace_shard(data, "stream", 3, make_columns("stream", SHARD, 2, 3 * SHARD))
    found = problems(data)
    assert len(found) == 5
    assert found[0].startswith("stream-00003.h5 row 0: the image of stream-00002.h5 row 0 again")
    assert "1024 images are there more than once" in found[0]


# Order


def test_a_stream_that_is_sorted_by_class_is_reported(tmp_path):
    write_data(tmp_path, np.sort(np.random.default_rng(0).integers(0, N_CLASSES, 4 * SHARD)))
    (problem,) = problems(tmp_path)
    assert problem.startswith("stream-*.h5: not in random order")
    assert "more than chance allows" in problem


def test_labels_dealt_in_turn_are_reported(tmp_path):
    write_data(tmp_path, np.arange(4 * SHARD) % N_CLASSES)
    (problem,) = problems(tmp_path)
    assert "less than chance allows" in problem


@pytest.mark.parametrize("n_classes", [2, 10, 100, 1_000])
def test_iid_labels_are_accepted_for_any_number_of_classes(n_classes):
    for seed in range(20):
        labels = np.random.default_rng(seed).integers(0, n_classes, 50 * SHARD)
        assert min(order_p_values([labels], n_classes)) > 1e-4


def test_iid_labels_with_rare_classes_are_accepted():
    share = 0.5 ** np.arange(1, 21)
    for seed in range(20):
        labels = np.random.default_rng(seed).choice(20, 50 * SHARD, p=share / share.sum())
        assert min(order_p_values([labels], 20)) > 1e-4


@pytest.mark.parametrize("n_classes", [2, 10, 100, 1_000])
def test_sorted_labels_are_refused_for_any_number_of_classes(n_classes):
    labels = np.arange(10 * SHARD) * n_classes // (10 * SHARD)
    assert order_p_values([labels], n_classes)[0] < 1e-6


def test_labels_cut_into_shards_in_the_middle_of_a_block_are_joined():
    labels = np.random.default_rng(0).integers(0, 10, 5 * SHARD)
    assert order_p_values([labels[:700], labels[700:]], 10) == order_p_values([labels], 10)


@pytest.mark.parametrize("n", [0, 1, SHARD, 2 * SHARD - 1])
def test_fewer_than_two_blocks_cannot_be_out_of_order(n):
    assert order_p_values([np.zeros(n, dtype=np.int64)], 10) == (1.0, 1.0)


# The manifest


def test_a_missing_manifest_is_reported(data):
    (data / "manifest.json").unlink()
    (problem,) = problems(data)
    assert problem.startswith("manifest.json: not a manifest")


def test_damaged_shards_are_reported_without_a_manifest(data):
    (data / "manifest.json").unlink()
    flip_byte(data / "stream-00001.h5", 5_000)
    assert any(p.startswith("stream-00001.h5: bytes have changed") for p in problems(data))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [0.5]),
        ("deviation", [0.1, 0.0, 0.1]),
        ("mean", [0.1, "x", 0.1]),
        ("image_shape", [8, 8]),
        ("image_shape", [8, -8, 3]),
        ("class_names", []),
        ("class_names", ["a", "a"]),
    ],
)
def test_an_impossible_manifest_is_reported(data, key, value):
    path = data / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    (problem,) = problems(data)
    assert problem.startswith("manifest.json: not a manifest")


def test_a_manifest_that_lacks_a_shard_is_reported(data):
    manifest = read_manifest(data)
    write_manifest(data, dataclasses.replace(manifest, shards=manifest.shards[:-1]))
    (problem,) = problems(data)
    assert "stream-00003.h5 has no record in it" in problem


@pytest.mark.parametrize("key", ["mean", "deviation"])
def test_an_edited_normalisation_is_reported(data, key):
    path = data / "manifest.json"
    value = json.loads(path.read_text())
    value[key][1] += 1e-6
    path.write_text(json.dumps(value))
    (problem,) = problems(data)
    assert problem.startswith("manifest.json: not the normalisation of its images (the mean of")


def test_the_normalisation_of_a_reference_that_grew_is_that_of_its_beginning(data):
    publish(data, "reference", 1, make_columns("reference", 30, seed=102, first=60))
    collect(data)
    assert problems(data) == []


def test_the_normalisation_is_that_of_the_first_block_if_the_reference_came_later(tmp_path):
    publish(tmp_path, "stream", 0, make_columns("stream", 2 * SHARD, seed=0))
    collect(tmp_path)
    publish(tmp_path, "reference", 0, make_columns("reference", 60, seed=101))
    collect(tmp_path)
    assert problems(tmp_path) == []


def test_an_empty_folder_is_reported(tmp_path):
    assert problems(tmp_path)[0].startswith("manifest.json: not a manifest")


# Report and repair


def test_problems_raise_an_error_that_shows_the_first_of_them(data):
    replace_shard(data, "stream", 3, make_columns("stream", SHARD, 2, 3 * SHARD))
    (data / "stream-00000.h5").unlink()
    report = verify_data(data)
    with pytest.raises(DataError, match=r"6 problems\n.*stream-00000\.h5: no such file") as caught:
        report.raise_if_bad()
    assert caught.value.exit_code == 3
    assert "and 1 more" in str(caught.value)
    assert "6 problems" in report.describe()


def test_without_repair_nothing_is_deleted(data):
    flip_byte(data / "stream-00001.h5", 5_000)
    before = contents(data)
    verify_data(data)
    assert contents(data) == before


def test_repair_deletes_the_shards_that_fail_and_nothing_else(data):
    before = contents(data)
    flip_byte(data / "stream-00001.h5", 5_000)
    (data / "stream-00003.json").write_bytes(b"{")
    gone = {f"stream-0000{k}.{suffix}" for k in (1, 3) for suffix in ("h5", "json")}
    report = verify_data(data, repair=True)
    assert set(report.removed) == gone
    assert contents(data) == {name: content for name, content in before.items() if name not in gone}


def test_making_what_repair_deleted_gives_the_same_bytes(data):
    before = contents(data)
    flip_byte(data / "stream-00001.h5", 5_000)
    verify_data(data, repair=True)
    publish(data, "stream", 1, make_columns("stream", SHARD, 1, SHARD))
    collect(data)
    assert contents(data) == before
    assert problems(data) == []


def test_repair_keeps_shards_whose_only_fault_is_a_copied_image(data):
    replace_shard(data, "stream", 3, make_columns("stream", SHARD, 2, 3 * SHARD))
    before = contents(data)
    assert verify_data(data, repair=True).removed == ()
    assert contents(data) == before


def test_a_record_that_names_a_path_outside_the_folder_deletes_nothing_there(tmp_path):
    data = write_data(tmp_path / "data")
    outside = tmp_path / "test-00000.h5"
    outside.write_bytes(b"mine")
    path = data / "test-00000.json"
    path.write_text(path.read_text().replace('"split": "test"', '"split": "../test"'))
    verify_data(data, repair=True)
    assert outside.read_bytes() == b"mine"


def test_a_shard_of_wrong_bytes_with_a_record_to_match_is_refused_by_its_layout(data):
    path = data / "test-00000.h5"
    path.write_bytes(b"\0" * path.stat().st_size)  # allocated, never written
    record = data / "test-00000.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"sha256": file_sha256(path)}))
    assert problems(data)[0].startswith("test-00000.h5: not a shard of this data set")


# Runs


def write_run(folder, *rows):
    (folder / "seed-0").mkdir(parents=True)
    (folder / "pair.json").write_text('{"schema": 1, "run": "mine"}')
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "seed-0" / "ideal.jsonl").write_text(lines)
    return folder


def row(step, samples_seen):
    scores = {"test_error": 0.9, "test_soft_error": 0.9, "test_loss": 2.3}
    counts = {"samples_seen": samples_seen, "unique_samples_seen": samples_seen}
    return {"step": step, **counts, "ids_hash": "0", "lr": 0.1, **scores, "wall_s": 0.0}


def run_problems(folder):
    return [str(problem) for problem in verify_run(folder).problems]


def test_a_run_with_rows_in_order_has_no_problems(tmp_path):
    write_run(tmp_path, {"schema": 1, **row(0, 0)}, row(1, 32), row(2, 64))
    report = verify_run(tmp_path)
    assert report.problems == ()
    assert report.n_samples == {"seed-0/ideal.jsonl": 3}


def test_a_repeated_step_is_reported_with_its_row(tmp_path):
    write_run(tmp_path, row(0, 0), row(1, 32), row(1, 32))
    (problem,) = run_problems(tmp_path)
    assert problem.startswith("seed-0/ideal.jsonl row 3: ")
    assert "step 1 follows step 1" in problem


def test_samples_seen_that_fall_are_reported_with_their_row(tmp_path):
    write_run(tmp_path, row(0, 0), row(1, 32), row(2, 31))
    (problem,) = run_problems(tmp_path)
    assert "samples_seen 31 follows 32" in problem


def test_a_line_that_is_no_record_is_reported(tmp_path):
    write_run(tmp_path, row(0, 0), "nonsense", row(2, 64))
    (problem,) = run_problems(tmp_path)
    assert "ideal.jsonl:2" in problem


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_missing_or_bad_configuration_is_reported(tmp_path, content):
    write_run(tmp_path, row(0, 0))
    (tmp_path / "pair.json").unlink()
    if content is not None:
        (tmp_path / "pair.json").write_bytes(content)
    (problem,) = run_problems(tmp_path)
    assert problem.startswith("pair.json: not the configuration of a pair")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"test_error": 1.5}, "test_error: 1.5"),
        ({"ids_hash": 3}, "ids_hash: 3"),
        ({"accuracy": 0.5}, "'accuracy' was unexpected"),
    ],
)
def test_a_row_that_is_not_of_the_schema_is_reported(tmp_path, change, why):
    write_run(tmp_path, row(0, 0), row(1, 32) | change)
    (problem,) = run_problems(tmp_path)
    assert "row 2: " in problem
    assert why in problem


def test_a_pair_that_was_trained_is_of_the_schema(tmp_path, toy_data, flags):
    from bootstrap.models import MLP
    from bootstrap.pair import run_pair
    from bootstrap.recipe import Recipe

    recipe = Recipe(model=MLP(width=8, depth=1), n_steps=4, batch_size=8, every_step=True)
    folder = run_pair(recipe, toy_data, tmp_path, n_samples=(16,), flags=flags)
    assert verify_run(folder).problems == ()
    assert len(verify_run(folder).n_samples) == 4
