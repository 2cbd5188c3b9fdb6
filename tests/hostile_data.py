"""Data that is broken or hostile: archives, arrays, images, options, files of weights."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CHANNELS, SIDE = 3, 8
Written = Iterator[tuple[str, Path]]


def npy(shape: str = "(4, 3, 8, 8)", descr: str = "'<f4'", data: bytes | None = None) -> bytes:
    """An .npy file whose header says what is given."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    text = header.encode().ljust(118) + b"\n"
    body = bytes(4 * 3 * 8 * 8 * 4) if data is None else data
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def _npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def hostile_arrays(folder: Path) -> Written:
    """Arrays that are pickled, lie about their size, or come in archives that are not what they seem."""
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    headers = {
        "pickled": pickled.getvalue(),
        "an opcode that runs code": npy(descr="'|O'", data=b"cos\nsystem\n(S'touch hacked'\ntR."),
        "10^18 rows": npy("(1000000000000000000, 3, 8, 8)"),
        "rows that overflow": npy("(4611686018427387904, 3, 8, 8)"),
        "a negative size": npy("(-4, 3, 8, 8)"),
        "a size that is text": npy("('4', 3, 8, 8)"),
        "a size that is true": npy("(True, 3, 8, 8)"),
        "too little data": npy(data=b"1234"),
        "a header that is code": npy("(__import__('os').system('touch hacked'), 3, 8, 8)"),
        "a header that is nested": npy("(" * 90),
        "no header": b"\x93NUMPY\x01\x00\xff\xff",
        "a header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        "an unknown version": b"\x93NUMPY\x09\x00" + npy()[8:],
        "a structured type": npy(descr="[('a', '<f4'), ('b', '<i8')]"),
        "dates": npy(descr="'<M8[s]'"),
        "text": npy(descr="'<U4'"),
        "nothing": b"",
    }
    for name, content in headers.items():
        path = folder / f"{len(name)}_{name[:8].replace(' ', '_')}.npy"
        path.write_bytes(content)
        yield f"npy: {name}", path
        yield f"npz: {name}", _npz(path.with_suffix(".npz"), {"x.npy": content})
    good = npy()
    yield (
        "npz: paths that lead out",
        _npz(
            folder / "out.npz", {"../../hacked.npy": good, "/tmp/hacked.npy": good, "x.npy": good}
        ),
    )
    yield (
        "npz: a bomb",
        _npz(folder / "bomb.npz", {"x.npy": npy("(90000, 3, 8, 8)", data=bytes(2**24))}),
    )
    yield "npz: not an archive", _copy(folder / "text.npz", b"PK\x03\x04 and nothing more")
    whole = _npz(folder / "whole.npz", {"x.npy": good}).read_bytes()
    for tenth in range(1, 10, 2):
        cut = whole[: len(whole) * tenth // 10]
        yield f"npz: {tenth} tenths", _copy(folder / f"t{tenth}.npz", cut)
    encrypted = bytearray(whole)
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        encrypted[whole.index(mark) + (6 if mark[2] == 3 else 8)] |= 1
    yield "npz: encrypted", _copy(folder / "locked.npz", bytes(encrypted))
    unknown = bytearray(whole)
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        unknown[whole.index(mark) + (8 if mark[2] == 3 else 10)] = 99
    yield "npz: an unknown method", _copy(folder / "method.npz", bytes(unknown))


def _copy(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that declares a size and holds what is given."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def good_png(side: int = SIDE) -> bytes:
    return png(side, side, (b"\0" + bytes(range(side * 3))) * side)


def hostile_images(folder: Path) -> Written:
    """Images that declare giant sizes, or are no images; archives with paths, links and sizes of theirs."""
    images = {
        "giant": png(60_000, 60_000),
        "large and empty": png(9_000, 9_000),
        "no pixels": png(0, 0),
        "not an image": b"<svg onload=alert(1)>",
        "nothing": b"",
        "a bitmap of 2^31": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, *[0] * 6),
    }
    for number, (name, content) in enumerate(images.items()):
        inside = folder / f"images{number}"
        inside.mkdir()
        (inside / "a.png").write_bytes(content)
        yield f"image: {name}", inside
        yield f"tar: {name}", _tar(folder / f"i{number}.tar", {"a.png": content})
    yield (
        "tar: paths that lead out",
        _tar(folder / "out.tar", {"../../hacked.png": good_png(), "/tmp/hacked.png": good_png()}),
    )
    yield "tar: links", _tar(folder / "links.tar", {}, {"a.png": "/etc/passwd"})
    yield "tar: a size of 2^40", _copy(folder / "size.tar", _header("a.png", 2**40) + bytes(512))
    yield (
        "tar: a class of digits",
        _tar(folder / "class.tar", {"a.png": good_png(), "a.cls": b"9" * 100_000}),
    )
    yield "tar: nothing", _copy(folder / "empty.tar", b"")
    whole = _tar(folder / "whole.tar", {"a.png": good_png(), "b.png": good_png()}).read_bytes()
    filled = len(whole.rstrip(b"\0"))
    for tenth in range(1, 10, 2):
        cut = whole[: filled * tenth // 10]
        yield f"tar: {tenth} tenths", _copy(folder / f"t{tenth}.tar", cut)
    loop = folder / "loop"
    loop.mkdir()
    (loop / "again").symlink_to(loop)
    (loop / "a.png").symlink_to(loop / "a.png")
    yield "folder: links to themselves", loop


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()


def _tar(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def hostile_preprocessing() -> Iterator[tuple[str, str]]:
    """Files for --preprocess that hold something else."""
    for name, values in (
        ("sides of 10^9", {"resize": 10**9, "crop": 8}),
        ("a side that is text", {"resize": "8"}),
        ("a side that is true", {"crop": True}),
        ("three sides", {"resize": [1, 2, 3]}),
        ("nested sides", {"resize": [[8], [8]]}),
        ("sides by name", {"resize": {"height": 8, "width": 8}}),
        ("scale of text", {"scale": "1"}),
        ("scale of 10^400", {"scale": 10**400}),
        ("mean of text", {"mean": ["a", "b", "c"]}),
        ("mean by name", {"mean": {"r": 1}}),
        ("mean of 10^6", {"mean": [0.0] * 10**6}),
        ("layout of numbers", {"layout": 3}),
        ("color that is a list", {"color": ["rgb"]}),
        ("an unknown key", {"__class__": "x"}),
    ):
        yield name, json.dumps(values)
    yield "not a number", '{"scale": NaN}'
    yield "without end", '{"mean": Infinity}'
    yield "100,000 deep", "[" * 100_000
    yield "a list", "[1]"
    yield "not JSON", "\x1b[31m{"
    yield "a number of 10,000 digits", '{"resize": ' + "9" * 10_000 + "}"


def hostile_sensitivity() -> Iterator[tuple[str, str]]:
    """Files for --sensitivity that hold something else."""
    for name, values in (
        ("other version", {"version": 99, "sites": {}}),
        ("no sites", {"version": 1}),
        ("sites that are a list", {"version": 1, "sites": []}),
        ("sites that are text", {"version": 1, "sites": {"conv_node": "x"}}),
        ("points that are text", {"version": 1, "sites": {"conv_node": {"points": "x"}}}),
    ):
        yield name, json.dumps(values)
    yield "not JSON", "{"
    yield "100,000 deep", '{"a":' * 100_000
