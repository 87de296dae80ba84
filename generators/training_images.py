"""The images that a denoiser is fitted to, all in memory: npz parts, or an imported data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bootstrap.errors import DataError
from bootstrap.pool import Pool
from bootstrap.shards import read_manifest
from bootstrap.worlds import BLOCK
from generators.sources import LabelledImages, npz_parts, read_npz


def read_training_images(folder: Path, pattern: str) -> LabelledImages:
    """The npz parts of this pattern, or stream and reference of a data set made by `import`.

    DataError if there are none, or none of some class: it could be asked for, and never was seen.
    """
    if (folder / "manifest.json").exists():
        data = _read_data_set(folder)
    elif any(folder.glob(pattern)) or not folder.is_dir():
        data = read_npz(npz_parts(folder, pattern))
    else:
        raise DataError(
            f"{folder}: neither {pattern} nor a data set there; make one of images in folders with"
            f" `deep-bootstrap import image-folder {folder} data/NAME` and give that"
        )
    without = np.setdiff1d(np.arange(len(data.class_names)), data.labels)
    if len(without):
        raise DataError(
            f"{folder}: no image of class {data.class_names[without[0]]!r} to learn it from;"
            " number the labels from 0 without gaps"
        )
    return data


def _read_data_set(folder: Path) -> LabelledImages:
    manifest = read_manifest(folder)
    pools = [Pool(folder, s, manifest) for s in ("stream", "reference") if manifest.n(s)]
    n = sum(pool.n for pool in pools)
    images = np.empty((n, *manifest.image_shape), dtype=np.uint8)  # filled in place: no second copy
    labels, start = np.empty(n, dtype=np.int64), 0
    for pool in pools:
        for columns in pool.chunks(BLOCK):
            rows = slice(start, start + len(columns))
            images[rows], labels[rows], start = columns.images, columns.labels, rows.stop
        pool.close()
    return LabelledImages(images=images, labels=labels, class_names=manifest.class_names)
