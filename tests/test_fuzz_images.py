"""Folders and .npz files of anything but ordinary images: read, skipped by name, or refused in one clear line.

Every example ends as `outcome` says: with pixels of the requested shape, or with one printable line. Nothing else may
be raised, and no file may change. The counts are in docs/reliability.md.
"""

import io
import os
import signal
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ebm_jax.data import decode, files, source
from ebm_jax.types import BadInput

SHAPE = (8, 8, 3)
LONGEST = 1000  # characters of a message
HANG = 300  # seconds; no test needs as many, however busy the machine
QUICK = settings(max_examples=50, derandomize=True, deadline=None, database=None)
MANY = settings(max_examples=3_000, derandomize=True, deadline=None, database=None)


@pytest.fixture(autouse=True)
def no_hang():
    """A read that waits for ever, such as a pipe's, is an error."""

    def stop(signum, frame):
        raise TimeoutError(f"a test took {HANG} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def encoded(image, kind, **save):
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth=8, color=2, rows=b"", extra=b""):
    """A PNG that claims this size, whatever its rows hold; color is 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def check_line(error):
    text = str(error)
    assert 0 < len(text) < LONGEST
    assert len(" ".join(text.split()).splitlines()) == 1, "run.py prints it as one line"


def outcome(encoded_image, shape, crop):
    """ "read" or "unreadable"."""
    try:
        pixels = decode.decode(encoded_image, shape, crop)
    except decode.Unreadable as error:
        check_line(error)
        return "unreadable"
    assert pixels.shape == shape
    assert pixels.dtype == np.uint8
    return "read"


BOMB_TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
BLACK = Image.new("RGB", (8, 8))
WIDE_GRAY = (b"\0" + b"\x12\x34" * 8) * 8  # 16 bits a pixel

ODD = (
    {  # name: (the file, what becomes of it with data.crop, and without)
        "claims 60000x60000": (png(60_000, 60_000), "unreadable", "unreadable"),
        "claims 2147483647x1": (png(2**31 - 1, 1), "unreadable", "unreadable"),
        "claims 0x0": (png(0, 0), "unreadable", "unreadable"),
        "hides 100 MB of text": (png(8, 8, rows=(b"\0" + bytes(24)) * 8, extra=BOMB_TEXT), "unreadable", "unreadable"),
        "empty": (b"", "unreadable", "unreadable"),
        "text": (b"not an image\n" * 50, "unreadable", "unreadable"),
        "zeros": (bytes(5000), "unreadable", "unreadable"),
        "header alone": (encoded(BLACK, "png")[:33], "unreadable", "unreadable"),
        "16-bit gray": (png(8, 8, 16, 0, WIDE_GRAY), "read", "read"),
        "16-bit RGB": (png(8, 8, 16, 2, (b"\0" + b"\x12\x34" * 24) * 8), "read", "read"),
        "16-bit RGBA": (png(8, 8, 16, 6, (b"\0" + b"\x12\x34" * 32) * 8), "read", "read"),
        "16-bit TIFF": (encoded(Image.new("I;16B", (8, 8)), "tiff"), "read", "read"),
        "32-bit TIFF": (encoded(Image.new("I", (8, 8)), "tiff"), "unreadable", "unreadable"),
        "float TIFF": (encoded(Image.new("F", (8, 8)), "tiff"), "unreadable", "unreadable"),
        "CMYK JPEG": (encoded(Image.new("CMYK", (8, 8)), "jpeg"), "read", "read"),
        "CMYK TIFF": (encoded(Image.new("CMYK", (8, 8)), "tiff"), "read", "read"),
        "Lab TIFF": (encoded(Image.new("LAB", (8, 8)), "tiff"), "read", "read"),
        "bitmap": (encoded(Image.new("1", (8, 8)), "png"), "read", "read"),
        "palette": (encoded(Image.new("P", (8, 8)), "gif"), "read", "read"),
        "palette with one clear entry": (encoded(Image.new("P", (8, 8)), "png", transparency=0), "read", "read"),
        "palette with an alpha each": (
            encoded(Image.new("P", (8, 8)), "png", transparency=bytes(range(256))),
            "read",
            "read",
        ),
        "gray and alpha": (encoded(Image.new("LA", (8, 8)), "png"), "read", "read"),
        "one pixel": (encoded(Image.new("RGB", (1, 1)), "png"), "read", "unreadable"),
        "1x60000": (encoded(Image.new("RGB", (1, 60_000)), "png"), "read", "unreadable"),
        "60000x1": (encoded(Image.new("RGB", (60_000, 1)), "jpeg"), "read", "unreadable"),
    }
    | {
        f"animated {kind}": (
            encoded(BLACK, kind, save_all=True, append_images=[Image.new("RGB", (8, 8), (9, 9, 9))]),
            "read",
            "read",
        )
        for kind in ("gif", "webp", "png", "tiff")
    }
)


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_read_where_they_can_be_and_else_unreadable(name):
    content, cropped, exact = ODD[name]
    assert outcome(content, SHAPE, crop=True) == cropped
    assert outcome(content, SHAPE, crop=False) == exact


def test_transparent_parts_are_white_and_animations_their_first_frame():
    clear = encoded(Image.new("P", (8, 8)), "png", transparency=0)
    assert (decode.decode(clear, SHAPE, crop=False) == 255).all()
    for kind in ("gif", "webp", "png", "tiff"):
        assert (decode.decode(ODD[f"animated {kind}"][0], SHAPE, crop=False) == 0).all()


MODES = {"png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "gif": ["L", "P", "RGB"], "bmp": ["1", "L", "P", "RGB"]}
MODES |= {"jpeg": ["L", "RGB", "CMYK", "YCbCr"], "webp": ["L", "RGB", "RGBA"]}
MODES |= {"tiff": ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16", "I;16B"]}


@st.composite
def damaged_images(draw):
    """An image of any kind, cut short, with some bytes changed, or left whole."""
    kind = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[kind]))
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    content = bytearray(encoded(Image.new(mode, size), kind))
    return bytes(damaged(draw, content, 200)) if draw(st.booleans()) else bytes(content)


def damaged(draw, content, reach):
    """Some of the first `reach` bytes changed; or cut short."""
    if draw(st.booleans()):
        return content[: draw(st.integers(0, len(content)))]
    for place, value in draw(st.lists(st.tuples(st.integers(0, reach), st.integers(0, 255)), max_size=4)):
        content[place % len(content)] = value
    return content


def fuzz_images(profile):
    counts = Counter()

    @profile
    @given(damaged_images() | st.binary(max_size=300), st.sampled_from([1, 3]), st.booleans())
    def example(content, channels, crop):
        counts[outcome(content, (8, 8, channels), crop)] += 1

    example()
    return counts


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_images_are_read_or_unreadable():
    counts = fuzz_images(QUICK)
    assert counts.total() >= QUICK.max_examples
    assert min(counts["read"], counts["unreadable"]) > 3, counts


def fill(folder, name):
    """Put one thing into the folder that looks like an image by its name and is none."""
    path = folder / "odd.png"
    if name == "empty":
        path.write_bytes(b"")
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "huge":
        with path.open("wb") as file:
            file.truncate(2**42)  # without a byte on the disk
    elif name == "line break":
        (folder / "o\ndd\x1b[2J.png").write_bytes(b"")
    elif name == "no UTF-8":
        with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb"):
            pass
    else:
        path.symlink_to(
            {"link to nothing": "nothing", "link to itself": "odd.png", "link to a device": "/dev/zero"}[name]
        )


COUNTED = ("empty", "huge", "line break", "no UTF-8", "link to nothing", "link to itself")
PASSED_OVER = ("pipe", "folder", "link to a device")


def snapshot(root):
    """Every path below `root` with its kind, size, time and, where it is small, content."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        small = path.is_file() and not path.is_symlink() and status.st_size < 10_000
        found[os.fsencode(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, small and path.read_bytes())
    return found


@pytest.mark.parametrize("inside", ["", "cat"])
@pytest.mark.parametrize("name", COUNTED + PASSED_OVER)
def test_what_only_looks_like_an_image_is_named_or_passed_over_and_left_as_it_is(tmp_path, name, inside):
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(encoded(BLACK, "png"))
    fill(folder, name)
    before, warnings = snapshot(tmp_path), []
    read = source.tolerant(files.folder_source(tmp_path, "train", SHAPE, crop=True), 100, warnings.append)
    assert all(read.read(row)[0].shape == SHAPE for row in range(read.length))
    assert read.length == 1 + (name in COUNTED)
    assert len(warnings) == (name in COUNTED)
    assert all(line.isprintable() for line in warnings)
    assert snapshot(tmp_path) == before


def test_a_folder_of_nothing_but_such_files_is_refused_in_one_line(tmp_path):
    for name in COUNTED:
        fill(tmp_path / name, name) if not (tmp_path / name).mkdir() else None
    read = source.tolerant(files.folder_source(tmp_path, "train", SHAPE, crop=True), 100, lambda line: None)
    with pytest.raises(BadInput, match="none of the 6 images can be read") as raised:
        read.read(0)
    check_line(raised.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(BLACK, "png"))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(decode.Unreadable, match="Permission denied"):
        files.folder_source(tmp_path, "train", SHAPE, crop=True).read(0)
    tmp_path.chmod(0)
    try:
        with pytest.raises(BadInput, match="cannot be read"):
            files.folder_source(tmp_path, "train", SHAPE, crop=True)
    finally:
        tmp_path.chmod(0o700)


PATHS = ["~nobody_of_this_name/x", "a" * 5000, "a\0b", "/dev/null", "/proc/self/mem", "link", "a\nb", "\udcff"]


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
@pytest.mark.parametrize("make", [files.folder_source, files.npz_source])
def test_a_path_that_leads_nowhere_is_refused_in_one_line(tmp_path, monkeypatch, make, path):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("link")
    with pytest.raises(BadInput) as raised:
        make(path, "train", SHAPE, crop=True)
    assert " ".join(str(raised.value).split())


TYPES = ["u1", "i1", "i2", "i8", "u8", "f2", "f4", "f8", ">f4", "g", "c8", "?", "m8[s]", "M8[s]", "S3", "U2", "V5", "O"]
TYPES += ["i4,f4"]
IMAGE_SHAPES = [(), (3,), (3, 8), (3, 8, 8), (3, 8, 8, 1), (3, 8, 8, 3), (3, 9, 7), (3, 8, 8, 2), (3, 8, 8, 4)]
IMAGE_SHAPES += [(0, 8, 8), (3, 0, 8), (3, 8, 8, 0), (1, 3, 8, 8, 1), (3, 1, 1), (3, 1, 500)]
LABEL_SHAPES = [(), (3,), (3, 1), (3, 2), (3, 0), (0,), (2,), (4,), (3, 2, 2)]
FILLINGS = [0, 1, 2, -1, 255, 2**31 - 1, 2**31, 2**63 - 1, 0.5, 1.5, np.nan, np.inf, -np.inf]


def filled(shape, kind, value):
    with np.errstate(all="ignore"):
        try:
            return np.full(shape, value, np.dtype(kind))
        except (ValueError, TypeError, OverflowError):  # NumPy has no such value of this type
            return np.zeros(shape, np.dtype(kind))


@st.composite
def archives(draw):
    """The bytes of an .npz file: arrays of any type, shape and value, under the right or wrong names, or damaged."""
    buffer, odd = io.BytesIO(), draw(st.sets(st.sampled_from(["image", "label", "name", "damage"]), max_size=2))
    image = (IMAGE_SHAPES, TYPES, FILLINGS) if "image" in odd else ([(3, 8, 8), (3, 9, 7, 3)], ["u1", "f4"], [0, 1])
    label = (LABEL_SHAPES, TYPES, FILLINGS) if "label" in odd else ([(3,), (3, 1)], ["u1", "i8"], [0, 255])
    names = st.sampled_from(["images", "labels", "x_train", "y_train", "x_test", "y_test", "pictures"])
    arrays = {draw(names) if "name" in odd else "images": image, draw(names) if "name" in odd else "labels": label}
    values = {name: filled(*map(draw, map(st.sampled_from, choices))) for name, choices in arrays.items()}
    draw(st.sampled_from([np.savez, np.savez_compressed]))(buffer, **values)
    content = bytearray(buffer.getvalue())
    return bytes(damaged(draw, content, 4000) if "damage" in odd else content)


def fuzz_archives(profile, path):
    counts = Counter()

    @profile
    @given(archives(), st.sampled_from([(8, 8, 1), SHAPE]), st.booleans(), st.sampled_from(["train", "test"]))
    def example(content, shape, crop, split):
        path.write_bytes(content)
        try:
            found = files.npz_source(path, split, shape, crop=crop)
        except BadInput as error:
            check_line(error)
            counts["refused"] += 1
        else:
            for row in range(found.length):
                image, label = found.read(row)
                assert image.shape == shape
                assert image.dtype == np.uint8
                stored = source.stored_label(label)
                assert stored.shape == () or stored.shape == (found.num_classes,)
                assert found.num_classes >= 1
                assert np.isfinite(stored).all()
                assert stored.ndim or 0 <= stored < found.num_classes
            counts["read"] += 1
        assert path.read_bytes() == content

    example()
    return counts


@pytest.mark.filterwarnings("ignore:overflow")
def test_archives_of_anything_are_read_or_refused_in_one_line(tmp_path):
    counts = fuzz_archives(QUICK, tmp_path / "x.npz")
    assert counts.total() >= QUICK.max_examples
    assert min(counts["read"], counts["refused"]) > 3, counts


def array_header(shape, kind="|u1"):
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


MEMBERS = {
    "claims 192 TB": array_header((10**12, 8, 8, 3)),
    "claims a size beyond all numbers": array_header((10**30, 8, 8)),
    "claims a negative size": array_header((-1, 8, 8)),
    "ends early": array_header((3, 8, 8)) + bytes(10),
    "is empty": b"",
    "is text": b"text",
    "is code": array_header("__import__('os').abort()"),
    "is nested": array_header("(" * 5000),
    "is of another version": b"\x93NUMPY\x09\0",
    "is pickled": array_header((3,), "|O") + b"cos\nabort\n(tR.",
}


@pytest.mark.parametrize("member", MEMBERS)
def test_an_archive_with_such_a_member_is_refused_in_one_line(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", MEMBERS[member])
    with pytest.raises(BadInput, match="images") as raised:
        files.npz_source(tmp_path / "x.npz", "train", SHAPE, crop=True)
    check_line(raised.value)


@pytest.mark.parametrize(
    "labels", [np.ones((3, 0)), np.array([1, 2, 3], "m8[s]"), np.array(1), np.full((3, 2), np.inf)]
)
def test_labels_that_are_none_are_refused(tmp_path, labels):
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8), np.uint8), labels=labels)
    with pytest.raises(BadInput, match="labels"):
        files.npz_source(tmp_path / "x.npz", "train", SHAPE, crop=True)


def test_the_error_of_a_damaged_archive_is_cut_short(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", array_header((3, 8, 8)) + bytes(192))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[26:28] = struct.pack("<H", 150)  # the length of the member's name; zipfile quotes the name in its error
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(BadInput, match="images cannot be read") as raised:
        files.npz_source(tmp_path / "x.npz", "train", SHAPE, crop=True)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 200 + len(str(tmp_path)) + 100


def test_an_archive_that_unpacks_to_more_than_the_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", array_header((10_000, 10, 10)) + bytes(10**6))
    monkeypatch.setattr(files.parallel, "host_memory", lambda: 10**6)
    assert (tmp_path / "x.npz").stat().st_size < 10_000
    with pytest.raises(BadInput, match="more than the memory here"):
        files.npz_source(tmp_path / "x.npz", "train", SHAPE, crop=True)


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore:overflow", "ignore:::PIL")
def test_thousands_of_images_and_archives_are_read_or_refused(tmp_path):
    for what, counts in {"images": fuzz_images(MANY), "archives": fuzz_archives(MANY, tmp_path / "x.npz")}.items():
        print(f"{what}: {counts.total()} examples, {dict(counts)}")
        assert counts.total() >= MANY.max_examples
