"""The models of a picture of benchmarks.pareto, made in a folder, where they stay."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import onnx

import onnx_igpc
from benchmarks.accuracy import Bench
from onnx_igpc import Budget, Calibration, Dataset, Lowering, Published, Quantization, Recipe
from onnx_igpc.errors import IgpcError
from onnx_igpc.graph.model import open_model, save_model
from onnx_igpc.lowering.options import FLOAT32, INT8, LITERAL, PRECISIONS, Precision
from onnx_igpc.lowering.quantization.static import optimize
from onnx_igpc.report.result import CompressResult

DENSE, DENSE_INT8 = "dense", "dense, int8"
PLAIN_INT8 = "dense, int8 (plain quantize_static)"
TRAINED, FOR_INT8 = "trained", "trained for int8"
PUBLISHED_CH = 32
PRUNING = "channels-wanda-global"


class _Reader(Iterator[dict[str, np.ndarray]]):
    """Feeds one by one, as quantize_static asks for them."""

    def __init__(self, feeds: Iterator[dict[str, np.ndarray]]) -> None:
        self._feeds = feeds

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


@dataclass(frozen=True)
class Wanted:
    """Which points there are besides those of the dense model.

    ``budgets``; ``trained``: those also after training, in float and for int8, the dense model after the
    latter; ``epochs`` of that, ``None`` for the default. ``rivals``: published V2, low rank and pruned
    channels, too, the latter two at the share of pointwise parameters that is given.
    """

    budgets: Sequence[str]
    trained: bool = False
    epochs: int | None = None
    rivals: float | None = None


class Points:
    """Makes the models of a network's points in a folder; ``failed`` says why there is none, by name."""

    def __init__(
        self,
        model: Path,
        data: Calibration,
        quantization: Quantization,
        folder: Path,
        cache: Path | bool,
    ) -> None:
        self.model = model
        self.data = data
        self.quantization = quantization
        self.folder = folder
        self.cache = cache
        self.failed: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def made(self, wanted: Wanted) -> dict[str, Path]:
        """The points by name, dense first."""
        points = {DENSE: self.model, **self._quantized(DENSE, self.model)}
        points |= self._kept(PLAIN_INT8, self._plain)
        if wanted.trained:
            for path in self._trained(DENSE, self.model, INT8, wanted.epochs).values():
                points |= self._quantized(f"{DENSE}, {FOR_INT8}", path)
        for budget in wanted.budgets:
            timed = budget.startswith("latency")
            points |= (
                self._timed(budget, wanted) if timed else self._budgeted(budget, budget, wanted)
            )
        if wanted.rivals is not None:
            points |= self._rivals(wanted.rivals)
        return points

    def _timed(self, budget: str, wanted: Wanted) -> dict[str, Path]:
        """What is chosen by times of either precision, and written as it was rewritten, so that it can be trained."""
        points: dict[str, Path] = {}
        for precision in PRECISIONS:
            lowering = replace(self._lowering(precision), kind=LITERAL)
            points |= self._budgeted(f"{budget} by {precision} times", budget, wanted, lowering)
        return points

    def _budgeted(
        self, name: str, budget: str, wanted: Wanted, lowering: Lowering | None = None
    ) -> dict[str, Path]:
        """As it is and trained, lowered for the precision that it runs in."""
        points: dict[str, Path] = {}
        for path in self._compressed(f"{name} raw", self._budget(budget), lowering).values():
            points |= self._both(name, path)
            if not wanted.trained:
                continue
            for trained in self._trained(name, path, FLOAT32, wanted.epochs).values():
                points |= self._both(f"{name}, {TRAINED}", trained)
            for trained in self._trained(name, path, INT8, wanted.epochs).values():
                points |= self._in_int8(f"{name}, {FOR_INT8}", trained)
        return points

    def _rivals(self, share: float) -> dict[str, Path]:
        points: dict[str, Path] = {}
        name = f"published V2, ch {PUBLISHED_CH}"
        for path in self._compressed(f"{name} raw", Published(PUBLISHED_CH)).values():
            points |= self._both(name, path)
        for name, make in (
            (f"low rank, {share:.0%}", self._low_rank),
            (f"channels pruned by onnxsim, {share:.0%}", self._pruned),
        ):
            for path in self._kept(f"{name} raw", lambda make=make: make(share)).values():
                low_rank = make == self._low_rank
                points |= self._both(name, path) if low_rank else {name: path}
                if not low_rank:
                    points |= self._quantized(name, path)
        return points

    def _both(self, name: str, path: Path) -> dict[str, Path]:
        return self._lowered(name, path, FLOAT32) | self._in_int8(name, path)

    def _in_int8(self, name: str, path: Path) -> dict[str, Path]:
        points: dict[str, Path] = {}
        for lowered in self._lowered(f"{name}, lowered for int8", path, INT8).values():
            points |= self._quantized(name, lowered)
        return points

    def _lowered(self, name: str, path: Path, precision: Precision) -> dict[str, Path]:
        how = self._lowering(precision)
        return self._kept(name, lambda: onnx_igpc.lower(path, lowering=how))

    def _lowering(self, precision: Precision) -> Lowering:
        setting = self.quantization.setting
        return Lowering(setting=setting, precision=precision, cache=self.cache)

    def _budget(self, target: str) -> Budget:
        sizes = self.folder / f"{self.model.stem}.sensitivity"
        known = {"sensitivity" if sizes.exists() else "save_sensitivity": sizes}
        return Budget(target, **known)

    def _compressed(
        self, name: str, plan: Budget | Published, lowering: Lowering | None = None
    ) -> dict[str, Path]:
        return self._kept(
            name,
            lambda: onnx_igpc.compress(self.model, plan, calibration=self.data, lowering=lowering),
        )

    def _quantized(self, name: str, path: Path) -> dict[str, Path]:
        return self._kept(
            f"{name}, int8",
            lambda: onnx_igpc.quantize(path, self.data, quantization=self.quantization),
        )

    def _trained(
        self, name: str, path: Path, precision: Precision, epochs: int | None
    ) -> dict[str, Path]:
        """On the images of the calibration, all of them."""
        said = f"{name}, {FOR_INT8 if precision == INT8 else TRAINED} raw"
        recipe = Recipe(epochs=epochs, precision=INT8 if precision == INT8 else None)
        data = Dataset(self.images, self.data.preprocessing)
        return self._kept(
            said,
            lambda: onnx_igpc.finetune(path, data, teacher=self.model, recipe=recipe).model,
        )

    def _plain(self) -> onnx.ModelProto:
        """What onnxruntime's documentation begins with: its pre-processing, and all defaults."""
        from onnxruntime.quantization import quantize_static

        opened = open_model(self.model)
        data = self.data.open(opened)
        with tempfile.TemporaryDirectory(prefix="onnx-igpc-") as folder:
            ready, written = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
            optimize(self.model, ready, opened.name)
            reader = iter([batch.feeds for batch in data])
            quantize_static(ready, written, _Reader(reader))
            return onnx.load(written)

    def _low_rank(self, share: float) -> onnx.ModelProto:
        """Every site at the share of its weights, fitted to what it reads, as in benchmarks.accuracy."""
        with tempfile.TemporaryDirectory(prefix="onnx-igpc-") as folder:
            bench = self._bench(Path(folder))
            weights = {name: int(share * c * f) for name, (c, f) in bench.shapes.items()}
            return onnx.load(bench.planned(partial(bench.svd, weights), True)[0])

    def _pruned(self, share: float) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory(prefix="onnx-igpc-") as folder:
            bench = self._bench(Path(folder))
            return onnx.load(bench.pruned(PRUNING, share)[0])

    def _bench(self, folder: Path) -> Bench:
        samples = self.data.samples or len(list(self.images.iterdir()))
        return Bench(self.model, self.images, self.images, self.data.preprocessing, samples, folder)

    @property
    def images(self) -> Path:
        source = self.data.data
        assert isinstance(source, (str, Path))
        return Path(source)

    def path(self, name: str) -> Path:
        """Where the point lies."""
        return self.folder / f"{self.model.stem} {name.replace(',', '')}.onnx".replace(" ", "_")

    def _kept(
        self, name: str, make: Callable[[], CompressResult | onnx.ModelProto]
    ) -> dict[str, Path]:
        """The point, if it is there or can be made."""
        path = self.path(name)
        if not path.exists():
            start = time.perf_counter()
            try:
                made = make()
                made.save(path) if isinstance(made, CompressResult) else save_model(made, path)
            except IgpcError as error:
                self.failed[name] = str(error)
                return {}
            click.echo(f"{name}: {time.perf_counter() - start:.0f} s", err=True)
        return {name: path}
