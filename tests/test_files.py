"""Folders of images and .npz files against trees and arrays made by hand."""

import contextlib
import io
import os
import zipfile

import numpy as np
import pytest
from conftest import changed
from PIL import Image

from ebm_jax import schema
from ebm_jax.data import decode, files, sources
from ebm_jax.types import BadInput

SHAPE = (8, 8, 3)


def write_image(path, color=(10, 20, 30), size=(8, 8), **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **save)


def encoded(image, kind="png", **save):
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def listing(source, root):
    """(path from root, label) of each row."""
    return [(os.path.relpath(source.name(row), root), source.read(row)[1]) for row in range(source.length)]


def test_classes_and_images_come_in_the_order_of_their_names_and_what_is_no_image_does_not_count(tmp_path):
    expected = [  # code points: capitals before small letters, "a" before "a b" although " " sorts before "/"
        ("Zebra/1.JPG", 0),
        ("Zebra/10.png", 0),
        ("Zebra/2.png", 0),
        ("a/x/1.png", 1),
        ("a/x y/1.Jpeg", 1),
        ("a/x.png", 1),
        ("a/z.webp", 1),
        ("a b/nested/deep/1.bmp", 2),
        ("a b/ü ñ.gif", 2),
        ("日本/1.TIF", 3),
    ]
    for file, _ in reversed(expected):
        write_image(tmp_path / file)
    for ignored in ("a/.hidden.png", "a/.thumbnails/1.png", ".git/1.png"):
        write_image(tmp_path / ignored)
    for text in ("a/notes.txt", "a/png", "README.md", "a/x.png.part"):
        (tmp_path / text).write_text("no image")
    source = files.folder_source(tmp_path, "train", SHAPE, crop=False)
    assert listing(source, tmp_path) == expected
    assert source.num_classes == 4


def test_a_flat_folder_is_one_class(tmp_path):
    for name in ("b.png", "a.png", "B.png"):
        write_image(tmp_path / name)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.json").write_text("{}")
    source = files.folder_source(str(tmp_path), "train", SHAPE, crop=False)
    assert listing(source, tmp_path) == [("B.png", 0), ("a.png", 0), ("b.png", 0)]
    assert source.num_classes == 1


def test_a_linked_class_folder_is_read(tmp_path):
    write_image(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    assert files.folder_source(tmp_path / "root", "train", SHAPE, crop=False).length == 1


def test_split_folders_are_used_and_the_test_split_has_the_labels_of_the_train_split(tmp_path):
    for file in ("train/ant/1.png", "train/bee/1.png", "train/cat/1.png", "test/cat/2.png", "test/ant/2.png"):
        write_image(tmp_path / file)
    train, test = (files.folder_source(tmp_path, split, SHAPE, crop=False) for split in ("train", "test"))
    assert listing(train, tmp_path / "train") == [("ant/1.png", 0), ("bee/1.png", 1), ("cat/1.png", 2)]
    assert listing(test, tmp_path / "test") == [("ant/2.png", 0), ("cat/2.png", 2)]
    assert train.num_classes == test.num_classes == 3


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path):
    write_image(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    name = files.folder_source(tmp_path, "train", SHAPE, crop=False).name(0)
    assert name.endswith("/\\xff.png")
    name.encode()


@pytest.mark.parametrize(
    ("tree", "split", "message"),
    [
        ([], "train", r"root has no images; put files ending in \.png, \.jpg"),
        (None, "train", "root is not a folder; give the one that holds the images"),
        (["1.png", "cat/1.png"], "train", "root has images and the class folder cat side by side"),
        (["cat/1.png", "dog/notes.txt"], "train", "root/dog has no images; put some there, or delete the folder"),
        (["cat/1.png"], "test", "data.split 'test' needs the folder .*root/test; make it, or use data.split=train"),
        (["train/cat/1.png", "test/dog/1.png"], "test", "root/test/dog is no class of .*root/train; rename it"),
    ],
)
def test_folders_that_cannot_be_used_are_refused_in_one_line(tmp_path, tree, split, message):
    root = tmp_path / "root"
    if tree is not None:
        root.mkdir()
    for file in tree or []:
        write_image(root / file) if file.endswith(".png") else (root / file).parent.mkdir(parents=True)
    with pytest.raises(BadInput, match=message) as raised:
        files.folder_source(root, split, SHAPE, crop=False)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded"),
        (b"just some text\n" * 20, "cannot be decoded"),
        (encoded(Image.effect_noise((8, 8), 50))[:60], "cannot be decoded"),
        (encoded(Image.new("RGB", (8, 8)), exif=b"Exif\0\0II*\0"), "cannot be decoded"),  # PIL raises a struct.error
        (encoded(Image.new("RGB", (8, 9))), "is 9x8 and not 8x8"),
        (encoded(Image.new("F", (8, 8)), "tiff"), "has 32-bit pixels of unknown range"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, content, message):
    write_image(tmp_path / "1.png")
    source = files.folder_source(tmp_path, "train", SHAPE, crop=False)
    (tmp_path / "1.png").unlink() if content is None else (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(decode.Unreadable, match=message):
        source.read(0)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_files_of_every_kind_are_read_or_unreadable_and_nothing_else():
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a camera"
    picture = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
    for kind in ("png", "jpeg", "webp", "tiff"):
        whole = np.frombuffer(encoded(picture, kind, exif=exif), np.uint8)
        for _ in range(250):
            damaged = whole[: rng.integers(len(whole) // 2, len(whole) + 1)].copy()
            damaged[rng.integers(0, 150, 3)] = rng.integers(0, 256, 3)  # where headers and EXIF are
            with contextlib.suppress(decode.Unreadable):
                assert decode.decode(damaged.tobytes(), SHAPE, crop=True).shape == SHAPE


RED = (200, 40, 20)
LUMA = round(0.299 * RED[0] + 0.587 * RED[1] + 0.114 * RED[2])  # ITU-R 601-2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_color_images_come_out_as_color_and_as_luma(mode):
    image = Image.new("RGB", (8, 8), RED)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    assert image.mode == mode
    assert (decode.decode(encoded(image), (8, 8, 3), crop=False) == RED).all()
    assert (decode.decode(encoded(image), (8, 8, 1), crop=False) == LUMA).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_gray_images_come_out_the_same_in_each_channel(mode):
    image = Image.new("L", (8, 8), 255).convert(mode)
    for channels in (1, 3):
        decoded = decode.decode(encoded(image), (8, 8, channels), crop=False)
        assert decoded.shape == (8, 8, channels)
        assert (decoded == 255).all()


def test_sixteen_bit_gray_keeps_its_high_byte():
    values = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    for channels in (1, 3):
        decoded = decode.decode(encoded(Image.fromarray(values)), (8, 8, channels), crop=False)
        np.testing.assert_array_equal(decoded, np.repeat((values >> 8)[:, :, None], channels, 2))


def test_cmyk_jpegs_become_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan: red
    decoded = decode.decode(encoded(image, "jpeg", quality=95), SHAPE, crop=False).astype(int)
    assert np.abs(decoded - (255, 0, 0)).max() <= 4  # JPEG's rounding


def test_transparent_parts_are_white_whatever_lies_under_them():
    image = Image.new("RGBA", (8, 8), (*RED, 0))
    image.paste((*RED, 255), (0, 0, 4, 8))
    decoded = decode.decode(encoded(image), SHAPE, crop=False)
    assert (decoded[:, :4] == RED).all()
    assert (decoded[:, 4:] == 255).all()


def test_the_first_frame_of_an_animation_is_read():
    first, second = Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 255)
    content = encoded(first, "gif", save_all=True, append_images=[second])
    assert (decode.decode(content, (8, 8, 1), crop=False) == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(orientation):
    upright = np.arange(48, dtype=np.uint8).reshape(6, 8)
    stored = {  # what a camera stores for `upright`, by the EXIF standard's names of rows and columns
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), "png", exif=exif)
    for crop in (True, False):
        np.testing.assert_array_equal(decode.decode(content, (6, 8, 1), crop)[:, :, 0], upright)


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(8, 21, (0, 8), (6, 14)), (13, 8, (2, 10), (0, 8))])
def test_cropping_alone_copies_the_middle_pixels(height, width, rows, columns):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    decoded = decode.decode(encoded(Image.fromarray(pixels)), SHAPE, crop=True)
    np.testing.assert_array_equal(decoded, pixels[slice(*rows), slice(*columns)])


def test_shrinking_keeps_the_aspect_and_the_centre():
    """A linear ramp along each axis, sampled at the centres of 4x4 pixels. Any symmetric filter keeps it."""
    y, x = np.mgrid[0:32, 0:64].astype(float)
    pixels = np.stack([3 * x, 6 * y, 0 * x], -1).round().astype(np.uint8)
    decoded = decode.decode(encoded(Image.fromarray(pixels)), SHAPE, crop=True).astype(float)
    centres = 4 * np.arange(8) + 1.5
    inner = slice(1, -1)  # rows at the edge have nothing beyond it to balance the filter
    np.testing.assert_allclose(decoded[inner, inner, 0] - 3 * (16 + centres)[None, inner], 0, atol=1)
    np.testing.assert_allclose(decoded[inner, inner, 1] - 6 * centres[inner, None], 0, atol=1)


def test_a_very_long_image_costs_no_more_memory_than_it_has(monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: sizes.append(size) or resize(self, size, *a, **k)
    )
    assert decode.decode(encoded(Image.new("L", (30_000, 1))), SHAPE, crop=True).shape == SHAPE
    assert sizes == [(8, 8)]


@pytest.mark.parametrize("shape", [(32, 24, 3), (24, 32, 3), (8, 100, 3)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_decoded_at_reduced_size_is_the_same_picture(orientation, shape, monkeypatch):
    y, x = np.mgrid[0:480, 0:640] / 480
    smooth = 127 + 60 * np.sin(7 * x + 3 * y)[..., None] + 60 * np.cos(np.array([5, 9, 13]) * y[..., None])
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(smooth.astype(np.uint8)), "jpeg", quality=95, exif=exif)
    drafted = decode.decode(content, shape, crop=True)
    monkeypatch.setattr(decode, "_draft", lambda image, shape: None)
    whole = decode.decode(content, shape, crop=True)
    assert drafted.shape == shape
    assert np.abs(drafted.astype(int) - whole).max() <= 4  # gray levels; the pictures' own range is 240


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


def test_an_npz_gives_its_own_images_and_labels(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (5, 8, 8, 3), np.uint8), np.array([2, 0, 1, 2, 2])
    source = files.npz_source(npz(tmp_path, images=pixels, labels=labels), "train", SHAPE, crop=False)
    rows = [source.read(row) for row in range(source.length)]
    np.testing.assert_array_equal([image for image, _ in rows], pixels)
    assert [label for _, label in rows] == [2, 0, 1, 2, 2]
    assert source.num_classes == 3
    assert source.name(3).endswith("set.npz: images[3]")


def test_keras_names_have_splits_with_the_same_classes(tmp_path):
    train, test = np.zeros((4, 8, 8), np.uint8), np.ones((2, 8, 8), np.uint8)
    path = npz(
        tmp_path, x_train=train, y_train=np.array([[0], [9], [1], [1]]), x_test=test, y_test=np.array([[1], [0]])
    )
    source = files.npz_source(path, "test", (8, 8, 1), crop=False)
    image, label = source.read(0)
    assert image.shape == (8, 8, 1)
    assert (image == 1).all()
    assert (label, source.length, source.num_classes) == (1, 2, 10)


def test_floats_are_rounded_to_the_nearest_of_256_levels(tmp_path):
    levels = np.arange(64).reshape(1, 8, 8)
    for dtype in (np.float32, np.float64, np.float16):
        path = npz(tmp_path, images=((levels + np.where(levels % 2, -0.3, 0.3)) / 255).astype(dtype))
        image, label = files.npz_source(path, "train", (8, 8, 1), crop=False).read(0)
        np.testing.assert_array_equal(image[:, :, 0], levels[0])
        assert image.dtype == np.uint8
        assert label == 0


def test_labels_that_count_from_1_are_told_how_to_count_from_0(tmp_path):
    def config_for(labels, num_classes):
        np.savez(tmp_path / "set.npz", images=np.zeros((6, 8, 8), np.uint8), labels=labels)
        changes = {"data__source": f"npz:{tmp_path / 'set.npz'}", "data__split": "train", "data__shape": (8, 8, 1)}
        return changed(schema.defaults(), **changes, model__num_classes=num_classes)

    with pytest.raises(BadInput, match=r"labels begin at 1, .*; save labels - 1 to count from 0; use 1 .* or 4$"):
        sources.make_source(config_for([1, 2, 3] * 2, 3))
    assert not sources.make_source(config_for([0, 1, 2] * 2, 3)).found.notes


def test_soft_labels_are_kept(tmp_path):
    soft = np.array([[0.25, 0.75], [1.0, 0.0]])
    source = files.npz_source(npz(tmp_path, images=np.zeros((2, 8, 8)), labels=soft), "train", SHAPE, crop=False)
    assert source.num_classes == 2
    np.testing.assert_array_equal(source.read(0)[1], soft[0])


def test_npz_images_are_cropped_and_colored_as_files_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 30, 20), np.uint8)
    image, _ = files.npz_source(npz(tmp_path, images=pixels), "train", SHAPE, crop=True).read(0)
    np.testing.assert_array_equal(image, decode.decode(encoded(Image.fromarray(pixels[0])), SHAPE, crop=True))


GOOD = np.zeros((3, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "split", "message"),
    [
        ({"pictures": GOOD}, "train", "has pictures but neither images nor x_train"),
        ({"images": GOOD}, "test", "data.split 'test' is not in .*set.npz"),
        ({"images": GOOD[0]}, "train", r"images has the shape \(8, 8\)"),
        ({"images": np.zeros((3, 8, 8, 4), np.uint8)}, "train", r"images has the shape \(3, 8, 8, 4\)"),
        ({"images": GOOD[:0]}, "train", r"images has the shape \(0, 8, 8\)"),
        ({"images": np.zeros((3, 28, 28), np.uint8)}, "train", r"data.shape \(8, 8, 3\) does not fit .* are 28x28"),
        ({"images": GOOD.astype(np.int64)}, "train", "images has the type int64; save uint8, or floats from 0 to 1"),
        ({"images": GOOD - np.float32(1)}, "train", r"images ranges from -1\.0 to -1\.0; scale it"),
        ({"images": GOOD + np.float32(255)}, "train", r"images ranges from 255\.0 to 255\.0; scale it"),
        ({"images": GOOD * np.nan}, "train", "images ranges from nan to nan"),
        ({"images": GOOD, "labels": np.arange(4)}, "train", "labels has 4 labels for 3 images; save one for each"),
        ({"images": GOOD, "labels": np.arange(3) - 1}, "train", "labels ranges from -1 to 1; save numbers from 0 on"),
        ({"images": GOOD, "labels": np.full((3, 2), np.nan)}, "train", "labels ranges from nan to nan"),
        ({"images": GOOD, "labels": np.arange(3.0)}, "train", r"labels is float64 \(3,\); save integers \[n\]"),
        ({"images": GOOD, "labels": np.eye(3, dtype=int)}, "train", r"labels is int64 \(3, 3\); save integers \[n\]"),
        ({"images": GOOD, "labels": np.array([None] * 3)}, "train", "labels cannot be read .*; save it again"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_in_one_line(tmp_path, arrays, split, message):
    with pytest.raises(BadInput, match=message) as raised:
        files.npz_source(npz(tmp_path, **arrays), split, SHAPE, crop=False)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_npz_are_refused(tmp_path):
    path = tmp_path / "set.npz"
    with pytest.raises(BadInput, match=r"does not exist; give the \.npz file"):
        files.npz_source(path, "train", SHAPE, crop=False)
    for content in (b"", b"text", encoded(Image.new("L", (8, 8)))):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"is no \.npz file that can be read"):
            files.npz_source(path, "train", SHAPE, crop=False)
    with path.open("wb") as file:
        np.save(file, GOOD)
    with pytest.raises(BadInput, match="is a single array"):
        files.npz_source(path, "train", SHAPE, crop=False)


def test_a_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8))
    with zipfile.ZipFile(path) as archive:
        start = archive.infolist()[0].header_offset + 100
    content = bytearray(path.read_bytes())
    content[start + 100 : start + 200] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(BadInput, match="images cannot be read"):
        files.npz_source(path, "train", SHAPE, crop=False)
