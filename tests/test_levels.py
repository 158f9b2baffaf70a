"""Which value is white, which files are images, and what is passed over: against files and arrays made by hand."""

import contextlib
import io
import math

import numpy as np
import pytest
from conftest import changed
from PIL import Image
from test_fuzz_images import png

from ebm_jax import schema
from ebm_jax.data import decode, files, levels, memory, sources
from ebm_jax.types import BadInput

RAMP = np.tile(np.arange(16) / 15, (16, 1))
SHAPE = (16, 16, 1)


def write(path, values):
    """A 16-bit gray PNG."""
    Image.fromarray(np.rint(values).astype(np.uint16)).save(path)


def folder(path, **options):
    return files.folder_source(path, "train", SHAPE, crop=False, **options)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_16_bit_files_of_fewer_bits_are_refused_and_the_cure_makes_their_white_255(tmp_path, bits):
    white = 2**bits - 1
    write(tmp_path / "a.png", RAMP * white)
    with pytest.raises(BadInput, match=rf"largest value is {white:,} of 65,535.*use data\.max_value={white} if"):
        folder(tmp_path)
    source = folder(tmp_path, max_value=float(white))
    np.testing.assert_allclose(source.read(0)[0][:, :, 0], 255 * RAMP, atol=0.5 + 127.5 / white + 1e-9)
    assert source.found.values == (0, white)
    assert source.found.notes == (f"in 16-bit images {white:g} is white (data.max_value)",)


def test_16_bits_that_are_full_are_cut_to_their_high_byte_whether_or_not_it_is_named(tmp_path):
    write(tmp_path / "a.png", RAMP * 65535)
    for max_value in (0.0, 65535.0, math.inf):
        np.testing.assert_array_equal(
            folder(tmp_path, max_value=max_value).read(0)[0][:, :, 0], np.rint(RAMP * 65535) // 256
        )


def test_an_older_run_goes_on_with_dark_images_and_is_told(tmp_path):
    absent = schema.KEYS["data.max_value"].absent
    write(tmp_path / "a.png", RAMP * 1023)
    source = folder(tmp_path, max_value=absent)
    assert source.read(0)[0].max() == 1023 // 256
    assert source.found.notes == ("16-bit images of at most 1,023 are read as dark: 65,535 is white",)


@pytest.mark.parametrize(
    ("first", "max_value", "message"),
    [
        (RAMP * 1023, 1023.0, r"z\.png has the value 4,095, more than data\.max_value 1023; use data\.max_value=4095"),
        (RAMP * 0, 0.0, r"z\.png has 16 bits, though the images looked at .*largest value 4,095; use data\.max_v"),
    ],
)
def test_a_value_that_the_images_looked_at_do_not_have_is_an_error_that_names_the_file(
    tmp_path, monkeypatch, first, max_value, message
):
    monkeypatch.setattr(levels, "LOOKED_AT", 1)
    write(tmp_path / "a.png", first)
    write(tmp_path / "z.png", RAMP * 4095)
    source = folder(tmp_path, max_value=max_value)
    with pytest.raises(BadInput, match=message):
        source.read(1)
    monkeypatch.setattr(levels, "LOOKED_AT", 2)
    with pytest.raises(BadInput, match="4,095"):
        folder(tmp_path, max_value=max_value)


def deep_colour(largest):
    """A 16-bit RGB PNG, which Pillow cannot write."""
    row = b"\0" + np.full(48, largest, ">u2").tobytes()
    return png(16, 16, 16, 2, row * 16)


def test_16_bit_colour_of_fewer_bits_is_refused_because_its_low_byte_cannot_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(deep_colour(1023))
    with pytest.raises(BadInput, match=r"largest value is 1,023 of 65,535"):
        folder(tmp_path)
    with pytest.raises(BadInput, match=r"a\.png has 16 bits a channel.*save it with 8 bits"):
        folder(tmp_path, max_value=1023.0).read(0)
    (tmp_path / "a.png").write_bytes(deep_colour(65535))
    assert folder(tmp_path).read(0)[0].min() == 255


def test_a_portable_graymap_says_itself_what_white_is(tmp_path):
    values = np.rint(RAMP * 1023).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 1023\n" + values.tobytes())
    np.testing.assert_allclose(folder(tmp_path).read(0)[0][:, :, 0], 255 * RAMP, atol=1)


def arrays(tmp_path, max_value=0.0, **named):
    np.savez(tmp_path / "set.npz", **named)
    return files.npz_source(tmp_path / "set.npz", "train", SHAPE, crop=False, max_value=max_value)


def test_floats_divided_by_255_twice_are_refused_and_the_cure_makes_their_white_255(tmp_path):
    images = (RAMP / 255)[None].astype(np.float32)
    with pytest.raises(BadInput, match=r"brightest pixel would come out as 1 of 255; use data\.max_value=0\.00392157"):
        arrays(tmp_path, images=images)
    np.testing.assert_array_equal(arrays(tmp_path, 0.00392157, images=images).read(0)[0][:, :, 0], 255 * RAMP)
    assert arrays(tmp_path, 1.0, images=images).read(0)[0].max() == 1
    assert arrays(tmp_path, math.inf, images=images).read(0)[0].max() == 1, "as runs did before the key existed"


@pytest.mark.parametrize(("kind", "white"), [(np.uint16, 4095), (np.int64, 255), (np.float32, 255), (np.uint32, 16)])
def test_arrays_of_other_types_are_taken_with_the_value_of_white(tmp_path, kind, white):
    images = np.rint(RAMP * white)[None].astype(kind)
    with pytest.raises(BadInput, match=r"data\.max_value"):
        arrays(tmp_path, images=images)
    source = arrays(tmp_path, float(white), images=images)
    np.testing.assert_allclose(source.read(0)[0][:, :, 0], 255 / white * images[0], atol=0.501)
    with pytest.raises(BadInput, match=rf"ranges from 0.* to {white}.*scale it to 0 to {white // 2}"):
        arrays(tmp_path, float(white // 2), images=images)


def test_rounding_beyond_0_and_1_is_taken_and_real_excess_is_refused(tmp_path):
    images = RAMP[None].copy()
    images[0, 0, 0], images[0, 0, 15] = -1e-8, 1.0000001
    np.testing.assert_array_equal(arrays(tmp_path, images=images).read(0)[0][:, :, 0], 255 * RAMP)
    for excess in (1.01, -0.01, np.nan, np.inf):
        images[0, 0, 0] = excess
        for max_value in (0.0, 1.0, math.inf):
            with pytest.raises(BadInput, match="ranges from"):
                arrays(tmp_path, max_value, images=images)


@pytest.mark.parametrize("name", ["label", "y", "targets"])
def test_labels_under_another_name_are_used_and_other_arrays_are_named(tmp_path, name):
    images, labels = np.zeros((3, 16, 16), np.uint8), np.array([2, 0, 1])
    source = arrays(tmp_path, images=images, ids=np.arange(3), **{name: labels})
    assert [source.read(row)[1] for row in range(3)] == [2, 0, 1]
    assert source.num_classes == 3
    assert source.found.notes == (f"labels are the array {name}", "arrays that are not used: 'ids'")


def test_what_may_be_labels_and_is_not_sure_is_never_taken_in_silence(tmp_path):
    images, labels = np.zeros((3, 16, 16), np.uint8), np.array([2, 0, 1])
    with pytest.raises(BadInput, match=r"has y and targets, which all may be the labels; save these under labels"):
        arrays(tmp_path, images=images, y=labels, targets=labels)
    source = arrays(tmp_path, images=images, y=np.array([0.5, 1.5, 2.5]), targets=np.arange(7))
    assert source.num_classes == 1
    assert source.found.notes == ("arrays that are not used: 'y', 'targets'",)
    source = arrays(tmp_path, images=images, labels=labels, y=labels[::-1])
    assert [source.read(row)[1] for row in range(3)] == [2, 0, 1], "the usual name comes first"


WRITERS = {".dib": "DIB", ".qoi": "QOI", ".pnm": "PPM", ".jfif": "JPEG", ".jpe": "JPEG"}


def test_every_ending_is_of_a_format_that_is_read(tmp_path):
    """JPEG, AVIF and the like are lossy, but not on one colour, but for rounding in their colour spaces."""
    Image.init()
    for place, ending in enumerate(files.EXTENSIONS):
        image = Image.new("1", (16, 16), 1) if ending == ".pbm" else Image.new("RGB", (16, 16), (240, 240, 240))
        image.save(tmp_path / f"{place:02}{ending}", WRITERS.get(ending) or Image.registered_extensions()[ending])
    source = files.folder_source(tmp_path, "train", (16, 16, 3), crop=False)
    assert source.length == len(files.EXTENSIONS)
    for row in range(source.length):
        assert source.read(row)[0].min() >= 238, source.name(row)


def test_a_name_says_nothing_of_the_format_but_for_one_without_a_mark(tmp_path):
    image = Image.new("RGB", (16, 16), (9, 9, 9))
    image.save(tmp_path / "a.png", "JPEG")
    image.save(tmp_path / "b.png", "TGA")
    source = files.folder_source(tmp_path, "train", (16, 16, 3), crop=False)
    assert source.read(0)[0].max() < 12
    with pytest.raises(decode.Unreadable):
        source.read(1)


def test_what_is_passed_over_is_counted_by_its_reason(tmp_path):
    image = Image.new("RGB", (16, 16))
    for name in ("a/1.png", "a/deep/2.jpe", "b/3.avif", "more/4.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "set" / "more").rename(tmp_path / "more")
    for name in ("a/1.png", "a/deep/2.jpe", "b/3.avif"):
        image.save(tmp_path / "set" / name, "JPEG" if name.endswith("jpe") else None)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    image.save(tmp_path / "set" / "b" / "4.gif", save_all=True, append_images=frames)
    (tmp_path / "set" / "a" / "linked").symlink_to(tmp_path / "more")
    for name in ("a/5.heic", "a/6.HEIC", "b/7.svg", "b/README", "list.txt", "a/.hidden.png", "a/x\x1b[2J.\x1b[2J"):
        (tmp_path / "set" / name).write_bytes(b"?")
    found = files.folder_source(tmp_path / "set", "train", (16, 16, 3), crop=False).found
    assert dict(found.passed_over) == {
        "ending in .heic": 2,
        "ending in .svg": 1,
        "ending in .txt": 1,
        "ending in .\\x1b[2j": 1,
        "without an ending": 1,
        "hidden": 1,
        "linked folders": 1,
        "further pages or frames of 4 images looked at": 2,
    }


def test_a_class_of_nothing_but_such_files_is_refused_with_their_count(tmp_path):
    for name in ("a/1.heic", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name, "PNG")
    with pytest.raises(BadInput, match=r"a has no images \(1 ending in \.heic\); put some there"):
        folder(tmp_path)
    with pytest.raises(BadInput, match=r"a has no images \(1 ending in \.heic\); put files ending in"):
        folder(tmp_path / "a")


def test_an_older_run_sees_the_files_that_it_saw_and_the_others_are_counted(tmp_path):
    for name in ("a.png", "b.avif", "c.tif", "d.jpe"):
        Image.new("L", (16, 16)).save(tmp_path / name, "JPEG" if name == "d.jpe" else None)
    absent = schema.KEYS["data.extensions"].absent
    source = folder(tmp_path, extensions=absent)
    assert [source.name(row)[-5:] for row in range(source.length)] == ["a.png", "c.tif"]
    assert source.found.passed_over == (("ending in .avif", 1), ("ending in .jpe", 1))
    assert folder(tmp_path).length == 4
    with pytest.raises(BadInput, match=r"data\.extensions '\.heic' cannot be read; use some of \.png"):
        folder(tmp_path, extensions=".png,.heic")


def test_the_keys_of_the_config_reach_the_folder(tmp_path):
    write(tmp_path / "a.png", RAMP * 1023)
    write(tmp_path / "b.tif", RAMP * 1023)
    config = changed(
        schema.defaults(),
        data__source=f"folder:{tmp_path}",
        data__shape=SHAPE,
        data__max_value=1023.0,
        data__extensions=".png",
    )
    source = sources.make_source(config)
    assert (source.length, source.read(0)[0].max()) == (1, 255)


def test_an_image_of_another_size_names_the_key_that_takes_it(tmp_path):
    Image.new("L", (17, 16)).save(tmp_path / "a.png")
    with pytest.raises(decode.Unreadable, match=r"is 16x17 and not 16x16 \(data\.crop=True takes images of any size\)"):
        folder(tmp_path).read(0)
    with pytest.raises(BadInput, match=r"data\.crop=True, which takes images of any size"):
        arrays(tmp_path, images=np.zeros((1, 9, 9), np.uint8))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_picture_that_is_postscript_never_starts_ghostscript(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: started.append(args))
    with Image.open(io.BytesIO(POSTSCRIPT)) as image, contextlib.suppress(Exception):
        image.load()
    assert started, "Pillow alone starts it"
    started.clear()
    for name in ("cat.png", "cat.tga"):
        (tmp_path / name).write_bytes(POSTSCRIPT)
    source = folder(tmp_path)
    for row in range(2):
        with pytest.raises(decode.Unreadable, match="cannot be decoded"):
            source.read(row)
    assert not started
    assert source.found.values is None


def test_a_bomb_is_refused_where_pillow_s_own_limit_was_taken_away(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(decode.Unreadable, match=r"claims 60000x60000 pixels, of which 178,956,970 are read"):
        decode.decode(png(60_000, 60_000), SHAPE, crop=True)


def floats(shape):
    return memory.Dataset(np.ones((4, *shape), np.float32), np.zeros(4, np.int32), 1)


def test_a_source_of_one_s_own_that_gives_floats_is_refused_and_not_read_as_black():
    config = changed(schema.defaults(), data__source="test_levels:floats", data__shape=SHAPE)
    with pytest.raises(BadInput, match=r"gives images of float32; give uint8"):
        sources.make_source(config).read(0)
