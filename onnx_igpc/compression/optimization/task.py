"""What is optimized: the model, its images and its promise, and the commands that repeat each step."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from onnx_igpc.calibration.options import Calibration
from onnx_igpc.compression.optimization.images import Shared
from onnx_igpc.compression.optimization.options import Optimization
from onnx_igpc.compression.optimization.workbench import slug
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.planning.promise import Promise
from onnx_igpc.report.optimization import ORIGINAL
from onnx_igpc.runtime.setting import Setting

STEPS = "steps"
DATA = "data"
PREPROCESSING = "preprocess.json"
SENSITIVITY = f"{STEPS}/sensitivity.json"
"""Folders and files, in the folder of the work as in the one that is written; commands run there."""


@dataclass(frozen=True)
class Task:
    """What is optimized.

    Args:
        model: the original's file.
        images: shared out.
        val: labelled data, with which nothing is fitted.
        promise: to keep.
        options: as they were given, the sizes of dynamic inputs added to the setting.
    """

    model: Path
    images: Shared
    val: Dataset | None
    promise: Promise
    options: Optimization

    @property
    def setting(self) -> Setting:
        """Where the chosen model will run."""
        return self.options.setting

    @property
    def calibration(self) -> Calibration:
        """What models are fitted to."""
        return Calibration(self.images.fit, self.images.preprocessing)

    @property
    def judge(self) -> Dataset:
        """What models are chosen by: held-out images, or labelled ones where accuracy is promised."""
        if self.promise.labelled:
            assert self.val is not None
            return self.val
        return self.images.dataset(self.images.choose)

    def file(self, point: str) -> str:
        """The file of a model that was tried, relative to the folder."""
        return f"{STEPS}/{slug(point)}.onnx"

    def command(self, name: str, *words: object) -> str:
        """A command line of this tool."""
        return " ".join(["onnx-igpc", name, *(shlex.quote(str(each)) for each in words)])

    def place(self, point: str) -> str:
        """The file of a point, or of the original, as commands name it."""
        return str(self.model) if point == ORIGINAL else self.file(point)

    def data(self, data: Dataset) -> list[str]:
        """The options that name data to verify on, and how it is read."""
        assert isinstance(data.source, Path)
        path = str(data.source)
        if data.source.parent.name == DATA and data.source in (
            self.images.fit,
            self.images.choose,
            self.images.state,
        ):
            path = f"{DATA}/{data.source.name}"
        offset = [] if not data.label_offset else ["--label-offset", str(data.label_offset)]
        how = [] if data.preprocessing is None else self.preprocessing
        return ["--data", path, *how, *offset]

    @property
    def fitting(self) -> list[str]:
        """The options that name what is fitted to."""
        return ["--calibration", f"{DATA}/{self.images.fit.name}", *self.preprocessing]

    @property
    def preprocessing(self) -> list[str]:
        """The options that say how images are read."""
        return [] if self.images.preprocessing is None else ["--preprocess", PREPROCESSING]

    def where(self, *, batch: bool = False, shapes: bool = False) -> list[str]:
        """The options that say where models run."""
        setting = self.setting
        words = ["--provider", setting.provider] if setting.provider != "cpu" else []
        words += ["--threads", str(setting.threads)] if setting.threads is not None else []
        words += ["--batch", str(setting.batch)] if batch and setting.batch != 1 else []
        for name, shape in setting.shapes.items() if shapes else ():
            words += ["--shape", f"{name}:{','.join(map(str, shape))}"]
        return words
