"""The data card: a README.md and a picture beside every data set."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from bootstrap.files import replace
from bootstrap.pool import Pool
from bootstrap.shards import Columns, Manifest
from generators.sources import CIFAR10_CLASSES

SHIPPED = Path(__file__).resolve().parent / "weights"
QUALITY_KEYS = ("weights_sha256", "sampler", "labels")  # of the provenance: what decides quality
N_PER_CLASS = 10
ENLARGED_PX = 64  # side of an image in the picture
CLOSEST = (
    "",
    "![closest pairs](closest.png)",
    "",
    "The ten images closest to a training image in pixels, below them those training images;"
    " then the same in features.",
)


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write README.md and samples.png into a data set's folder."""
    split = next(name for name in ("test", "stream", "reference") if manifest.n(name))
    pool = Pool(folder, split, manifest)
    columns = pool.first(10_000)
    pool.close()
    picture = samples_by_class(columns, manifest.n_classes)
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    replace(folder / "samples.png", buffer.getvalue())
    replace(folder / "README.md", card_text(folder, manifest, split, columns).encode())


def samples_by_class(columns: Columns, n_classes: int) -> Image.Image:
    """The first ten images of each class, a row a class (at most ten classes)."""
    shown = range(min(n_classes, 10))
    rows = [np.flatnonzero(columns.labels == k)[:N_PER_CLASS] for k in shown]
    blank = np.full_like(columns.images[:1], 255)
    padded = [
        np.concatenate([columns.images[row], np.repeat(blank, N_PER_CLASS - len(row), axis=0)])
        for row in rows
    ]
    return grid_image(np.concatenate(padded), N_PER_CLASS)


def grid_image(images: UInt8[np.ndarray, "n height width channel"], n_columns: int) -> Image.Image:
    """Images side by side, enlarged without smoothing, two pixels of white between them."""
    n, height, width, channels = images.shape
    scale = max(1, ENLARGED_PX // max(height, width))
    big = images.repeat(scale, axis=1).repeat(scale, axis=2)
    big = np.pad(big, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255)
    n_rows = -(-n // n_columns)
    canvas = np.full((n_rows * n_columns, *big.shape[1:]), 255, dtype=np.uint8)
    canvas[:n] = big
    tiled = canvas.reshape(n_rows, n_columns, *big.shape[1:]).swapaxes(1, 2)
    whole = tiled.reshape(n_rows * big.shape[1], n_columns * big.shape[2], channels)
    return Image.fromarray(whole[:, :, 0] if channels == 1 else whole)


def card_text(folder: Path, manifest: Manifest, split: str, columns: Columns) -> str:
    """The card in Markdown."""
    counts = np.bincount(columns.labels, minlength=manifest.n_classes)
    lines = [
        f"# {manifest.name}",
        "",
        f"{manifest.n('stream'):,} stream, {manifest.n('test'):,} test and"
        f" {manifest.n('reference'):,} reference images of"
        f" {'x'.join(map(str, manifest.image_shape))}, {manifest.n_classes} classes;"
        f" labels: {manifest.label_source}.",
        "",
        "![ten samples of each class](samples.png)",
        "",
        "| | |",
        "|---|---|",
        *[f"| {key} | `{json.dumps(value)}` |" for key, value in manifest.generator.items()],
        f"| mean per channel | {_numbers(manifest.mean)} |",
        f"| deviation per channel | {_numbers(manifest.deviation)} |",
        "",
        f"Class balance over {len(columns):,} images of `{split}`:"
        f" smallest {counts.min():,}, largest {counts.max():,}.",
        *_teacher_lines(columns),
        *_import_lines(manifest),
        *_quality_lines(folder, manifest),
    ]
    return "\n".join(lines) + "\n"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _teacher_lines(columns: Columns) -> list[str]:
    lines = []
    if "confidence" in columns.extra:
        lines.append(
            f"The teacher's mean confidence in its label: {columns.extra['confidence'].mean():.3f}."
        )
    if "agreed" in columns.extra:
        attempts, agreed = columns.extra["attempt"], columns.extra["agreed"]
        lines.append(
            "Teacher and class agree at the first attempt for"
            f" {(agreed & (attempts == 0)).mean():.3f} of the ids,"
            f" in the end for {agreed.mean():.3f}; the others keep attempt 0."
        )
    return lines


def _import_lines(manifest: Manifest) -> list[str]:
    if manifest.generator.get("source") != "import" or manifest.class_names != CIFAR10_CLASSES:
        return []
    return [
        "",
        "If these are CIFAR-10's own images: 3.3 % of its test images have a near-duplicate among"
        " its training images (Barz and Denzler 2020, who offer ciFAIR-10 with other test images"
        " in their place), so test errors are a little too low. They are cropped, shifted or"
        " recoloured; `deep-bootstrap verify --deep` finds only images that differ by the least"
        " bit or are mirrored.",
    ]


def measured_quality(folder: Path, manifest: Manifest) -> tuple[dict[str, Any] | None, bool]:
    """What `quality` measured of this data set, else of one that was made alike; is it its own?"""
    own = folder / "quality.json"
    if own.exists():
        return json.loads(own.read_bytes()), True
    for path in sorted(SHIPPED.glob("*.quality.json")):
        quality = json.loads(path.read_bytes())
        pairs = [(quality["generator"][key], manifest.generator.get(key)) for key in QUALITY_KEYS]
        if all(there == here for there, here in pairs):
            return quality, False
    return None, False


def _quality_lines(folder: Path, manifest: Manifest) -> list[str]:
    quality, is_own = measured_quality(folder, manifest)
    if quality is None:
        return []
    other = f"Measured on {quality['data']}, made with the same weights, sampler and labels."
    teacher, labels, copies = quality["teacher"], quality["labels"], quality["memorisation"]
    duplicates = copies["duplicates"]
    return [
        "",
        "## Quality",
        "",
        *([] if is_own else [other, ""]),
        *_cross_test_table(quality),
        "",
        f"On the features of the project's own teacher ({teacher['name']}, test error"
        f" {teacher['test_error']:.3f}; not Inception), against the test images of"
        f" {quality['real']}; the second row is other real images, for scale. Means over disjoint"
        " subsets with 95 % intervals.",
        "",
        *_distance_table(quality["distance"]),
        "",
        f"The teacher agrees with {labels['agreement']:.3f} of {labels['n']:,} labels"
        f" (mean confidence {labels['confidence']:.3f}).",
        "",
        "## Copies",
        "",
        f"Of {copies['n']:,} images, {copies['pixels']['fraction_close']:.4f} come as near to one"
        f" of {copies['n_train']:,} training images, mirrored or not, as the nearest 0.01 of the"
        f" real test images do in pixels, and {copies['features']['fraction_close']:.4f} in"
        f" features. Duplicates among them: {duplicates['exact']} exact, {duplicates['near']} near;"
        f" equal to a real training image: {duplicates['exact_in_real_train']}, to a real test"
        f" image: {duplicates['exact_in_real_test']}.",
        *(CLOSEST if is_own else []),
    ]


def _cross_test_table(quality: dict[str, Any]) -> list[str]:
    errors, n_train, n_test = (quality[k] for k in ("cross_test_error", "n_train", "n_test"))
    tests = ("real", "generated")
    rows = [
        f"| {name}, {n:,} samples | "
        + " | ".join(f"{errors[f'{name}_to_{test}']:.3f}" for test in tests)
        + " |"
        for name, n in n_train.items()
    ]
    return [
        "| trained on | " + " | ".join(f"{t} test, {n_test[t]:,} images" for t in tests) + " |",
        "|---|---|---|",
        *rows,
        "",
        f"Test error; {quality['protocol']}; {quality['hardware']}.",
    ]


def _distance_table(distance: dict[str, Any]) -> list[str]:
    metrics = list(distance["generated"])
    return [
        "| | " + " | ".join(metrics) + " |",
        "|---" * (len(metrics) + 1) + "|",
        *[
            f"| {name} | " + " | ".join(_interval(row[metric]) for metric in metrics) + " |"
            for name, row in distance.items()
        ],
    ]


def _interval(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['mean']:.4f}"
    return f"{estimate['mean']:.4f} ({estimate['low']:.4f} to {estimate['high']:.4f})"
