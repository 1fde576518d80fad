"""Image files as uint8 arrays, cut to size as ImageNet models are evaluated."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flaxcnn.errors import FlaxcnnError, reason

# Pillow goes by the content, and hands some formats to other programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "JPEG2000")
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its turned values
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

Box = tuple[int, int, int, int]  # left, top, right, bottom
Crop = Callable[[int, int], Box]  # of the width and height of an image


def image_files(directory: Path) -> list[Path]:
    """The files of SUFFIXES anywhere below a directory, sorted; no hidden ones.

    Links that lead nowhere are among them, pipes are not: to open one is to wait.
    """
    found = (p for p in directory.rglob("*") if p.suffix.lower() in SUFFIXES)
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(directory).parts)
        and (path.is_file() or not path.exists())
    )


def read_image(
    path: str | Path,
    image_size: int | None = None,
    resize: int | None = None,
    channels: int = 3,
    crop: Crop | None = None,
) -> np.ndarray:
    """The image file `path` as `decode_image` gives it: uint8 [H, W, channels].

    Raises:
      FlaxcnnError: no such file, or not a whole image, with its name; wrong sizes.
    """
    check_sizes(image_size, resize)
    try:
        return decode_image(path, channels, image_size, resize, crop)
    except FileNotFoundError as error:
        raise FlaxcnnError(f"{path}: no such file; check its name") from error
    except IsADirectoryError as error:
        raise FlaxcnnError(f"{path}: a directory; name an image file") from error
    except UnidentifiedImageError as error:
        raise FlaxcnnError(f"{path}: not an image; replace or delete it") from error
    except Image.DecompressionBombError as error:
        raise FlaxcnnError(
            f"{path}: too large ({error}); replace it, or make image_size smaller"
        ) from error
    except Exception as error:  # a codec raises whatever it likes
        raise FlaxcnnError(
            f"{path}: cannot decode this image ({reason(error)}); replace or delete it"
        ) from error


def check_sizes(image_size: int | None, resize: int | None) -> None:
    """Whether a crop of `image_size` pixels fits an image resized to `resize`.

    Raises:
      FlaxcnnError: it does not, or there is a `resize` without an `image_size`.
    """
    if image_size is not None and image_size < 1:
        raise FlaxcnnError(f"image_size={image_size}; use a number of pixels")
    if resize and image_size is None:
        raise FlaxcnnError(f"resize={resize} has no crop; set image_size too")
    if resize and image_size and resize < image_size:
        raise FlaxcnnError(
            f"resize={resize} is less than the crop, image_size={image_size}; use "
            f"{image_size} or more"
        )


def decode_image(
    file: str | Path | IO[bytes],
    channels: int = 3,
    image_size: int | None = None,
    resize: int | None = None,
    crop: Crop | None = None,
) -> np.ndarray:
    """The image in `file` (a path or a binary stream): uint8 [H, W, channels].

    Turned upright by its EXIF orientation and converted to RGB (or grey), whatever its
    mode: 16 bits keep the upper 8, transparency is dropped (the colours below it show),
    an animation gives its first frame. With `image_size`, as `square` makes it: bit for
    bit torchvision's Resize and CenterCrop, but for a JPEG whose sides are four times
    `resize` or more. That is decoded at 1/2, 1/4 or 1/8, at least 2 `resize` large,
    which is faster and close. With a `crop` too, that box of the image is resized to
    `image_size`, as torchvision's resized_crop does it, from a JPEG in the same way.

    Args:
      file: of one of FORMATS.
      channels: 3 or 1.
      image_size: side of the central crop; None: the whole image.
      resize: shorter side before the crop; None or 0: `image_size`.
      crop: gives a box in place of the central square; `resize` does not count then.

    Raises:
      OSError, ValueError, SyntaxError, ...: Pillow cannot decode it, all of it.
      ValueError: pixels that are floats or beyond 16 bits: their white is unknown.
      PIL.Image.DecompressionBombError: more pixels than PIL.Image.MAX_IMAGE_PIXELS.
    """
    with Image.open(file, formats=FORMATS) as opened:
        _check_area(*opened.size)
        exif = opened.getexif()
        size = opened.size
        if exif.get(ORIENTATION) in SIDEWAYS and opened.format != "TIFF":
            size = size[1], size[0]  # (Pillow turns a TIFF by itself)
        box = crop(*size) if image_size and crop else None
        if image_size:
            side = 2 * (resize or image_size)
            if box:  # large enough that the box is twice the result
                part = min(box[2] - box[0], box[3] - box[1]) / min(size)
                side = math.ceil(2 * image_size / part)
            opened.draft("RGB", (side, side))
        image: Image.Image = opened
        if exif:
            image = ImageOps.exif_transpose(image)
        image = _to_8_bits(image).convert({1: "L", 3: "RGB"}[channels])
        if image_size and box:
            image = cut(image, box, size, image_size)
        elif image_size:
            image = square(image, image_size, resize)
        return np.asarray(image).reshape(image.height, image.width, channels)


def square(image: Image.Image, size: int, resize: int | None = None) -> Image.Image:
    """The centre [size, size] of an image whose shorter side is first made `resize`.

    Bilinear and antialiased, the longer side and the offsets rounded as torchvision
    rounds them; `resize` None or 0: `size`, the largest central square.

    Raises:
      PIL.Image.DecompressionBombError: a strip that would grow beyond the limit.
    """
    short = min(image.size)
    width, height = (int((resize or size) * side / short) for side in image.size)
    _check_area(width, height)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def random_box(
    width: int, height: int, *, smallest: float, rng: np.random.Generator
) -> Box:
    """A box of at least that share of the area, 3/4 to 4/3 as wide as high, at random.

    That of torchvision's RandomResizedCrop (Szegedy et al., 2015, arXiv:1409.4842,
    section 6): ten attempts, then the largest central one of such a shape.
    """
    narrow, wide = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * rng.uniform(smallest, 1)
        ratio = math.exp(rng.uniform(math.log(narrow), math.log(wide)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(rng.integers(n + 1)) for n in (width - w, height - h))
            return left, top, left + w, top + h
    w, h = width, height
    if width < narrow * height:
        h = round(width / narrow)
    elif width > wide * height:
        w = round(height * wide)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def cut(image: Image.Image, box: Box, size: tuple[int, int], side: int) -> Image.Image:
    """The box of an image that once had that size, as [side, side]."""
    scales = [now / then for now, then in zip(image.size, size, strict=True)] * 2
    left, top, right, bottom = (round(x * s) for x, s in zip(box, scales, strict=True))
    part = image.crop((left, top, right, bottom))
    return part.resize((side, side), Image.Resampling.BILINEAR)


def _check_area(width: int, height: int) -> None:
    """Pillow only warns up to twice its limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        raise Image.DecompressionBombError(
            f"{width} x {height} pixels, the limit is {limit}"
        )


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Where `convert` would clip the values, or warn."""
    if image.mode == "F":
        raise ValueError("floating point pixels of unknown range, not 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels outside 0..65535, not 8 or 16 bits")
        return Image.fromarray((values // 256).astype(np.uint8))
    # Pillow warns about a palette's transparency.
    return image.convert("RGBA") if image.mode == "P" else image
