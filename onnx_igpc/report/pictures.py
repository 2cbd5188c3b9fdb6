"""A small greyscale picture as a data address, so that a page needs no other file."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from onnx_igpc.report.sections import Thumbnail

SIDE = 64
"""Cells in a row and in a column at most."""


def decoded(thumbnail: Thumbnail) -> np.ndarray:
    """The levels of a thumbnail, uint8[rows, columns]; 255 is its ``largest``.

    Raises:
        ValueError: it is not one.
    """
    try:
        rows, columns = thumbnail.cells
        if not (0 < rows <= SIDE and 0 < columns <= SIDE):
            raise ValueError(f"{rows} x {columns} cells")
        packed = base64.b64decode(thumbnail.data, validate=True)
        # No more than the cells need: a damaged file must not unpack to gigabytes.
        data = zlib.decompressobj().decompress(packed, rows * columns + 1)
        return np.frombuffer(data, np.uint8).reshape(rows, columns)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"not a thumbnail: {error}") from error


def encoded(cells: np.ndarray, shape: tuple[int, ...], largest: float) -> Thumbnail:
    levels = np.rint(255.0 * cells / (largest or 1.0)).astype(np.uint8)
    return Thumbnail(
        cells=(cells.shape[0], cells.shape[1]),
        shape=(shape[0], shape[1]),
        largest=float(f"{largest:.6g}"),
        data=base64.b64encode(zlib.compress(levels.tobytes(), 9)).decode("ascii"),
    )


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR = 0, 2
LEVELS = 16


def grey_png(levels: np.ndarray) -> bytes:
    """A PNG of four bits a pixel; levels: int[rows, columns] from 0 (black) to 15 (white).

    The format: ISO/IEC 15948 (PNG), sections 11.2.2 (IHDR) and 9.2 (filter type 0).
    """
    rows, columns = levels.shape
    padded = np.zeros((rows, columns + columns % 2), np.uint8)
    padded[:, :columns] = levels
    packed = padded[:, 0::2] << 4 | padded[:, 1::2]
    scanlines = b"".join(b"\x00" + row.tobytes() for row in packed)
    return _png(struct.pack(">IIBBBBB", columns, rows, 4, _GREY, 0, 0, 0), scanlines)


def colour_png(levels: np.ndarray) -> bytes:
    """A PNG of red, green and blue, eight bits each; levels: uint8[rows, columns, 3]."""
    rows, columns, _ = levels.shape
    scanlines = b"".join(b"\x00" + row.tobytes() for row in levels)
    return _png(struct.pack(">IIBBBBB", columns, rows, 8, _COLOUR, 0, 0, 0), scanlines)


def data_address(png: bytes) -> str:
    """The picture as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _png(header: bytes, scanlines: bytes) -> bytes:
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(scanlines, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
