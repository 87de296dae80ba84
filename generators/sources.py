"""Real labelled images: npz parts, a torchvision data set or an image folder.

All of them become one `LabelledImages` value. Sizes are read from headers before anything is
allocated, and no pickle is read.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from bootstrap.errors import ConfigurationError, DataError

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
MAX_CLASSES = 65_536
MAX_CHANNELS = 4  # a longer last axis is a side of images whose channels come first
# how many times larger than its packed bytes an array can be; deflate's bound lies in its codes
MAX_RATIO = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1_032}
# a few sorted labels come near that bound, but no large array of images or labels does
BOMB_RATIO, BOMB_BYTES = 200, 1 << 26
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images uint8 (n, height, width, channel), labels int64 (n,), and the names of the classes."""

    images: UInt8[np.ndarray, "n height width channel"]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_images("images are", self.images.dtype, self.images.shape)
        if len(self.labels) != len(self.images):
            raise ValueError(f"{len(self.labels)} labels for {len(self.images)} images")
        check_labels(self.labels, len(self.class_names))


def check_images(what: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """ValueError unless these are the type and the shape of images."""
    if dtype != np.uint8 or len(shape) != 4 or 0 in shape or shape[3] > MAX_CHANNELS:
        raise ValueError(
            f"{what} {dtype} {shape}; images are uint8 (n, height, width, channel), channels last"
            f" and at most {MAX_CHANNELS}: convert them first, nothing is rescaled silently"
        )


def check_labels(labels: Int[np.ndarray, " n"], n_classes: int, first_row: int = 0) -> None:
    """ValueError naming the first row whose label is not an integer in range(n_classes)."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}; they must be integers in 0..{n_classes - 1}")
    bad = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(bad):
        raise ValueError(
            f"row {first_row + bad[0]}: label {labels[bad[0]]} is not in 0..{n_classes - 1}"
        )


@dataclass(frozen=True, kw_only=True)
class NpzPart:
    """One npz file with the keys X (uint8 images, NHWC) and Y (integers); known by its headers."""

    path: Path
    n: int
    image_shape: tuple[int, int, int]
    crc32: str = ""  # of X and Y as the archive states them: tells parts apart without reading them

    @classmethod
    def open(cls, path: Path) -> NpzPart:
        """Read the headers of X and Y; DataError if they are not what a part holds."""
        with _explained(path), zipfile.ZipFile(path) as archive:
            n_bytes = path.stat().st_size
            x_shape, x_dtype = _npy_header(archive, "X", n_bytes)
            y_shape, y_dtype = _npy_header(archive, "Y", n_bytes)
            crc32 = " ".join(f"{archive.getinfo(f'{key}.npy').CRC:08x}" for key in ("X", "Y"))
        try:
            check_images("X is", x_dtype, x_shape)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        n, height, width, channel = x_shape
        if not np.issubdtype(y_dtype, np.integer) or y_shape not in ((n,), (n, 1)):
            raise DataError(
                f"{path}: Y is {y_dtype} {y_shape}; it must be {n} integers, one per image"
            )
        return cls(path=path, n=n, image_shape=(height, width, channel), crc32=crc32)

    def labels(self) -> Int[np.ndarray, " n"]:
        """All labels, int64."""
        with self._member("Y") as member:
            _, _, dtype = _read_header(member)
            content = _read_exactly(member, self.n * dtype.itemsize)
        return np.frombuffer(content, dtype=dtype).astype(np.int64)

    def chunks(self, n_rows: int) -> Iterator[UInt8[np.ndarray, "rows height width channel"]]:
        """The images in order, `n_rows` at a time, without ever holding the whole array."""
        row_bytes = math.prod(self.image_shape)
        with self._member("X") as member:
            _read_header(member)
            for start in range(0, self.n, n_rows):
                rows = min(n_rows, self.n - start)
                content = _read_exactly(member, rows * row_bytes)
                yield np.frombuffer(content, dtype=np.uint8).reshape(rows, *self.image_shape)

    @contextmanager
    def _member(self, key: str) -> Iterator[IO[bytes]]:
        with (
            _explained(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{key}.npy") as member,
        ):
            yield member


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what zipfile, zlib and numpy raise for a damaged archive into one DataError."""
    damaged = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except damaged as error:
        raise DataError(f"{path}: {error}; copy the file again or repack it") from error


def _npy_header(
    archive: zipfile.ZipFile, key: str, archive_bytes: int
) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, checked against what the archive holds before any is read."""
    names = archive.namelist()
    outside = [name for name in names if name.startswith("/") or ".." in PurePosixPath(name).parts]
    if outside:  # nothing is ever unpacked, but this is not an archive of numpy's
        raise ValueError(f"member {outside[0]!r} names a path outside the archive")
    if f"{key}.npy" not in names:
        raise ValueError(f"no array {key}; parts hold X (images) and Y (labels)")
    member = archive.getinfo(f"{key}.npy")
    if member.compress_type not in MAX_RATIO:
        raise ValueError(f"{key} is compressed in a way that numpy does not write")
    packed = max(1, min(member.compress_size, archive_bytes))  # the directory may lie about both
    ratio, is_large = member.file_size / packed, member.file_size > BOMB_BYTES
    if ratio > MAX_RATIO[member.compress_type] or (ratio > BOMB_RATIO and is_large):
        raise ValueError(
            f"{key} claims {member.file_size} bytes, {ratio:,.0f} times what is stored, which is a"
            " lie or a bomb; save honest arrays with np.savez"
        )
    with archive.open(member) as file:
        shape, is_fortran, dtype = _read_header(file)
        n_bytes = member.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{key} holds Python objects; they are never unpickled")
    if is_fortran and len(shape) > 1:
        raise ValueError(f"{key} is in Fortran order; save it with np.ascontiguousarray")
    promised = dtype.itemsize * math.prod(shape)
    if promised != n_bytes or any(side < 0 for side in shape):
        raise ValueError(f"the header of {key} promises {promised} bytes, there are {n_bytes}")
    return tuple(int(side) for side in shape), dtype


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)  # 3.0 differs in field names only


def _read_exactly(member: IO[bytes], n_bytes: int) -> bytes:
    content = bytearray()
    while len(content) < n_bytes:
        piece = member.read(min(n_bytes - len(content), 1 << 24))
        if not piece:
            raise ValueError(f"the file ends {n_bytes - len(content)} bytes early")
        content += piece
    return bytes(content)


def npz_parts(folder: Path, pattern: str = "*.npz") -> tuple[NpzPart, ...]:
    """The parts in `folder` in the order of their names; DataError if there is none."""
    with _explained(folder):
        paths = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder}: no {pattern} there; give the folder that holds the npz parts")
    return tuple(NpzPart.open(path) for path in paths)


def read_npz(
    parts: tuple[NpzPart, ...], class_names: tuple[str, ...] | None = None
) -> LabelledImages:
    """All parts in memory (CIFAR-10 is 150 MB)."""
    labels = np.concatenate([part.labels() for part in parts])
    images = np.concatenate([chunk for part in parts for chunk in part.chunks(10_000)])
    if class_names is None:
        class_names = numbered_classes(count_classes(labels), parts[0].image_shape)
    return LabelledImages(images=images, labels=labels, class_names=class_names)


def count_classes(labels: Int[np.ndarray, " n"]) -> int:
    """As many classes as the largest label says; DataError naming its row if it is too large."""
    row = int(labels.argmax())
    if labels[row] >= MAX_CLASSES:
        raise DataError(f"row {row}: label {labels[row]}; at most {MAX_CLASSES:,} classes are read")
    return int(labels[row]) + 1


def numbered_classes(n_classes: int, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Names for classes that have only numbers: CIFAR-10's for what looks like it, else digits."""
    if n_classes == 10 and image_shape == (32, 32, 3):
        return CIFAR10_CLASSES
    return tuple(str(k) for k in range(n_classes))


def read_image_folder(folder: Path, side: int) -> LabelledImages:
    """`folder/<class>/<image>`, centre-cropped to a square and resized to `side` pixels, RGB."""
    classes = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."
    )
    files = [
        (label, path)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    without = sorted(set(range(len(classes))) - {label for label, _ in files})
    if not files or without:
        where = folder / classes[without[0]] if without else folder
        raise DataError(
            f"{where}: no images there; give the folder that holds <class>/<image> files"
            f" ({', '.join(sorted(IMAGE_SUFFIXES))}), and remove subfolders without any"
        )
    images = np.empty((len(files), side, side, 3), dtype=np.uint8)
    for row, (_, path) in enumerate(files):
        images[row] = _read_square(path, side)
    labels = np.array([label for label, _ in files], dtype=np.int64)
    return LabelledImages(images=images, labels=labels, class_names=tuple(classes))


def _read_square(path: Path, side: int) -> UInt8[np.ndarray, "side side 3"]:
    try:
        with Image.open(path) as image:
            return _square(image.convert("RGB"), side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not an image that can be read ({error}); remove it") from error


def _square(image: Image.Image, side: int) -> UInt8[np.ndarray, "side side 3"]:
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge))
    # averaging when it shrinks: other filters ring or alias, and either is a texture to learn
    resample = Image.Resampling.BOX if edge >= side else Image.Resampling.BICUBIC
    return np.asarray(square.resize((side, side), resample))


def read_torchvision(name: str, root: Path, train: bool) -> LabelledImages:
    """A torchvision classification set that is already on disk; nothing is downloaded.

    torchvision itself unpickles some of its sets (CIFAR's), so ask for files that you trust.
    """
    from torchvision import datasets

    if name not in datasets.__all__:
        close = [n for n in datasets.__all__ if n.lower() == name.lower()]
        hint = f"; did you mean {close[0]!r}?" if close else ", such as MNIST"
        raise ConfigurationError(
            f"torchvision has no data set {name!r}; names are those of its classes{hint}"
        )
    try:
        dataset = getattr(datasets, name)(root=str(root), train=train, download=False)
    except TypeError as error:
        raise ConfigurationError(
            f"torchvision's {name} has no train and test part by that name ({error});"
            " save it as images or npz parts"
        ) from error
    except RuntimeError as error:
        raise DataError(
            f"{root}: no {name} there; nothing is downloaded: put its unpacked files where"
            f" `torchvision.datasets.{name}({str(root)!r}, download=True)` puts them"
        ) from error
    images, labels = zip(
        *((np.asarray(image), int(label)) for image, label in dataset), strict=True
    )
    return LabelledImages(
        images=np.stack([image if image.ndim == 3 else image[:, :, None] for image in images]),
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(str(c) for c in getattr(dataset, "classes", range(max(labels) + 1))),
    )
