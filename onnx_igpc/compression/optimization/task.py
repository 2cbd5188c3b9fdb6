"""What is optimized: the model, its images and its promise, and the commands that repeat each step."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx_igpc.calibration.division import held_out_count
from onnx_igpc.calibration.options import DEFAULT_SAMPLES, Calibration
from onnx_igpc.compression.optimization.images import Shared
from onnx_igpc.compression.optimization.options import Optimization
from onnx_igpc.compression.optimization.workbench import slug
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.planning.promise import Promise
from onnx_igpc.report.optimization import ORIGINAL
from onnx_igpc.runtime.setting import Setting

Options = Mapping[str, object]
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
        """What models are fitted to.

        The share that compress holds out of that is its own, but said: what it measures there is measured again here,
        and need not be measured once more with the parts exchanged.
        """
        return Calibration(self.images.fit, self.images.preprocessing, holdout=self._holdout)

    @property
    def _holdout(self) -> float:
        fit = min(self.images.counts.fit, DEFAULT_SAMPLES)
        return held_out_count(fit) / fit

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

    def command(self, name: str, *places: object, **options: object) -> str:
        """A command line of this tool; options by the names of their flags, ``None`` where it has none.

        ``True`` is a flag alone, a mapping has an option for each of its entries.
        """
        words = [name, *(str(each) for each in places)]
        for option, value in options.items():
            flag = f"-{option}" if len(option) == 1 else f"--{option.replace('_', '-')}"
            if isinstance(value, Mapping):
                for key, sizes in value.items():
                    words += [flag, f"{key}:{','.join(map(str, sizes))}"]
            elif value is True:
                words.append(flag)
            elif value is not None and value is not False:
                words += [flag, str(value)]
        return " ".join(["onnx-igpc", *map(shlex.quote, words)])

    def place(self, point: str) -> str:
        """The file of a point, or of the original, as commands name it."""
        return str(self.model) if point == ORIGINAL else self.file(point)

    def data(self, data: Dataset) -> Options:
        """The options that name data to verify on, and how it is read."""
        assert isinstance(data.source, Path)
        parts = (self.images.fit, self.images.choose, self.images.state)
        return {
            "data": f"{DATA}/{data.source.name}" if data.source in parts else data.source,
            "preprocess": None if data.preprocessing is None else PREPROCESSING,
            "label_offset": data.label_offset or None,
        }

    @property
    def fitting(self) -> Options:
        """The options of what is fitted to."""
        named = self.data(self.images.dataset(self.images.fit))
        return {"calibration": named["data"], "preprocess": named["preprocess"]}

    @property
    def provider(self) -> Options:
        """The option of the provider, where it is another one than the CPU."""
        named = self.setting.provider
        return {"provider": None if named == "cpu" else named}

    @property
    def where(self) -> Options:
        """The options that say where models run."""
        return {**self.provider, "threads": self.setting.threads}

    @property
    def batch(self) -> Options:
        """The option of the batch size, where it is not 1."""
        return {"batch": None if self.setting.batch == 1 else self.setting.batch}
