"""Every source goes all the way: import, train-generator, generate, compare, as the page says."""

import json
import re
import shlex
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootstrap import load_runs
from bootstrap.cli import COMMANDS
from bootstrap.shards import read_manifest
from generators.label import class_of_ids
from generators.toy import ToySource

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "generators" / "README.md"
PLAIN = ("--device", "cpu", "--precision", "fp32", "--compile", "off")
TINY = ("--widths", 16, 32, "--norm-groups", 8, "--n-images-seen", 64, "--batch-size", 16)


def toy_rows(n, first=0, side=8, n_channels=3, n_classes=10):
    ids = first + np.arange(n)
    source = ToySource(side=side, n_channels=n_channels, n_classes=n_classes)
    labels = class_of_ids(ids, n_classes)
    return source.sample(ids, labels, np.zeros_like(ids)), labels


def write_npz(path, n, first=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    images, labels = toy_rows(n, first, **options)
    np.savez(path, X=images, Y=labels)


def write_parts(folder, **options):
    write_npz(folder / "train-0.npz", 1_100, **options)
    write_npz(folder / "test.npz", 200, first=2_000, **options)
    return folder


def write_image_folder(folder, n, side):
    """Two classes, the images a little wider than high."""
    images, labels = toy_rows(n, side=side, n_classes=2)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / ("cat", "dog")[label] / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.pad(image, ((0, 0), (2, 3), (0, 0)))).save(path)
    return folder


def write_idx(folder, n, side):
    """The files of MNIST as they are published, unpacked: big-endian sizes, then the bytes."""
    folder.mkdir(parents=True)
    for part, first in (("train", 0), ("t10k", 5_000)):
        images, labels = toy_rows(n, first, side=side, n_channels=1)
        header = struct.pack(">IIII", 0x803, n, side, side)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, n)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.astype("u1").tobytes())


def run(*words):
    """A command in this process; its errors are raised."""
    COMMANDS[words[0]]([str(word) for word in words[1:]])


def walk(images, folder):
    """From an imported data set to a pair on drawn images; returns where these and the pair are."""
    weights = folder / "denoiser" / "denoiser.safetensors"
    run("train-generator", "--images", images, "--work", weights.parent, *TINY, *PLAIN)
    drawn, out = folder / "drawn", folder / "results"
    source = ("--source", f"diffusion(weights='{weights}')")
    run("generate", "--preset", "smoke", "--n", 1, "--data", drawn, *source, *PLAIN)
    size = ("--n-steps", 12, "--n-samples", 100)
    run("compare", "--preset", "smoke", *size, "--data", drawn, "--out", out, *PLAIN)
    return drawn, out


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grey")
    run("import", "npz", write_parts(folder / "parts", n_channels=1), folder / "real")
    return walk(folder / "real", folder)


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    images = write_image_folder(folder / "images", 1_200, side=16)
    run("import", "image-folder", images, folder / "real", "--side", 16)
    return walk(folder / "real", folder)


def test_images_drawn_after_grey_ones_are_grey(grey):
    assert read_manifest(grey[0]).image_shape == (8, 8, 1)


def test_images_drawn_after_a_folder_have_its_classes_and_side(two_classes):
    manifest = read_manifest(two_classes[0])
    assert manifest.class_names == ("cat", "dog")
    assert manifest.image_shape == (16, 16, 3)


@pytest.mark.parametrize("source", ["grey", "two_classes"])
def test_both_worlds_are_trained_on_what_was_drawn(source, request):
    (pair,) = load_runs(request.getfixturevalue(source)[1])
    assert pair.status == "complete"
    assert 0 < pair.real[100].test_error[0, -1] < 1
    assert (pair.path / "curves.png").exists()


def test_a_stream_of_own_images_that_is_too_short_says_whose_source_extends_it(
    grey, deep_bootstrap, tmp_path
):
    words = ("compare", "--preset", "smoke", "--data", grey[0], "--out", tmp_path)
    code, _, err = deep_bootstrap(*words)
    assert code == 4
    assert f"--data {grey[0]} --n 4096` and the --source that made it" in err


def test_a_stream_of_real_images_that_is_too_short_says_what_draws_more(
    grey, deep_bootstrap, tmp_path
):
    real = grey[0].parent / "real"
    code, _, err = deep_bootstrap("compare", "--preset", "smoke", "--data", real, "--out", tmp_path)
    assert code == 4
    assert f"`deep-bootstrap train-generator --images {real}`" in err


def test_a_side_that_the_network_cannot_take_exits_2_with_sides_and_options_that_it_can(
    deep_bootstrap, tmp_path
):
    parts = write_parts(tmp_path / "parts", side=10)
    words = ("train-generator", "--images", parts, "--work", tmp_path / "work", *TINY, *PLAIN)
    code, out, err = deep_bootstrap(*words)
    assert (code, out) == (2, "")
    assert err == (
        "deep-bootstrap: images of 10x10: sides must be multiples of 4 (fold_px=2, 2 levels),"
        " such as 8 or 12; or train with `--widths 16`\n"
    )
    assert deep_bootstrap(*words, "--widths", 16)[0] == 0


def test_images_in_folders_must_be_imported_before_training(deep_bootstrap, tmp_path):
    folder = write_image_folder(tmp_path / "images", 4, side=8)
    words = ("train-generator", "--images", folder, "--work", tmp_path / "work", *PLAIN)
    code, _, err = deep_bootstrap(*words)
    assert code == 3
    assert f"`deep-bootstrap import image-folder {folder} data/NAME`" in err


def test_cifar5m_goes_where_the_command_says(tmp_path):
    for k in range(6):
        write_npz(tmp_path / f"part{k}.npz", 250, first=1_000 * k)
    run("import", "cifar5m-npz", tmp_path, tmp_path / "here", "--n-test", 20)
    assert read_manifest(tmp_path / "here").n("test") == 20


# The page


def commands_of(page):
    """The lines of its shell blocks that start with deep-bootstrap, block by block, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [shlex.split(line, comments=True) for b in blocks for line in joined(b).splitlines()]
    return [words[1:] for words in lines if words and words[0] == "deep-bootstrap"]


def joined(block):
    return block.replace("\\\n", " ")


@pytest.mark.parametrize("page", [PAGE, ROOT / "README.md"], ids=["generators", "top"])
def test_the_options_on_the_page_exist(page, deep_bootstrap):
    found = commands_of(page)
    assert len(found) > 5
    for words in found:
        command = words[:2] if words[0] == "import" else words[:1]
        _, usage, _ = deep_bootstrap(*command, "--help")
        known = set(re.findall(r"--[a-z0-9-]+", usage))
        assert {word for word in words if word.startswith("--")} <= known, " ".join(words)


FOLDERS = {
    "npz": lambda folder: [
        write_npz(folder / f"{name}.npz", n, first, side=32)
        for name, n, first in (("train-0", 2_000, 0), ("train-1", 600, 2_000), ("test", 300, 9_000))
    ],
    "torchvision": lambda folder: write_idx(folder / "MNIST" / "raw", 1_200, side=28),
    "image-folder": lambda folder: write_image_folder(folder, 1_300, side=70),
    "cifar5m-npz": lambda folder: [
        write_npz(folder / f"part{k}.npz", 1_100, 2_000 * k, side=32) for k in range(6)
    ],
}


@pytest.mark.long
@pytest.mark.parametrize("kind", FOLDERS)
def test_the_page_goes_all_the_way_as_it_is_written(kind, tmp_path, monkeypatch):
    found = commands_of(PAGE)
    starts = [k for k, words in enumerate(found) if words[0] == "import"]
    start = next(k for k in starts if found[k][1] == kind)
    stop = next((k for k in starts if k > start), len(found))
    FOLDERS[kind](tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    for words in found[start:stop]:
        run(*words)
    assert {"train-generator", "generate", "compare"} < {words[0] for words in found[start:stop]}
    summaries = [json.loads(p.read_text()) for p in tmp_path.glob("results/*/summary.json")]
    assert {summary["status"] for summary in summaries} == {"complete"}
