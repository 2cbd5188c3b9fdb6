"""The images shared out once, as folders that every step and every command of the log reads."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from onnx_igpc.calibration.division import held_out_count
from onnx_igpc.data.arrays import array_files
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.images import spread
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.sources import ArraySource, ImageSource, find_source, image_input, open_data
from onnx_igpc.errors import DataError
from onnx_igpc.graph.inputs import InputSpec
from onnx_igpc.report.optimization import ImagesReport, PictureReport
from onnx_igpc.report.pictures import colour_png, data_address

FROM_WHERE_STATED_APART = 500
"""With so many samples, what is stated of the chosen model is measured on others than it was chosen by."""
_SIDE = 224
_PICTURES = 3


@dataclass(frozen=True)
class Shared:
    """Where the parts lie: what models are fitted to, chosen by and, with enough of them, judged on.

    ``preprocessing`` is resolved, and ``None`` for arrays. Samples of one part are in no other.
    """

    fit: Path
    choose: Path
    state: Path | None
    counts: ImagesReport
    preprocessing: Preprocessing | None

    def dataset(self, part: Path) -> Dataset:
        """A part as data, read as all of them are."""
        return Dataset(part, self.preprocessing)


def size_of(source: ImageSource | ArraySource, inputs: Sequence[InputSpec]) -> int:
    """How many samples there are; DataError for arrays that do not fit the inputs."""
    if isinstance(source, ImageSource):
        return len(source.images.index.names)
    return array_files(source.name, source.paths, inputs).count


def counted(source: ImageSource | ArraySource, inputs: Sequence[InputSpec]) -> ImagesReport:
    """How many samples each part gets.

    Raises:
        DataError: there are too few, or arrays do not fit the inputs.
    """
    total = size_of(source, inputs)
    choose = held_out_count(total)
    if not choose:
        raise DataError(f"{source.name}: {total} samples are too few to hold some out: give 200")
    state = choose if total >= FROM_WHERE_STATED_APART else 0
    return ImagesReport(
        source=source.name, total=total, fit=total - choose - state, choose=choose, state=state
    )


def share_out(
    data: Dataset, inputs: Sequence[InputSpec], folder: Path, recorded: Preprocessing | None
) -> Shared:
    """Write the parts of some data into ``folder``, if that was not done before.

    Held-out samples lie evenly spaced over the data. Images of a folder are linked, where the system can,
    others copied; labels are left out, since no step but the last checks reads any.

    Args:
        data: a path, and how its images are preprocessed; otherwise as ``recorded`` says.
        inputs: of the model.
        folder: appears whole or not at all.

    Raises:
        DataError: data that cannot be used.
        UsageError: options that do not fit it.
    """
    assert isinstance(data.source, (str, os.PathLike))
    source = find_source(data.source)
    counts = counted(source, inputs)
    positions = dict.fromkeys(range(counts.total), "fit")
    held = spread(None, counts.total, counts.choose + counts.state)
    for number, position in enumerate(held):
        positions[position] = "state" if counts.state and number % 2 else "choose"
    preprocessing = None
    if isinstance(source, ImageSource):
        preprocessing = (data.preprocessing or recorded or Preprocessing()).resolved(
            image_input(inputs)
        )
    if not folder.is_dir():
        draft = folder.with_name(f"{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        if isinstance(source, ImageSource):
            _share_images(source, Path(data.source), positions, draft)
        else:
            _share_arrays(source, inputs, positions, draft)
        draft.rename(folder)
    suffix = ".npz" if isinstance(source, ArraySource) else ""
    fit, choose, state = (folder / f"{part}{suffix}" for part in ("fit", "choose", "state"))
    return Shared(fit, choose, state if counts.state else None, counts, preprocessing)


def _share_images(source: ImageSource, root: Path, parts: dict[int, str], folder: Path) -> None:
    for part in sorted(set(parts.values())):
        (folder / part).mkdir()
    names = source.images.index.names
    for position, file in source.images.read(list(parts)):
        name = Path(names[position])
        target = folder / parts[position] / f"{position:05d}-{name.name}"
        original = root.absolute() / name
        if original.is_file():
            try:
                target.symlink_to(original)
                continue
            except OSError:
                pass  # a system or file system without links
        with target.open("wb") as copy:
            shutil.copyfileobj(file, copy)


def _share_arrays(
    source: ArraySource, inputs: Sequence[InputSpec], parts: dict[int, str], folder: Path
) -> None:
    arrays = array_files(source.name, source.paths, inputs)
    for part in sorted(set(parts.values())):
        found: dict[str, list[np.ndarray]] = {}
        start = 0
        for file in arrays.files:
            here = [i for i in range(file.count) if parts[start + i] == part]
            for sample in file.read(here):
                for name, values in sample.items():
                    found.setdefault(name, []).append(values)
            start += file.count
        # savez has arguments of its own, whose names an input could have.
        with zipfile.ZipFile(folder / f"{part}.npz", "w") as archive:
            for name, rows in found.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.stack(rows), allow_pickle=False)


def pictures(shared: Shared, inputs: Sequence[InputSpec]) -> list[PictureReport]:
    """The first samples as the model gets them, as pictures; none where they are no images.

    Raises:
        DataError: they cannot be read.
    """
    data = open_data(shared.fit, inputs, shared.preprocessing, samples=_PICTURES, batch_size=1)
    name = next(iter(inputs)).name
    shown = []
    for batch in islice(data, _PICTURES):
        values = np.asarray(batch.feeds[name][0], np.float64)
        picture = _as_picture(values, shared.preprocessing)
        if picture is None or not np.isfinite(values).all():
            return []
        low, high = float(values.min()), float(values.max())
        levels = np.rint(255.0 * (picture - low) / ((high - low) or 1.0)).astype(np.uint8)
        stride = -(-max(levels.shape[:2]) // _SIDE)
        shown.append(
            PictureReport(
                shape=list(values.shape),
                color=shared.preprocessing.color if shared.preprocessing is not None else None,
                low=low,
                high=high,
                mean=float(values.mean()),
                deviation=float(values.std()),
                picture=data_address(colour_png(levels[::stride, ::stride])),
            )
        )
    return shown


def _as_picture(values: np.ndarray, preprocessing: Preprocessing | None) -> np.ndarray | None:
    """[height, width, 3] of a sample of either layout with one or three channels."""
    if values.ndim != 3:
        return None
    first = values.shape[0] in (1, 3) and not (
        preprocessing is not None and preprocessing.layout == "nhwc"
    )
    last = values.transpose(1, 2, 0) if first else values
    if last.shape[2] not in (1, 3):
        return None
    if preprocessing is not None and preprocessing.color == "bgr":
        last = last[:, :, ::-1]
    return np.broadcast_to(last, (*last.shape[:2], 3))
