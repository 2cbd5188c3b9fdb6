"""Small images in folders and archives, and what a source makes of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from onnx_igpc.data.batches import Data
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.graph.inputs import InputSpec

F32 = np.dtype(np.float32)


SPEC = InputSpec("x", F32, ("n", 3, 4, 4))


PLAIN = Preprocessing(scale=1.0)


def png(value: int, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    mode = "w:gz" if path.suffix in (".gz", ".tgz") else "w"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def values(data: Data) -> list[int]:
    """The gray value of every sample: which image it was."""
    return [int(v) for batch in data for v in batch.feeds["x"][: batch.count, 0, 0, 0]]


def labels(data: Data) -> list[int]:
    found: list[int] = []
    for batch in data:
        assert batch.labels is not None
        assert batch.labels.dtype == np.int64
        found += batch.labels.tolist()
    return found
