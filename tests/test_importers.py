"""Real images become a data set: whole, aligned, in an order that only the seed decides."""

from contextlib import closing

import numpy as np
import pytest
from PIL import Image
from test_sources import write_mnist

from bootstrap.dataset import collect_manifest, normalisation
from bootstrap.errors import ConfigurationError, DataError, StorageError
from bootstrap.shards import (
    SPLIT_START,
    Columns,
    ShardReader,
    publish_shard,
    read_manifest,
    read_records,
)
from bootstrap.verify import check_used_shards, verify_data
from generators import importers
from generators.importers import (
    import_cifar5m,
    import_image_folder,
    import_npz,
    import_torchvision,
)
from generators.sources import LabelledImages

N_TRAIN, N_TEST = 3_000, 200


def numbered_images(first, n, side=8, channels=3):
    """Noise whose first four bytes say which row of the source an image is."""
    images = np.random.default_rng(first).integers(
        0, 256, (n, side * side * channels), dtype=np.uint8
    )
    images[:, :4] = (first + np.arange(n, dtype=np.uint32))[:, None].view(np.uint8)
    return images.reshape(n, side, side, channels)


def row_of(images):
    return images.reshape(len(images), -1)[:, :4].copy().view(np.uint32)[:, 0].astype(np.int64)


def label_of(rows, n_classes=10):
    return rows * 2_654_435_761 % (1 << 32) * n_classes >> 32


def write_part(path, first, n, labels=None, **options):
    labels = label_of(first + np.arange(n)) if labels is None else labels
    np.savez(path, X=numbered_images(first, n, **options), Y=labels)


def write_parts(folder, **options):
    """Three training parts and a test part; rows are numbered through them."""
    folder.mkdir(exist_ok=True)
    for k in range(3):
        write_part(folder / f"train-{k}.npz", 1_000 * k, 1_000, **options)
    write_part(folder / "test.npz", N_TRAIN, N_TEST, **options)
    return folder


def import_parts(folder, out, **options):
    options = {"name": "tiny", "train_pattern": "train*", "test_pattern": "test*"} | options
    return import_npz(folder, out, **options)


def read_split(folder, split):
    """All rows of a split."""
    shape = read_manifest(folder).image_shape
    columns = []
    for record in read_records(folder, split):
        with closing(ShardReader(folder, record, shape)) as reader:
            columns.append(reader.rows(0, record.n))
    return Columns(
        images=np.concatenate([c.images for c in columns]),
        labels=np.concatenate([c.labels for c in columns]),
        ids=np.concatenate([c.ids for c in columns]),
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in visible(folder)}


def visible(folder):
    """Every file but the lock, which names the last writer and its time."""
    return list(folder.glob("[!.]*"))


@pytest.fixture
def parts(tmp_path):
    return write_parts(tmp_path / "parts")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A finished import, for tests that only look."""
    folder = tmp_path_factory.mktemp("imported")
    import_parts(write_parts(folder / "parts"), folder / "data")
    return folder / "data"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(importers, "SHARD_N", 256)


# Which row goes where


def test_the_stream_is_whole_blocks_and_the_reference_the_rest(imported):
    manifest = read_manifest(imported)
    sizes = {split: manifest.n(split) for split in SPLIT_START}
    assert sizes == {"test": 200, "reference": 952, "pretrain": 0, "stream": 2_048}


def test_fifty_thousand_training_images_give_48_blocks_and_848_references(tmp_path, out):
    write_part(tmp_path / "train-0.npz", 0, 50_000, side=2, channels=1)
    write_part(tmp_path / "test.npz", 50_000, 20, side=2, channels=1)
    manifest = import_parts(tmp_path, out)
    assert (manifest.n("stream"), manifest.n("reference")) == (49_152, 848)


def test_a_larger_reference_is_taken_from_the_stream_in_whole_blocks(parts, out):
    manifest = import_parts(parts, out, n_reference=953)
    assert (manifest.n("stream"), manifest.n("reference")) == (1_024, 1_976)


@pytest.mark.parametrize("n_reference", [1_977, -1])
def test_a_reference_that_leaves_no_block_is_refused(parts, out, n_reference):
    with pytest.raises(ConfigurationError, match=f"n_reference={n_reference} of 3000"):
        import_parts(parts, out, n_reference=n_reference)


def test_every_row_is_in_exactly_one_split_and_test_rows_in_test(imported):
    rows = {s: row_of(read_split(imported, s).images) for s in ("stream", "reference", "test")}
    train = np.concatenate([rows["stream"], rows["reference"]])
    np.testing.assert_array_equal(np.sort(train), np.arange(N_TRAIN))
    np.testing.assert_array_equal(np.sort(rows["test"]), N_TRAIN + np.arange(N_TEST))


@pytest.mark.parametrize("split", ["stream", "reference", "test"])
def test_labels_belong_to_their_images(imported, split):
    columns = read_split(imported, split)
    np.testing.assert_array_equal(columns.labels, label_of(row_of(columns.images)))


@pytest.mark.parametrize("split", ["stream", "reference", "test"])
def test_ids_count_up_from_the_start_of_the_split(imported, split):
    ids = read_split(imported, split).ids
    np.testing.assert_array_equal(ids, SPLIT_START[split] + np.arange(len(ids)))


def test_the_images_are_those_of_the_parts_byte_for_byte(imported):
    found = read_split(imported, "test").images
    expected = numbered_images(N_TRAIN, N_TEST)
    np.testing.assert_array_equal(found, expected[row_of(found) - N_TRAIN])


def test_n_test_takes_the_first_rows_of_the_test_parts(parts, out):
    import_parts(parts, out, n_test=50)
    rows = row_of(read_split(out, "test").images)
    np.testing.assert_array_equal(np.sort(rows), N_TRAIN + np.arange(50))


@pytest.mark.parametrize("n_test", [0, N_TEST + 1])
def test_a_test_set_of_no_rows_or_more_than_there_are_is_refused(parts, out, n_test):
    with pytest.raises(ConfigurationError, match=f"n_test={n_test}"):
        import_parts(parts, out, n_test=n_test)


@pytest.mark.parametrize("split", ["stream", "test"])
def test_rows_are_not_in_the_order_of_the_source(imported, split):
    steps = np.diff(row_of(read_split(imported, split).images))
    assert 0.4 < (steps > 0).mean() < 0.6


def test_another_seed_gives_another_order(parts, tmp_path):
    import_parts(parts, tmp_path / "a")
    import_parts(parts, tmp_path / "b", seed=1)
    a, b = (row_of(read_split(tmp_path / name, "stream").images) for name in "ab")
    assert (a == b).mean() < 0.01


@pytest.mark.parametrize(("bucket", "chunk"), [(1, 1), (1_000 * 192, 77 * 192), (1 << 28, 1 << 26)])
def test_sizes_of_buckets_and_chunks_change_no_byte(
    parts, tmp_path, monkeypatch, small_shards, bucket, chunk
):
    import_parts(parts, tmp_path / "a")
    monkeypatch.setattr(importers, "BUCKET_BYTES", bucket)
    monkeypatch.setattr(importers, "CHUNK_BYTES", chunk)
    import_parts(parts, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# Running it again


def test_a_second_import_changes_no_file(parts, out):
    import_parts(parts, out)
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in visible(out)}
    import_parts(parts, out)
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in visible(out)} == before


@pytest.mark.parametrize("n_done", [0, 1, 5])
def test_an_interrupted_import_goes_on_to_the_same_bytes(
    parts, tmp_path, monkeypatch, small_shards, n_done
):
    import_parts(parts, tmp_path / "whole")
    calls = []

    def interrupted(*args):
        if len(calls) == n_done:
            raise KeyboardInterrupt
        calls.append(args)
        return publish_shard(*args)

    monkeypatch.setattr(importers, "publish_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_parts(parts, tmp_path / "resumed")
    assert len(visible(tmp_path / "resumed")) == 2 * n_done  # nothing but whole shards
    monkeypatch.setattr(importers, "publish_shard", publish_shard)
    import_parts(parts, tmp_path / "resumed")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_only_missing_shards_are_made_again(parts, out, monkeypatch, small_shards):
    import_parts(parts, out)
    before = contents(out)
    for suffix in ("h5", "json"):
        (out / f"stream-00003.{suffix}").unlink()
    made = []
    monkeypatch.setattr(
        importers, "publish_shard", lambda *args: made.append(args[1:3]) or publish_shard(*args)
    )
    import_parts(parts, out)
    assert made == [("stream", 3)]
    assert contents(out) == before


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"n_test": 10}, "n_test"),
        ({"n_reference": 953}, "n_stream"),
        ({"name": "other"}, "name"),
    ],
)
def test_a_folder_of_another_configuration_is_refused_with_the_keys(parts, out, change, key):
    import_parts(parts, out)
    before = contents(out)
    with pytest.raises(ConfigurationError, match=rf"differs in {key} \("):
        import_parts(parts, out, **change)
    assert contents(out) == before


def test_other_images_in_the_same_files_are_another_configuration(parts, out):
    import_parts(parts, out)
    write_part(parts / "train-1.npz", 77_000, 1_000)
    with pytest.raises(ConfigurationError, match="differs in train"):
        import_parts(parts, out)


def test_an_unfinished_folder_of_another_configuration_is_refused(parts, out):
    import_parts(parts, out)
    (out / "manifest.json").unlink()
    with pytest.raises(ConfigurationError, match="differs in seed"):
        import_parts(parts, out, seed=1)


def test_a_manifest_of_another_configuration_is_refused_though_its_shards_are_gone(parts, out):
    import_parts(parts, out)
    for path in out.glob("*-*"):
        path.unlink()
    with pytest.raises(ConfigurationError, match="differs in seed"):
        import_parts(parts, out, seed=1)


def test_a_full_disk_is_noticed_before_anything_is_written(parts, out, monkeypatch):
    monkeypatch.setattr("bootstrap.files.free_bytes", lambda path: 1_000)
    with pytest.raises(StorageError, match=r"1,280,000 bytes are needed, 1,000 are free"):
        import_parts(parts, out)
    assert not visible(out)


# What is refused


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)], ids=str)
def test_images_with_channels_first_exit_3_and_leave_nothing(deep_bootstrap, tmp_path, out, shape):
    for name, n in (("train-0", 1_100), ("test", 50)):
        np.savez(tmp_path / f"{name}.npz", X=np.zeros((n, *shape), np.uint8), Y=np.arange(n) % 10)
    code, _, err = deep_bootstrap("import", "npz", tmp_path, out)
    assert code == 3
    assert f"train-0.npz: X is uint8 {(1_100, *shape)}; " in err
    assert "channels last" in err
    assert not out.exists()


def test_a_label_out_of_range_is_refused_with_file_and_row(tmp_path, out):
    parts = write_parts(tmp_path / "parts")
    labels = label_of(np.arange(1_000))
    labels[17] = -1
    write_part(parts / "train-1.npz", 1_000, 1_000, labels=labels)
    with pytest.raises(DataError, match=r"train-1\.npz: row 17: label -1"):
        import_parts(parts, out)


def test_labels_that_overflowed_their_type_are_refused_with_the_first_bad_row(tmp_path, out):
    parts = write_parts(tmp_path / "parts")
    labels = (np.arange(1_000) % 200).astype(np.int8)  # 128 has become -128
    write_part(parts / "train-1.npz", 1_000, 1_000, labels=labels)
    with pytest.raises(DataError, match=r"train-1\.npz: row 128: label -128 is not in 0\.\."):
        import_parts(parts, out)


def relabel(parts, name, first, n, labels_by_row):
    labels = label_of(first + np.arange(n))
    labels[list(labels_by_row)] = list(labels_by_row.values())
    write_part(parts / name, first, n, labels=labels)


@pytest.mark.parametrize(
    ("name", "first", "label", "counts"),
    [
        ("train-1.npz", 1_000, 10, "1 training and 0 test images"),
        ("test.npz", N_TRAIN, 10, "0 training and 1 test images"),
        ("train-1.npz", 1_000, 57, "1 training and 0 test images, and no image has label 10"),
    ],
    ids=["in train", "in test", "after a gap"],
)
def test_a_stray_label_does_not_become_a_class(
    deep_bootstrap, parts, out, name, first, label, counts
):
    relabel(parts, name, first, N_TEST if first == N_TRAIN else 1_000, {17: label})
    code, _, err = deep_bootstrap("import", "npz", parts, out)
    assert code == 3
    assert f"{name}: row 17: label {label}, a class with {counts}; remove or relabel" in err
    assert f"--n-classes {label + 1}" in err
    assert not out.exists()


def test_a_label_that_no_image_has_is_a_gap(parts, out):
    for name, first, n in (("train-0.npz", 0, 1_000), ("test.npz", N_TRAIN, N_TEST)):
        relabel(parts, name, first, n, {5: 11})
    with pytest.raises(
        DataError, match=r"train-0\.npz: row 5: label 11, .* no image has label 10;"
    ):
        import_parts(parts, out)


def test_a_class_without_test_images_is_one_if_the_number_of_classes_says_so(parts, out):
    relabel(parts, "train-1.npz", 1_000, 1_000, {17: 10})
    manifest = import_parts(parts, out, n_classes=11)
    assert manifest.n_classes == 11
    assert "n_classes" not in manifest.generator  # its labels say so too


def test_more_classes_than_labels_are_part_of_the_configuration(parts, out):
    assert import_parts(parts, out, n_classes=12).n_classes == 12
    with pytest.raises(ConfigurationError, match=r"differs in n_classes \(12 there, None"):
        import_parts(parts, out)


def test_a_label_beyond_the_number_of_classes_is_refused_with_file_and_row(parts, out):
    with pytest.raises(DataError, match=r"train-0\.npz: row \d+: label 9 is not in 0\.\.8"):
        import_parts(parts, out, n_classes=9)


@pytest.mark.parametrize("n_classes", [0, -1, 65_537])
def test_a_number_of_classes_that_cannot_be_is_refused(parts, out, n_classes):
    with pytest.raises(ConfigurationError, match=f"n_classes={n_classes} must be in 1"):
        import_parts(parts, out, n_classes=n_classes)


def test_two_halves_with_other_classes_are_refused(monkeypatch, out):
    def read(name, root, train):
        rows = np.arange(1_100)
        names = tuple("0123456789") if train else (*"0123456789", "stray")
        images = numbered_images(0, 1_100)
        return LabelledImages(images=images, labels=label_of(rows), class_names=names)

    monkeypatch.setattr(importers, "read_torchvision", read)
    with pytest.raises(DataError, match="have different classes"):
        import_torchvision("USPS", out, out)
    assert not out.exists()


def test_parts_of_different_shapes_are_refused(parts, out):
    write_part(parts / "train-1.npz", 1_000, 1_000, side=7)
    with pytest.raises(DataError, match=r"train-1\.npz: images of \(7, 7, 3\)"):
        import_parts(parts, out)


def test_a_part_that_is_both_train_and_test_is_refused(parts, out):
    with pytest.raises(ConfigurationError, match=r"test\.npz matches both"):
        import_parts(parts, out, train_pattern="*.npz")


def test_too_few_images_for_a_block_are_refused(tmp_path, out):
    write_part(tmp_path / "train.npz", 0, 1_023)
    write_part(tmp_path / "test.npz", 1_023, 10)
    with pytest.raises(ConfigurationError, match="no block of 1,024"):
        import_parts(tmp_path, out)


# The manifest


def test_the_manifest_says_what_was_imported(imported):
    manifest = read_manifest(imported)
    assert (manifest.name, manifest.label_source) == ("tiny", "given")
    assert manifest.class_names == tuple("0123456789")
    assert manifest.generator["source"] == "import"
    assert [part["name"] for part in manifest.generator["test"]] == ["test.npz"]


def test_the_normalisation_is_that_of_the_reference(imported):
    manifest = read_manifest(imported)
    pixels = read_split(imported, "reference").images / 255
    np.testing.assert_allclose(manifest.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest.deviation, pixels.std(axis=(0, 1, 2)), rtol=1e-12)


def test_without_a_reference_the_normalisation_is_that_of_the_first_stream_block(tmp_path, out):
    write_part(tmp_path / "train.npz", 0, 2_048)
    write_part(tmp_path / "test.npz", 2_048, 20)
    manifest = import_parts(tmp_path, out)
    pixels = read_split(out, "stream").images[:1_024] / 255
    assert manifest.n("reference") == 0
    np.testing.assert_allclose(manifest.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)


def test_the_normalisation_of_a_long_stream_is_that_of_its_first_block_only(tmp_path):
    publish_rows(tmp_path, "stream", 0, 0, 1_024)
    before = collect(tmp_path)
    (tmp_path / "manifest.json").unlink()
    publish_rows(tmp_path, "stream", 1, 1_024, 1_024)
    assert collect(tmp_path).mean == before.mean


def test_the_normalisation_does_not_depend_on_how_the_images_are_cut():
    images = numbered_images(0, 100)
    assert normalisation([images]) == normalisation([images[:33], images[33:]])


def test_a_constant_channel_has_deviation_one():
    assert normalisation([np.full((5, 2, 2, 1), 51, np.uint8)]) == ((0.2,), (1.0,))


def test_no_images_have_no_normalisation():
    with pytest.raises(ValueError, match="no images"):
        normalisation([])


def collect(folder, **options):
    return collect_manifest(
        folder,
        name="tiny",
        image_shape=(8, 8, 3),
        class_names=tuple("0123456789"),
        label_source="given",
        generator={},
        **options,
    )


def publish_rows(folder, split, index, first, n):
    columns = Columns(
        images=numbered_images(first, n),
        labels=label_of(first + np.arange(n)),
        ids=SPLIT_START[split] + first + np.arange(n),
    )
    return publish_shard(folder, split, index, columns, 10, {})


def test_an_extension_keeps_the_normalisation(tmp_path):
    publish_rows(tmp_path, "reference", 0, 0, 20)
    before = collect(tmp_path)
    publish_rows(tmp_path, "reference", 1, 20, 20)
    after = collect(tmp_path)
    assert after.n("reference") == 40
    assert (after.mean, after.deviation) == (before.mean, before.deviation)


def test_a_data_set_with_a_gap_is_not_collected(tmp_path):
    publish_rows(tmp_path, "reference", 0, 0, 20)
    publish_rows(tmp_path, "reference", 2, 40, 20)
    with pytest.raises(
        DataError, match=r"reference-00002\.h5 starts at id 100000040, not 100000020"
    ):
        collect(tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_a_folder_without_shards_is_not_collected(tmp_path):
    with pytest.raises(DataError, match="no committed shards"):
        collect(tmp_path)


# Other sources


@pytest.fixture
def cifar5m(tmp_path):
    folder = tmp_path / "cifar5m"
    folder.mkdir()
    for k in range(6):
        write_part(folder / f"part{k}.npz", 300 * k, 300)
    return folder


def test_cifar5m_streams_parts_0_to_4_and_divides_part_5(cifar5m, out):
    import_cifar5m(cifar5m, out, n_test=50)
    rows = {s: np.sort(row_of(read_split(out, s).images)) for s in ("stream", "test", "reference")}
    np.testing.assert_array_equal(rows["stream"], np.arange(1_500))
    np.testing.assert_array_equal(rows["test"], np.arange(1_500, 1_550))
    np.testing.assert_array_equal(rows["reference"], np.arange(1_550, 1_800))


def test_cifar5m_has_the_class_names_of_cifar10(cifar5m, out):
    assert import_cifar5m(cifar5m, out, n_test=50).class_names[5] == "dog"


@pytest.mark.parametrize("split", ["stream", "reference", "test"])
def test_cifar5m_labels_belong_to_their_images(cifar5m, out, split):
    import_cifar5m(cifar5m, out, n_test=50)
    columns = read_split(out, split)
    np.testing.assert_array_equal(columns.labels, label_of(row_of(columns.images)))


def test_cifar5m_with_a_part_missing_is_refused_by_name(cifar5m, out):
    (cifar5m / "part3.npz").unlink()
    with pytest.raises(DataError, match=r"part3\.npz"):
        import_cifar5m(cifar5m, out, n_test=50)


def test_grey_images_stay_grey(tmp_path, out):
    parts = write_parts(tmp_path / "parts", channels=1)
    manifest = import_parts(parts, out)
    assert manifest.image_shape == (8, 8, 1)
    assert len(manifest.mean) == 1
    assert not verify_data(out).problems


def test_an_image_folder_of_two_classes_is_divided_at_random(tmp_path, out):
    images = numbered_images(0, 1_200)
    for row, image in enumerate(images):
        path = tmp_path / "images" / ("bird" if row < 600 else "dog") / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    manifest = import_image_folder(tmp_path / "images", out, name="birds", side=8)
    assert manifest.class_names == ("bird", "dog")
    sizes = {split: manifest.n(split) for split in ("test", "stream", "reference")}
    assert sizes == {"test": 120, "stream": 1_024, "reference": 56}
    columns = [read_split(out, split) for split in sizes]
    rows = np.concatenate([row_of(c.images) for c in columns])
    np.testing.assert_array_equal(np.sort(rows), np.arange(1_200))
    np.testing.assert_array_equal(np.concatenate([c.labels for c in columns]), rows >= 600)
    assert not verify_data(out).problems


@pytest.mark.parametrize("test_fraction", [0, 1])
def test_a_test_fraction_that_leaves_a_part_empty_is_refused(tmp_path, out, test_fraction):
    with pytest.raises(ConfigurationError, match=f"test_fraction={test_fraction}"):
        import_image_folder(tmp_path, out, name="x", side=8, test_fraction=test_fraction)


@pytest.mark.parametrize("side", [0, -1])
def test_a_side_of_no_pixels_is_refused(tmp_path, out, side):
    with pytest.raises(ConfigurationError, match=f"side={side} must be at least 1"):
        import_image_folder(tmp_path, out, side=side)


def test_an_image_folder_of_one_class_is_refused_by_its_name(tmp_path, out):
    (tmp_path / "images" / "all").mkdir(parents=True)
    Image.fromarray(numbered_images(0, 1)[0]).save(tmp_path / "images" / "all" / "1.png")
    with pytest.raises(DataError, match="only one class, 'all'; give the folder that holds"):
        import_image_folder(tmp_path / "images", out, side=8)


def test_an_image_folder_that_is_not_there_is_refused(tmp_path, out):
    with pytest.raises(DataError, match="no such folder"):
        import_image_folder(tmp_path / "nowhere", out, name="x", side=8)


def test_a_torchvision_set_keeps_its_parts_apart(tmp_path, out):
    images, _ = write_mnist(tmp_path, n=1_100)
    manifest = import_torchvision("MNIST", tmp_path, out, name="mnist")
    assert (manifest.n("stream"), manifest.n("reference")) == (1_024, 76)
    assert (manifest.n("test"), manifest.image_shape) == (1_100, (28, 28, 1))
    stream, reference = (read_split(out, split).images for split in ("stream", "reference"))
    found = sorted(image.tobytes() for image in np.concatenate([stream, reference]))
    assert found == sorted(image.tobytes() for image in images)


# Leaks


def test_a_test_image_among_the_training_images_is_warned_of_with_both_ids(parts, out, caplog):
    images = numbered_images(0, 1_000)
    images[17] = numbered_images(N_TRAIN, N_TEST)[5]
    np.savez(parts / "train-0.npz", X=images, Y=label_of(np.arange(1_000)))
    manifest = import_parts(parts, out)
    ids = {}
    for split in ("stream", "reference", "test"):
        columns = read_split(out, split)
        for i in columns.ids[row_of(columns.images) == N_TRAIN + 5]:
            ids[split] = int(i)
    split = next(iter(ids))
    assert ids.keys() == {split, "test"}
    said = f"1 images of {split} are test images too ({split} id {ids[split]} is test id"
    assert caplog.text.count(f"{said} {ids['test']})") == 1
    check_used_shards(out, manifest, manifest.n_stream)  # as compare does
    assert caplog.text.count(f"{said} {ids['test']})") == 2
    assert "1 images are there more than once" in str(verify_data(out).problems[0])


def test_images_that_are_all_different_are_not_warned_of(parts, out, caplog):
    manifest = import_parts(parts, out)
    check_used_shards(out, manifest, manifest.n_stream)
    assert "test images too" not in caplog.text


def test_the_card_of_an_import_that_looks_like_cifar_10_names_its_known_near_duplicates(tmp_path):
    for side in (32, 8):
        parts = tmp_path / f"parts-{side}"
        parts.mkdir()
        write_part(parts / "train.npz", 0, 1_024, side=side)
        write_part(parts / "test.npz", 1_024, 20, side=side)
        import_parts(parts, tmp_path / f"{side}")
    said = "3.3 % of its test images have a near-duplicate among its training images (Barz and"
    assert said in (tmp_path / "32" / "README.md").read_text()
    assert said not in (tmp_path / "8" / "README.md").read_text()


# Order


def test_parts_that_are_sorted_by_class_are_in_random_order_after_import(tmp_path, out):
    rows = np.arange(4_096)
    write_part(tmp_path / "train.npz", 0, 4_096, labels=rows * 10 // 4_096)
    write_part(tmp_path / "test.npz", 4_096, 100)
    import_parts(tmp_path, out)
    assert not verify_data(out).problems
