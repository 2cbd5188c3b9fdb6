"""The models that speed.py races: one network, written down and compressed in different ways.

All weights are random: they do not matter for time. int8 is onnxruntime's ``quantize_static`` with the
settings that its documentation advises for CPUs (QDQ, weights int8 for each channel, activations uint8).
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import onnx_igpc
from onnx_igpc.calibration.fitters import RandomFitter
from onnx_igpc.compression.rewrite import Rewriter
from onnx_igpc.compression.summary import Original, describe
from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.graph.inputs import InputSpec, model_inputs
from onnx_igpc.graph.model import open_model, save_model
from onnx_igpc.layout.extended import dense_layout, low_rank_layout
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.report.digest import write_digest
from onnx_igpc.report.sections import OptionsReport
from onnx_igpc.sites.find import Rewritable, SiteFilter
from sample_models import build

_CALIBRATION_SAMPLES = 8

DENSE, INT8 = "dense", "int8"


@dataclass(frozen=True)
class Variant:
    """One way to write a network: ``literal``, ``auto``, ``svd`` at ``ch`` channels per group, or dense.

    int8: quantized on top. ``auto`` depends on the batch size and threads it was measured with.
    """

    method: str
    ch: int | None = None
    int8: bool = False

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read ``dense``, ``int8``, ``literal-16``, ``auto-32``, ``svd-16``, ``literal-16-int8``."""
        method, *rest = text.split("-")
        if method == INT8:
            return cls(DENSE, int8=True)
        numbers = [int(part) for part in rest if part.isdigit()]
        return cls(method, numbers[0] if numbers else None, INT8 in rest)

    @property
    def name(self) -> str:
        """As :meth:`parse` reads it."""
        if self.method == DENSE:
            return INT8 if self.int8 else DENSE
        return f"{self.method}-{self.ch}" + ("-int8" if self.int8 else "")


class ModelFolder:
    """Models by network and variant, built when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, network: str, variant: Variant, batch: int = 1, threads: int = 1) -> Path:
        """The file of a variant; only those of ``auto`` differ by batch size and threads."""
        name = f"{network}_{variant.name}"
        if variant.method == "auto":
            name += f"_batch{batch}_threads{threads}"
        path = self.folder / f"{name}.onnx"
        if not path.exists():
            self._build(path, network, variant, batch, threads)
        return path

    def _build(self, path: Path, network: str, variant: Variant, batch: int, threads: int) -> None:
        if variant.int8:
            plain = Variant(variant.method, variant.ch)
            quantize(self.path(network, plain, batch, threads), path)
        elif variant.method == DENSE:
            save_model(build(network), path)
        elif variant.method == "svd":
            write_low_rank(self.path(network, Variant(DENSE)), path, variant.ch or 0)
        elif variant.method == "compressed":
            dense = self.path(network, Variant(DENSE))
            onnx_igpc.compress(dense, onnx_igpc.Published(variant.ch, init="random")).save(path)
        else:
            self._lower(path, network, variant, batch, threads)

    def _lower(self, path: Path, network: str, variant: Variant, batch: int, threads: int) -> None:
        """As the command does it; measured times are kept beside the models."""
        compressed = self.path(network, Variant("compressed", variant.ch))
        result = subprocess.run(
            [
                *(sys.executable, "-m", "onnx_igpc", "lower", str(compressed), "-o", str(path)),
                *("--lowering", variant.method, "--threads", str(threads), "--batch", str(batch)),
                *("--cache", str(self.folder / "cache"), "--quiet"),
            ],
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise CheckFailedError(f"lower failed on {compressed}: {result.stderr.strip()}")


def quantize(source: Path, target: Path) -> None:
    """Static int8 quantization by onnxruntime, calibrated on random inputs."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    specs = model_inputs(open_model(source).proto)

    class RandomReader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(range(_CALIBRATION_SAMPLES))

        def get_next(self) -> dict[str, np.ndarray] | None:
            seed = next(self._left, None)
            return None if seed is None else _sample(specs, seed)

    # Its warnings are about BatchNorm that it cannot give a scale for each channel.
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        # What symbolic shape inference adds is not needed for these networks, and it needs sympy.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            RandomReader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _sample(specs: list[InputSpec], seed: int) -> dict[str, np.ndarray]:
    return random_inputs(specs, seed=seed)


def write_low_rank(source: Path, target: Path, ch: int) -> None:
    """Every site as L K x with no more weights than published V2 has at ``ch``; BatchNorm folded."""

    def plan(site: Rewritable) -> GroupLayout:
        C, F = site.in_channels, site.out_channels
        published = plan_layout(C, F, ch)
        if published.kept_reason is not None or published.weights >= C * F:
            return dense_layout(C, F, published.kept_reason or "would not be smaller")
        rank = published.weights // (C + F)
        return low_rank_layout(C, F, rank) if rank else dense_layout(C, F, "rank below 1")

    opened = open_model(source)
    original, rewriter = Original.of(opened), Rewriter(opened)
    rewriter.fold_batch_norms()
    found = rewriter.find(SiteFilter())
    layouts = {site.name: plan(site) for site in found.rewritable}
    rewriter.rewrite(found, layouts, RandomFitter())
    rewriter.settle()
    report = describe(original, rewriter.changes, opened, OptionsReport(init="random"))
    write_digest(opened.proto, report)
    save_model(opened, target)
