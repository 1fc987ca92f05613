"""Encoded pictures to pixels: only JPEG and PNG, only of the size that was asked for, never a decompression bomb."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG")
MAX_PIXELS = 64 * 2**20  # a picture to be resized may have so many; decoding one takes 200 MB
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def decode(encoded: bytes, size: int, resize: bool, name: object) -> np.ndarray:
    """The pixels of one picture, uint8 (3, size, size); greyscale is repeated over the channels, transparency dropped.

    Another size is refused, or, with `resize`, the centred square is reduced by averaging over areas. `name` says where
    the picture came from. Raises ValueError with one line.
    """
    pixels = _turbo_jpeg(encoded, size, resize)
    if pixels is None:
        with _opened(encoded, name) as image:
            _check(image, size, resize, name)
            pixels = np.asarray(_square(image if image.mode == "RGB" else image.convert("RGB"), size))
    return pixels.transpose(2, 0, 1)


def _turbo_jpeg(encoded: bytes, size: int, resize: bool) -> np.ndarray | None:
    """Pixels (size, size, 3) of a sound, ordinary JPEG, equal to PIL's in a fourth of its time; None: ask PIL."""
    if not encoded.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        same = (height, width) == (size, size)
        if colours not in ("YCbCr", "Gray") or not (same or resize) or width * height > MAX_PIXELS:
            return None
        pixels = simplejpeg.decode_jpeg(encoded)
    except ValueError:
        return None
    return pixels if same else np.asarray(_square(Image.fromarray(pixels), size))


def check_size(encoded: bytes, size: int, resize: bool, name: str) -> None:
    """Looks at a picture's header only; raises ValueError with one line as `decode` would."""
    with _opened(encoded, name) as image:
        _check(image, size, resize, name)


def fit(encoded: bytes, size: int, name: str) -> bytes:
    """The picture itself if it has `size`, or any size for 0, else a PNG of what `decode` makes of it with `resize`.

    Every pixel is decoded, so what comes back is sound. Raises ValueError with one line.
    """
    with _opened(encoded, name) as image:
        _check(image, size, True, name)
        image.load()
        if size in (0, image.width) and size in (0, image.height):
            return encoded
        return encode_png(np.asarray(_square(image.convert("RGB"), size)))


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(file, "PNG", compress_level=6)
    return file.getvalue()


class _Refused(ValueError):
    """A picture that can be read but is not wanted."""


@contextmanager
def _opened(encoded: bytes, name: object) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            yield image
    except _Refused:
        raise
    except UnidentifiedImageError as error:  # whose text is the address of an object
        raise ValueError(f"{name}: not a readable JPEG or PNG picture (its beginning is of neither)") from error
    except Exception as error:  # damaged files make PIL raise almost anything
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: not a readable JPEG or PNG picture ({cause})") from error


def _check(image: Image.Image, size: int, resize: bool, name: object) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _Refused(f"{name}: {width}x{height} is more than {MAX_PIXELS} pixels; refused")
    if image.mode not in _EIGHT_BIT_MODES:
        raise _Refused(f"{name}: pictures of mode {image.mode!r} are not supported; convert them to 8 bits per channel")
    if (width, height) != (size, size) and not resize:
        raise _Refused(
            f"{name}: the picture is {width}x{height}, not {size}x{size}; "
            "set data.resize=true to resize pictures, or data.image_size to their size"
        )


def _square(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side))
