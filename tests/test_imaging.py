import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from detofa import imaging
from detofa.errors import UserError
from detofa.imaging import IMAGENET, LITE, Preprocessing, image_size, letterbox, read_image, resize

SIDES = st.integers(1, 700)
INPUT_SIDES = st.integers(2, 20).map(lambda units: units * 32)


def _gradient(height: int = 24, width: int = 40) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = rows * 255 // (height - 1), columns * 255 // (width - 1)
    return np.stack([red, green, np.full_like(red, 60)], axis=-1).astype(np.uint8)


def test_importing_it_does_not_import_torch():
    code = "import sys, detofa.imaging; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    path = tmp_path / "photo.png"
    image = Image.fromarray(_gradient())
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]
    assert (expected.shape[:2] == (40, 24)) == (orientation >= 5)


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00garbage", b"", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"x" * 50]
)
def test_an_invalid_exif_block_means_upright(tmp_path, exif):
    path = tmp_path / "photo.jpg"
    Image.fromarray(_gradient()).save(path, exif=exif)
    assert read_image(path).shape == (24, 40, 3)
    assert image_size(path) == (24, 40)


def test_an_orientation_out_of_range_means_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 17
    Image.fromarray(_gradient()).save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(tmp_path / "photo.jpg").shape == (24, 40, 3)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png"), ("CMYK", "tif")],
)
def test_other_kinds_of_images_become_rgb(tmp_path, mode, suffix):
    gray = np.repeat(_gradient()[..., 1:2], 3, axis=-1)
    path = tmp_path / f"image.{suffix}"
    image = Image.fromarray(gray).convert(mode)
    image.save(path)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_a_palette_with_transparency_keeps_its_colours(tmp_path):
    image = Image.new("P", (4, 4))
    image.putpalette([200, 10, 30, 0, 0, 0])
    image.save(tmp_path / "image.png", transparency=bytes([0, 255]))
    assert read_image(tmp_path / "image.png")[0, 0].tolist() == [200, 10, 30]


def test_sixteen_bit_gray_is_scaled_to_eight(tmp_path):
    values = np.array([[0, 257, 257 * 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("reader", [read_image, image_size])
class TestFilesThatCannotBeRead:
    def test_a_missing_file_is_named(self, tmp_path, reader):
        with pytest.raises(UserError, match=r"absent.jpg does not exist"):
            reader(tmp_path / "absent.jpg")

    def test_a_folder_is_refused(self, tmp_path, reader):
        with pytest.raises(UserError, match="folder"):
            reader(tmp_path)

    def test_an_empty_file_is_refused(self, tmp_path, reader):
        (tmp_path / "empty.jpg").touch()
        with pytest.raises(UserError, match=r"empty.jpg is empty \(0 bytes\)"):
            reader(tmp_path / "empty.jpg")

    def test_text_is_refused(self, tmp_path, reader):
        (tmp_path / "text.jpg").write_text("not an image at all")
        with pytest.raises(UserError, match=r"text.jpg is not an image"):
            reader(tmp_path / "text.jpg")

    @pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif"])
    def test_a_truncated_file_is_refused(self, tmp_path, reader, suffix):
        path = tmp_path / f"image.{suffix}"
        noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=rf"image.{suffix}"):
            reader(path)

    def test_a_decompression_bomb_is_refused(self, tmp_path, reader):
        # A PNG header that promises 100000 x 100000 pixels.
        header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        data = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + data)
        with pytest.raises(UserError, match="million pixels"):
            reader(tmp_path / "bomb.png")


def test_a_large_image_below_pillows_error_limit_is_refused_too(tmp_path, monkeypatch):
    Image.fromarray(_gradient()).save(tmp_path / "image.png")
    monkeypatch.setattr(imaging, "MAX_PIXELS", 900)
    with pytest.raises(UserError, match="million pixels"):
        read_image(tmp_path / "image.png")


def test_a_jpeg_with_bytes_after_its_end_is_whole(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(_gradient()).save(path)
    path.write_bytes(path.read_bytes() + b"\x00\x00trailer")
    assert image_size(path) == (24, 40)


def test_normalise_follows_the_formula_for_any_leading_shape():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7, 3), dtype=np.uint8)
    output = IMAGENET.normalise(images)
    assert output.shape == (2, 3, 3, 5, 7)
    assert output.dtype == np.float32
    assert output.flags.c_contiguous
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(output, np.moveaxis(expected, -1, -3), atol=1e-5)
    assert np.array_equal(IMAGENET.normalise(images[0, 0]), output[0, 0])


def test_the_lite_scale_maps_127_to_zero():
    image = np.full((2, 2, 3), 127, np.uint8)
    assert not LITE.normalise(image).any()


def test_preprocessing_survives_json():
    assert Preprocessing.from_json(IMAGENET.to_json()) == IMAGENET


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [1, 2]},
        {"mean": "abc"},
        {"mean": [1, 2, "3"]},
        {"std": [1, 0, 1]},
        {"std": [1, float("nan"), 1]},
        {"fill": 256},
        {"fill": 1.5},
        {"fill": None},
        {"channel_order": "bgr"},
        {"resize": "stretch"},
        {"extra": 1},
    ],
)
def test_a_wrong_preprocessing_record_is_refused(change):
    with pytest.raises(UserError, match="preprocessing"):
        Preprocessing.from_json({**LITE.to_json(), **change})


def test_a_wide_image_is_padded_above_and_below():
    image = np.full((100, 200, 3), 9, np.uint8)
    canvas, box = letterbox(image, (320, 512), fill=114)
    assert (box.scale, box.pad_top, box.pad_left) == (2.56, 32, 0)
    assert box.original_size == (100, 200)
    assert box.image_size == (320, 512)
    assert canvas.shape == (320, 512, 3)
    assert (canvas[:32] == 114).all()
    assert (canvas[32:288] == 9).all()
    assert (canvas[288:] == 114).all()


def test_a_tall_input_pads_the_same_image_more():
    canvas, box = letterbox(np.full((100, 200, 3), 9, np.uint8), (512, 320))
    assert (box.scale, box.pad_top, box.pad_left) == (1.6, 176, 0)
    assert (canvas[176:336] == 9).all()
    boxes = box.to_input(np.array([[0, 0, 200, 100]], np.float32))
    assert boxes.tolist() == [[0, 176, 320, 336]]


def test_an_image_of_the_input_size_is_left_alone():
    image = _gradient(64, 96)
    canvas, box = letterbox(image, (64, 96))
    assert np.array_equal(canvas, image)
    assert box.scale == 1


def test_boxes_that_reach_into_the_padding_are_clipped():
    _, box = letterbox(np.zeros((100, 200, 3), np.uint8), (320, 512))
    found = box.to_original(np.array([[-50, 0, 600, 320]], np.float32))
    assert found.tolist() == [[0, 0, 200, 100]]


@given(height=SIDES, width=SIDES, input_height=INPUT_SIDES, input_width=INPUT_SIDES, data=st.data())
def test_boxes_survive_the_round_trip(height, width, input_height, input_width, data):
    if max(height, width) > 300 * min(height, width):
        return
    image = np.zeros((height, width, 3), np.uint8)
    canvas, box = letterbox(image, (input_height, input_width), fill=255)
    content_height, content_width = box.content_size
    # The content fills one side, and is where the letterbox says: black inside, white around.
    assert content_height == input_height or content_width == input_width
    assert (canvas == 0).sum() == content_height * content_width * 3
    left, right = sorted(data.draw(st.tuples(*[st.floats(0, width, width=32)] * 2)))
    top, bottom = sorted(data.draw(st.tuples(*[st.floats(0, height, width=32)] * 2)))
    boxes = np.array([[left, top, right, bottom], [0, 0, width, height]], np.float32)
    inside = box.to_input(boxes)
    assert np.abs(box.to_original(inside) - boxes).max() <= 1e-3 * max(1, height, width) ** 0.5
    pads = [box.pad_left, box.pad_top, box.pad_left + content_width, box.pad_top + content_height]
    assert np.allclose(inside[1], pads, atol=1e-3)


def test_resize_averages_when_it_shrinks():
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = np.repeat(checks[..., None], 3, axis=-1).astype(np.uint8)
    assert np.abs(resize(image, (16, 16))[2:-2, 2:-2].astype(int) - 127).max() <= 8


def test_real_photos_are_read_as_pillow_reads_them(data_dir: Path):
    path = sorted((data_dir / "coco_ccby" / "images").glob("*.jpg"))[0]
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert np.array_equal(read_image(path), expected)


def test_a_format_that_other_programs_draw_is_refused_whatever_its_name(tmp_path):
    """Pillow has Ghostscript draw EPS, which is a language to program in."""
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    for reader in (read_image, image_size):
        with pytest.raises(UserError, match="is not an image that can be read"):
            reader(path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_has_is_a_plain_error(tmp_path, name):
    with pytest.raises(UserError, match="does not exist"):
        read_image(tmp_path / name)
