"""Real images are read from what cannot be trusted."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from bootstrap.errors import ConfigurationError, DataError
from generators.sources import (
    CIFAR10_CLASSES,
    LabelledImages,
    NpzPart,
    npz_parts,
    read_image_folder,
    read_npz,
    read_torchvision,
)

N = 50


def make_rows(n=N, side=8, channels=3, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, side, side, channels), dtype=np.uint8)
    return images, rng.integers(0, n_classes, n)


def npy(array=None, *, header=None, body=b"", allow_pickle=False):
    """The bytes of an npy file; a given header is written as it is, whatever follows."""
    file = io.BytesIO()
    if header is None:
        np.lib.format.write_array(file, array, allow_pickle=allow_pickle)
    else:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(body)
    return file.getvalue()


def write_zip(path, method=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, content in members.items():
            archive.writestr(f"{key}.npy", content)
    return path


# npz parts that are what they should be


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_chunks_are_the_images_in_order(tmp_path, save):
    images, labels = make_rows()
    save(tmp_path / "part.npz", X=images, Y=labels)
    part = NpzPart.open(tmp_path / "part.npz")
    chunks = list(part.chunks(17))
    assert [len(chunk) for chunk in chunks] == [17, 17, 16]
    np.testing.assert_array_equal(np.concatenate(chunks), images)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, ">i4"])
def test_labels_of_any_integer_type_become_int64(tmp_path, dtype):
    images, labels = make_rows()
    np.savez(tmp_path / "part.npz", X=images, Y=labels.astype(dtype))
    found = NpzPart.open(tmp_path / "part.npz").labels()
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, labels)


def test_labels_in_a_single_column_are_flattened(tmp_path):
    images, labels = make_rows()
    np.savez(tmp_path / "part.npz", X=images, Y=labels[:, None])
    np.testing.assert_array_equal(NpzPart.open(tmp_path / "part.npz").labels(), labels)


def test_opening_a_part_reads_its_size_and_not_its_images(tmp_path):
    np.savez(
        tmp_path / "part.npz", X=np.zeros((4_000, 32, 32, 3), np.uint8), Y=np.zeros(4_000, int)
    )
    tracemalloc.start()
    part = NpzPart.open(tmp_path / "part.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (part.n, part.image_shape) == (4_000, (32, 32, 3))
    assert peak < 1_000_000


def test_chunks_never_hold_a_whole_part(tmp_path):
    np.savez(
        tmp_path / "part.npz", X=np.zeros((4_000, 32, 32, 3), np.uint8), Y=np.zeros(4_000, int)
    )
    part = NpzPart.open(tmp_path / "part.npz")
    tracemalloc.start()
    assert sum(len(chunk) for chunk in part.chunks(100)) == 4_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_parts_with_other_content_have_other_checksums(tmp_path):
    images, labels = make_rows()
    np.savez(tmp_path / "a.npz", X=images, Y=labels)
    np.savez(tmp_path / "b.npz", X=images, Y=labels[::-1])
    a, b = npz_parts(tmp_path)
    assert a.crc32 != b.crc32


def test_parts_are_joined_in_the_order_of_their_names(tmp_path):
    images, labels = make_rows()
    np.savez(tmp_path / "b.npz", X=images[20:], Y=labels[20:])
    np.savez(tmp_path / "a.npz", X=images[:20], Y=labels[:20])
    found = read_npz(npz_parts(tmp_path))
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize(("side", "names"), [(32, CIFAR10_CLASSES), (8, tuple("0123456789"))])
def test_only_ten_classes_of_32_pixel_images_get_the_names_of_cifar10(tmp_path, side, names):
    images, _ = make_rows(side=side)
    np.savez(tmp_path / "a.npz", X=images, Y=np.arange(N) % 10)
    assert read_npz(npz_parts(tmp_path)).class_names == names


def test_a_folder_without_parts_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.npz there"):
        npz_parts(tmp_path)


def test_a_missing_part_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"part7\.npz: there is no such file"):
        NpzPart.open(tmp_path / "part7.npz")


# npz parts that are not

X, Y = npy(make_rows()[0]), npy(make_rows()[1])
OBJECTS = npy(np.array([{}] * N, dtype=object), allow_pickle=True)
HUGE = {"descr": "|u1", "fortran_order": False, "shape": (1 << 30, 128, 128, 1)}  # 2^44
MALFORMED = {
    "object images": ({"X": OBJECTS, "Y": Y}, "X holds Python objects"),
    "object labels": ({"X": X, "Y": OBJECTS}, "Y holds Python objects"),
    "huge promise": (
        {"X": npy(header=HUGE, body=b"0123456789"), "Y": Y},
        "promises 17592186044416",
    ),
    "negative sides": (
        {"X": npy(header=HUGE | {"shape": (-1, -10, 1, 1)}, body=b"0123456789"), "Y": Y},
        "the header of X promises",
    ),
    "fortran order": ({"X": npy(np.asfortranarray(make_rows()[0])), "Y": Y}, "Fortran order"),
    "no labels": ({"X": X}, "no array Y"),
    "no images": ({"Y": Y}, "no array X"),
    "a name outside": ({"../X": X, "Y": Y}, r"'\.\./X\.npy' names a path outside"),
    "an absolute name": ({"X": X, "Y": Y, "/etc/Z": X}, "'/etc/Z.npy' names a path outside"),
    "float images": ({"X": npy(make_rows()[0] / 255), "Y": Y}, "X is float64"),
    "flat images": ({"X": npy(make_rows()[0].reshape(N, -1)), "Y": Y}, r"X is uint8 \(50, 192\)"),
    "no rows": ({"X": npy(make_rows(0)[0]), "Y": npy(make_rows(0)[1])}, r"X is uint8 \(0, 8"),
    "float labels": ({"X": X, "Y": npy(make_rows()[1] * 1.0)}, "Y is float64"),
    "one label short": ({"X": X, "Y": npy(make_rows()[1][1:])}, r"Y is int64 \(49,\)"),
    "one-hot labels": ({"X": X, "Y": npy(np.eye(4, dtype=int)[make_rows()[1]])}, r"\(50, 4\)"),
    "not an array": ({"X": b"hello", "Y": Y}, "copy the file again"),
}


@pytest.mark.parametrize(("members", "message"), MALFORMED.values(), ids=MALFORMED)
def test_a_part_that_is_not_one_is_refused_by_its_headers(tmp_path, members, message):
    write_zip(tmp_path / "part.npz", **members)
    tracemalloc.start()
    with pytest.raises(DataError, match=message) as caught:
        NpzPart.open(tmp_path / "part.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "part.npz" in str(caught.value)
    assert peak < 1_000_000


def test_a_size_that_the_file_cannot_hold_is_refused(tmp_path):
    """The archive's directory may lie as well as the array's header, and say the same."""
    header = npy(header=HUGE)
    path = write_zip(tmp_path / "part.npz", X=header, Y=Y)
    content = path.read_bytes()
    size, directory = struct.pack("<I", len(header)), content.index(b"PK\1\2")
    lie = struct.pack("<I", 0xFFFFFFF0)
    position = content.index(size, directory + 24)
    path.write_bytes(content[:position] + lie + content[position + 4 :])
    with pytest.raises(DataError, match="claims 4294967280 bytes"):
        NpzPart.open(path)


def write_bomb(path, key, n_mib):
    """An archive whose `key` is zeros: deflate packs them to a thousandth."""
    shape = (n_mib << 20, 1, 1, 1) if key == "X" else (n_mib << 17,)
    header = {"descr": "|u1" if key == "X" else "<i8", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if key == "Y":
            archive.writestr("X.npy", X)
        with archive.open(f"{key}.npy", "w") as member:
            member.write(npy(header=header))
            for _ in range(n_mib):
                member.write(bytes(1 << 20))
        if key == "X":
            archive.writestr("Y.npy", Y)
    return path


@pytest.mark.parametrize("key", ["X", "Y"])
def test_an_array_of_a_thousand_times_its_packed_size_is_refused(tmp_path, key):
    path = write_bomb(tmp_path / "part.npz", key, n_mib=65)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=rf"{key} claims 6815\d+ bytes.* a lie or a bomb"):
        NpzPart.open(path)


def test_sorted_labels_that_pack_well_are_read(tmp_path):
    labels = np.arange(1 << 20) * 10 >> 20
    images = np.random.default_rng(0).integers(0, 256, (1 << 20, 1, 1, 1), dtype=np.uint8)
    np.savez_compressed(tmp_path / "part.npz", X=images, Y=labels)
    np.testing.assert_array_equal(NpzPart.open(tmp_path / "part.npz").labels(), labels)


def test_a_compression_that_numpy_does_not_write_is_refused(tmp_path):
    path = write_zip(tmp_path / "part.npz", zipfile.ZIP_LZMA, X=X, Y=Y)
    with pytest.raises(DataError, match="does not write"):
        NpzPart.open(path)


def test_a_truncated_archive_is_refused(tmp_path):
    path = write_zip(tmp_path / "part.npz", X=X, Y=Y)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="copy the file again"):
        NpzPart.open(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_refused_when_it_is_read(tmp_path, method):
    path = write_zip(tmp_path / "part.npz", method, X=X, Y=Y)
    part = NpzPart.open(path)
    content = bytearray(path.read_bytes())
    content[len(X) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"part\.npz"):
        list(part.chunks(10))


def test_a_part_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = write_zip(tmp_path / "part.npz", X=X, Y=Y)
    part = NpzPart.open(path)
    write_zip(path, X=npy(make_rows(20)[0]), Y=Y)
    with pytest.raises(DataError, match="ends 5760 bytes early"):
        list(part.chunks(N))


def test_a_label_too_large_to_be_a_class_is_refused_with_its_row(tmp_path):
    images, labels = make_rows()
    labels[31] = 1 << 40
    np.savez(tmp_path / "part.npz", X=images, Y=labels)
    with pytest.raises(DataError, match="row 31: label 1099511627776"):
        read_npz(npz_parts(tmp_path))


# Labelled images


def test_float_images_are_refused_and_not_rescaled():
    with pytest.raises(ValueError, match="nothing is rescaled silently"):
        LabelledImages(images=np.zeros((1, 8, 8, 3)), labels=np.zeros(1, int), class_names=("a",))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_classes_is_refused_with_its_row(label):
    images, labels = make_rows(n_classes=2)
    labels[13] = label
    with pytest.raises(ValueError, match=rf"row 13: label {label} is not in 0\.\.1"):
        LabelledImages(images=images, labels=labels, class_names=("a", "b"))


# Image folders


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def test_an_image_folder_has_a_class_for_each_folder_in_the_order_of_names(tmp_path):
    images, _ = make_rows(3)
    write_image(tmp_path / "dog" / "1.png", images[0])
    write_image(tmp_path / "bird" / "1.png", images[1])
    write_image(tmp_path / "bird" / "2.png", images[2])
    found = read_image_folder(tmp_path, side=8)
    assert found.class_names == ("bird", "dog")
    np.testing.assert_array_equal(found.labels, [0, 0, 1])
    np.testing.assert_array_equal(found.images, images[[1, 2, 0]])


def test_the_centre_of_an_oblong_image_is_kept(tmp_path):
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:6] = 200
    write_image(tmp_path / "a" / "1.png", image)
    assert (read_image_folder(tmp_path, side=4).images == 200).all()


def test_grey_images_in_a_folder_become_rgb(tmp_path):
    write_image(tmp_path / "a" / "1.png", np.full((8, 8), 7, np.uint8))
    assert (read_image_folder(tmp_path, side=8).images == 7).all()


def test_a_file_that_is_no_image_is_refused_by_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"1\.png: not an image"):
        read_image_folder(tmp_path, side=8)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="<class>/<image>"):
        read_image_folder(tmp_path, side=8)


def test_a_class_without_images_is_refused_by_name(tmp_path):
    write_image(tmp_path / "train" / "dog" / "1.png", make_rows(1)[0][0])
    write_image(tmp_path / "bird" / "1.png", make_rows(1)[0][0])
    with pytest.raises(DataError, match=r"train: no images there; give the folder that holds"):
        read_image_folder(tmp_path, side=8)


def test_hidden_folders_are_no_classes(tmp_path):
    write_image(tmp_path / "bird" / "1.png", make_rows(1)[0][0])
    (tmp_path / ".cache").mkdir()
    assert read_image_folder(tmp_path, side=8).class_names == ("bird",)


# torchvision


def write_mnist(root, n=20):
    """The files of an MNIST of `n` images per part; returns the training images and labels."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for seed, part in enumerate(("t10k", "train")):
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        header = struct.pack(">IIII", 0x803, n, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, n)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return images, labels


def test_grey_images_of_torchvision_have_one_channel(tmp_path):
    images, labels = write_mnist(tmp_path)
    found = read_torchvision("MNIST", tmp_path, train=True)
    np.testing.assert_array_equal(found.images, images[..., None])
    np.testing.assert_array_equal(found.labels, labels)
    assert found.class_names[0] == "0 - zero"


def test_a_torchvision_set_that_is_not_on_disk_is_refused(tmp_path):
    with pytest.raises(DataError, match="no MNIST there; nothing is downloaded: put its unpacked"):
        read_torchvision("MNIST", tmp_path, train=True)


def test_a_torchvision_name_in_other_letters_gets_a_suggestion(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no data set 'mnist'.*did you mean 'MNIST'"):
        read_torchvision("mnist", tmp_path, train=True)


@pytest.mark.parametrize("name", ["Nothing", "SVHN"])
def test_a_torchvision_set_without_the_two_parts_is_refused(tmp_path, name):
    with pytest.raises(ConfigurationError, match=name):
        read_torchvision(name, tmp_path, train=True)
