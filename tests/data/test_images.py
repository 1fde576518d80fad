"""Image files against torchvision, hand-made pixels, and damaged on purpose."""

import contextlib
import importlib
import io
import os
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.images import decode_image, image_files, random_box, read_image
from flaxcnn.data.sources import load_source
from flaxcnn.errors import FlaxcnnError


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _ramp(side: int = 32) -> np.ndarray:
    """Grey 0..255, every value."""
    return np.linspace(0, 255, side * side).astype(np.uint8).reshape(side, side)


def _encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _decode(content: bytes, *arguments: Any) -> np.ndarray:
    return decode_image(io.BytesIO(content), *arguments)


def _png(width: int, height: int) -> bytes:
    """A header that promises so many RGB pixels, and hardly any."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def _message(path: Path, *arguments: Any) -> str:
    with pytest.raises(FlaxcnnError) as caught:
        read_image(path, *arguments)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


# sizes


@pytest.fixture(scope="module")
def transforms() -> Any:
    """torchvision's; a CPU build of torch lacks operators that its import asks for."""
    torch = pytest.importorskip("torch")
    with contextlib.suppress(RuntimeError):  # tests/parity has defined them
        library = torch.library.Library("torchvision", "DEF")
        for op in "nms", "qnms":
            library.define(
                f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    return importlib.import_module("torchvision.transforms")


SIDES = (1, 7, 16, 31, 45, 60, 77, 128, 199)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("image_size", "resize"),
    [(1, 1), (1, 2), (16, 16), (16, 17), (15, 16), (27, 31), (28, 32), (45, 46)],
)
def test_sizes_are_torchvisions_bit_for_bit(
    channels: int, image_size: int, resize: int, transforms: Any
) -> None:
    protocol = transforms.Compose(
        [transforms.Resize(resize), transforms.CenterCrop(image_size)]
    )
    for height in SIDES:
        for width in SIDES:
            pixels = _noise(height, width, channels, seed=height * width)
            image = Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)
            expected = np.asarray(protocol(image)).reshape(
                image_size, image_size, channels
            )
            content = _encode(image)
            for given in (resize, None, 0) if resize == image_size else (resize,):
                found = _decode(content, channels, image_size, given)
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    "box", [(0, 0, 77, 60), (5, 9, 41, 52), (70, 0, 77, 4), (0, 0, 1, 1)]
)
def test_a_box_is_torchvisions_bit_for_bit(
    box: tuple, kind: str, transforms: Any
) -> None:
    """Also of a JPEG whose box is below four times the result."""
    content = _encode(Image.fromarray(_noise(60, 77, 3)), kind)
    left, top, right, bottom = box
    for size in (16, 40):
        expected = transforms.functional.resized_crop(
            Image.open(io.BytesIO(content)),
            top, left, bottom - top, right - left, [size, size],
        )  # fmt: skip
        found = _decode(content, 3, size, 99, lambda width, height: box)
        np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_box_is_of_the_upright_image(
    orientation: int, kind: str, transforms: Any
) -> None:
    """And of a large JPEG from fewer pixels."""
    rows, columns = np.mgrid[0:600, 0:800]
    waves = (127 + 100 * np.sin(rows / 49) * np.cos(columns / 31)).astype(np.uint8)
    upright = np.stack([waves, waves[::-1], waves[:, ::-1]], -1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if orientation == 1 else np.rot90(upright)
    image = Image.fromarray(np.ascontiguousarray(stored))
    content = _encode(image, kind, exif=exif, quality=95)
    sizes = []

    def crop(width: int, height: int) -> tuple[int, int, int, int]:
        sizes.append((width, height))
        return 100, 50, 780, 560

    expected = transforms.functional.resized_crop(
        Image.fromarray(upright), 50, 100, 510, 680, [48, 48]
    )
    difference = _decode(content, 3, 48, None, crop) - np.asarray(expected).astype(int)
    assert sizes == [(800, 600)]
    assert np.abs(difference).mean() < 2
    assert np.abs(difference).max() < 12


def test_random_boxes_are_drawn_as_torchvision_draws_them(transforms: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    rng, pixels = np.random.default_rng(0), torch.zeros(3, 60, 90)

    def facts(left: int, top: int, width: int, height: int) -> list[float]:
        shares = width * height / 5400, float(np.log(width / height))
        middle = left / max(90 - width, 1), top / max(60 - height, 1)
        return [*shares, *middle]

    ours, theirs = [], []
    for _ in range(4000):
        left, top, right, bottom = random_box(90, 60, smallest=0.08, rng=rng)
        assert 0 <= left < right <= 90
        assert 0 <= top < bottom <= 60
        ours.append(facts(left, top, right - left, bottom - top))
        i, j, h, w = transforms.RandomResizedCrop.get_params(
            pixels, [0.08, 1.0], [3 / 4, 4 / 3]
        )
        theirs.append(facts(j, i, w, h))
    levels = np.linspace(0.1, 0.9, 9)
    ours, theirs = (np.quantile(x, levels, axis=0) for x in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=0.03)


@pytest.mark.parametrize("size", [(90, 10), (10, 90), (1, 200), (37, 400)])
def test_a_box_that_no_attempt_finds(size: tuple[int, int], transforms: Any) -> None:
    torch = pytest.importorskip("torch")
    width, height = size
    i, j, h, w = transforms.RandomResizedCrop.get_params(
        torch.zeros(3, height, width), [0.9, 1.0], [3 / 4, 4 / 3]
    )
    box = random_box(width, height, smallest=0.9, rng=np.random.default_rng(0))
    assert box == (j, i, j + w, i + h)


def test_a_jpeg_below_four_times_the_size_is_bit_identical_too(transforms: Any) -> None:
    content = _encode(Image.fromarray(_noise(127, 300, 3)), "JPEG")
    protocol = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28)])
    expected = np.asarray(protocol(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(_decode(content, 3, 28, 32), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("sizes", [(64, None), (56, 64)])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(
    sizes: tuple[int, int | None], mode: str
) -> None:
    rows, columns = np.mgrid[0:600, 0:800]
    waves = 127 + 100 * np.sin(rows / 49) * np.cos(columns / 31)
    pixels = np.stack([waves, waves[::-1], waves[:, ::-1]], -1).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    jpeg, png = _encode(image, "JPEG"), _encode(image.convert("RGB"))
    difference = _decode(jpeg, 3, *sizes).astype(int) - _decode(png, 3, *sizes)
    assert np.abs(difference).mean() < 2
    assert _decode(jpeg).shape == (600, 800, 3)


def test_a_large_jpeg_with_texture_stays_near_its_full_decode(transforms: Any) -> None:
    """Noise of all sizes, sharper than photographs; of 1/2 and of 1/8 of the pixels."""
    pixels = np.zeros((960, 1280, 3), np.float32)
    for octave in range(7):
        coarse = _noise(960 >> octave, 1280 >> octave, 3, seed=octave) / 255.0 - 0.5
        grown = coarse.repeat(1 << octave, 0).repeat(1 << octave, 1)
        pixels += 30 * 1.2**octave * grown
    image = Image.fromarray((128 + pixels).clip(0, 255).astype(np.uint8))
    content = _encode(image, "JPEG", quality=90)
    for image_size, resize in (224, 240), (48, 60):
        protocol = transforms.Compose(
            [transforms.Resize(resize), transforms.CenterCrop(image_size)]
        )
        expected = np.asarray(protocol(Image.open(io.BytesIO(content))))
        difference = _decode(content, 3, image_size, resize) - expected.astype(int)
        assert 0 < np.abs(difference).mean() < 1
        assert np.abs(difference).max() < 16


@pytest.mark.parametrize(
    ("height", "width", "resize", "kept"),
    [(60, 100, None, 60), (100, 60, None, 60), (30, 30, None, 30), (80, 40, 25, 32)],
)
def test_the_crop_is_the_centre(
    height: int, width: int, resize: int | None, kept: int
) -> None:
    """20 of the resized shorter side are `kept` of the stored pixels."""
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = (height - kept) // 2, (width - kept) // 2
    pixels[top : top + kept, left : left + kept] = 200  # the rest is cut off
    found = _decode(_encode(Image.fromarray(pixels)), 3, 20, resize)
    assert found.shape == (20, 20, 3)
    assert found[2:-2, 2:-2].min() == 200


@pytest.mark.parametrize(
    ("sizes", "part"),
    [
        ((0, None), "image_size=0"),
        ((-3, None), "image_size=-3"),
        ((None, 32), "resize=32 has no crop; set image_size"),
        ((32, 31), "resize=31 is less than the crop, image_size=32"),
        ((32, -1), "resize=-1 is less"),
    ],
)
def test_sizes_that_do_not_fit(sizes: tuple, part: str) -> None:
    for call in (
        lambda: read_image("a.png", *sizes),
        lambda: load_source("digits", "train", image_size=sizes[0], resize=sizes[1]),
    ):
        with pytest.raises(FlaxcnnError) as caught:
            call()
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)


# modes


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "PNG"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("1", "PNG"),
        ("1", "TIFF"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("I;16", "PNG"),
        ("I;16", "TIFF"),
        ("I", "TIFF"),
        ("I", "PPM"),
    ],
)
@pytest.mark.parametrize("image_size", [None, 32])
def test_every_mode_becomes_rgb(mode: str, kind: str, image_size: int | None) -> None:
    grey = _ramp()
    if mode.startswith("I"):
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        image = image.convert("I") if mode == "I" else image
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    assert image.mode == mode
    content = _encode(image, kind)
    decoded = _decode(content, 3, image_size)
    assert decoded.shape == (32, 32, 3)
    assert decoded.dtype == np.uint8
    # "1" and "P" are dithered; JPEG and WebP are lossy.
    near = {"1": 255, "P": 60}.get(mode, 6 if kind in ("JPEG", "WEBP") else 0)
    difference = decoded.astype(int) - grey[..., None]
    assert np.abs(difference).max() <= near
    assert np.abs(difference.mean()) < 4
    assert _decode(content, 1, image_size).shape == (32, 32, 1)


def test_cmyk_jpegs_are_stored_inverted_and_come_out_in_their_colours() -> None:
    """Adobe's convention, which Pillow writes and reads: c = 255 - red, no black."""
    blocks = np.zeros((48, 48, 3), np.uint8)
    blocks[:16], blocks[16:32], blocks[32:] = (220, 30, 40), (20, 200, 60), (9, 9, 240)
    image = Image.fromarray(blocks).convert("CMYK")
    content = _encode(image, "JPEG", quality=95)
    assert b"Adobe" in content
    assert np.abs(_decode(content).astype(int) - blocks)[2:14].max() < 12
    assert np.abs(_decode(content).astype(int) - blocks)[34:].max() < 12


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P with one", "L with one"])
def test_transparency_is_dropped_and_the_colours_below_it_show(mode: str) -> None:
    """As Pillow's convert("RGB") does: neither white nor black instead."""
    alpha = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1)))
    options: dict[str, Any] = {}
    if mode == "RGBA":
        opaque = Image.fromarray(_noise(32, 32, 3))
    elif mode in ("LA", "L with one"):
        opaque = Image.fromarray(_ramp())
    else:
        opaque = Image.fromarray(_noise(32, 32, 3)).quantize(8)
    image = opaque.copy()
    if mode in ("RGBA", "LA"):
        image.putalpha(alpha)
    else:
        options["transparency"] = bytes(range(8)) if mode == "P" else 3
    expected = np.asarray(opaque.convert("RGB"))
    np.testing.assert_array_equal(_decode(_encode(image, **options)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_the_upper_8(kind: str) -> None:
    """By the format, whatever the values: a dark image stays dark."""
    values = np.array([[0, 255, 256], [511, 4095, 4096], [32768, 65279, 65535]])
    found = _decode(_encode(Image.fromarray(values.astype(np.uint16)), kind))
    expected = [[0, 0, 1], [1, 15, 16], [128, 254, 255]]
    np.testing.assert_array_equal(found[..., 0], expected)
    np.testing.assert_array_equal(found, found[..., :1].repeat(3, -1))


@pytest.mark.parametrize("value", [0.5, 70000, -1])
def test_pixels_without_a_known_white_are_an_error(
    value: float, tmp_path: Path
) -> None:
    dtype = np.float32 if value == 0.5 else np.int32
    image = Image.fromarray(np.full((4, 4), value, dtype))
    image.save(tmp_path / "a.tif")
    message = _message(tmp_path / "a.tif")
    assert "floating point" in message or "outside 0..65535" in message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, kind: str) -> None:
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:8, :8] = 255  # the top left corner is white
    upright[16:, :8] = 90  # the bottom left one grey
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    decoded = _decode(_encode(image, kind, exif=exif, quality=95))
    assert decoded.shape == (24, 40, 3)
    near = 30 if kind in ("JPEG", "WEBP") else 0
    assert np.abs(decoded.astype(int) - upright).max() <= near


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16"])
def test_exif_orientation_in_other_modes(mode: str) -> None:
    upright = np.zeros((24, 40), np.uint8)
    upright[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    else:
        image = image.convert("RGB").convert(mode)
    decoded = _decode(_encode(image, "TIFF", exif=exif))
    np.testing.assert_array_equal(decoded, upright[..., None].repeat(3, -1))


@pytest.mark.parametrize("exif", [b"garbage!", b"", b"II*\0\x08\0\0\0", b"MM\0*\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_image_as_it_is(exif: bytes) -> None:
    image = Image.fromarray(_noise(16, 24, 3))
    content = _encode(image, "JPEG", exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(_decode(content), _decode(_encode(image, "JPEG")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.fromarray(np.full((9, 12, 3), v, np.uint8)) for v in (50, 120, 250)]
    options = {} if kind == "TIFF" else {"duration": 100, "loop": 0}
    if kind == "WEBP":
        options["lossless"] = True
    content = _encode(
        frames[0], kind, save_all=True, append_images=frames[1:], **options
    )
    assert Image.open(io.BytesIO(content)).n_frames == 3
    np.testing.assert_array_equal(_decode(content), np.full((9, 12, 3), 50))


# damage


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("GIF", {}),
    ],
)
@pytest.mark.parametrize("sizes", [(None, None), (16, 20)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_truncated_image_is_an_error(
    kind: str, options: dict, sizes: tuple, tmp_path: Path
) -> None:
    """Not half an image of grey; the last 20 bytes of some formats are no pixels."""
    content = _encode(Image.fromarray(_noise(120, 90, 3)), kind, **options)
    file = tmp_path / "a.jpg"
    for share in 0.1, 0.3, 0.5, 0.7, 0.9, 0.99:
        file.write_bytes(content[: int(share * len(content))])
        assert "replace or delete it" in _message(file, *sizes)
    for lost in 1, 2, 10, 20:
        file.write_bytes(content[:-lost])
        try:
            found = read_image(file, *sizes)
        except FlaxcnnError:
            continue
        np.testing.assert_array_equal(found, _decode(content, 3, *sizes))


@pytest.mark.parametrize("content", [b"", b"a text file", b"\xff\xd8\xff", _png(0, 5)])
def test_what_is_no_image(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert "not an image; replace or delete it" in _message(tmp_path / "a.jpg")


def test_no_program_is_run_for_a_photograph(tmp_path: Path, monkeypatch: Any) -> None:
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""

    def run(*arguments: Any, **options: Any) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(subprocess, "Popen", run)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 8\n%%EndComments\n%%EOF\n"
    assert Image.open(io.BytesIO(content)).format == "EPS"
    (tmp_path / "a.jpg").write_bytes(content)
    assert "not an image; replace or delete it" in _message(tmp_path / "a.jpg")


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    os.symlink(tmp_path / "gone", tmp_path / "b.jpg")
    assert "a directory; name an image file" in _message(tmp_path / "a.jpg")
    assert "no such file; check its name" in _message(tmp_path / "b.jpg")
    assert "no such file; check its name" in _message(tmp_path / "c.jpg")


@pytest.mark.parametrize("sides", [(100_000, 100_000), (10_000, 9_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_gigantic_header_is_refused_before_decoding(
    sides: tuple[int, int], tmp_path: Path
) -> None:
    """The second is one that Pillow itself only warns about."""
    (tmp_path / "a.png").write_bytes(_png(*sides))
    assert "too large (" in _message(tmp_path / "a.png")
    assert "too large (" in _message(tmp_path / "a.png", 224, 256)
    Image.new("RGB", (9, 8)).save(tmp_path / "b.png")
    assert "or make image_size smaller" in _message(tmp_path / "b.png", 100_000)


def test_a_strip_is_not_blown_up(tmp_path: Path) -> None:
    Image.new("RGB", (1, 100_000)).save(tmp_path / "a.png")
    assert "256 x 25600000 pixels" in _message(tmp_path / "a.png", 224, 256)
    assert read_image(tmp_path / "a.png", 2, 3).shape == (2, 2, 3)
    assert read_image(tmp_path / "a.png", 2, 3, channels=1).shape == (2, 2, 1)
    assert read_image(tmp_path / "a.png").shape == (100_000, 1, 3)


# directories


def test_image_files_are_sorted_files_and_not_hidden(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "deep/c.jpeg", ".d.png", "notes.txt", "e.jpg/f.tif",
                 ".e/i.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path / "gone", tmp_path / "g.bmp")  # to be missed when it is read
    os.mkfifo(tmp_path / "h.png")  # would be waited for
    names = [str(file.relative_to(tmp_path)) for file in image_files(tmp_path)]
    assert names == ["a.jpg", "b.PNG", "deep/c.jpeg", "e.jpg/f.tif", "g.bmp"]
    assert image_files(tmp_path / "nowhere") == []


def test_a_folder_names_the_hostile_file(tmp_path: Path) -> None:
    directory = tmp_path / "train" / "a"
    directory.mkdir(parents=True)
    (directory / "1.jpg").write_text("a text file")
    (directory / "2.jpg").mkdir()
    Image.fromarray(_noise(6, 8, 3)).save(directory / "3.png")
    (directory / "4.png").write_bytes(_png(100_000, 100_000))
    (directory / "5.png").write_bytes(b"")
    Image.fromarray(np.ones((4, 4), np.float32)).save(directory / "6.tif")
    source = load_source(f"folder:{tmp_path}", "train", image_size=5, resize=6)
    assert len(source) == 5
    assert source[1]["image"].shape == (5, 5, 3)
    for index, name in (0, "1.jpg"), (2, "4.png"), (3, "5.png"), (4, "6.tif"):
        with pytest.raises(FlaxcnnError) as caught:
            source[index]
        assert str(caught.value).startswith(str(directory / name))
        assert "\n" not in str(caught.value)
