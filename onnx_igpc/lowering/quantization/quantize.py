"""quantize: a float model as int8 for a runtime, and what that did to its answers.

The phases in order: prepare the float model, split the data, quantize with each method that is tried,
choose, put back what the quantizer lost, measure, describe.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnx_igpc.calibration.held_samples import HeldSamples, Part
from onnx_igpc.calibration.options import Calibration
from onnx_igpc.data.batches import Data, DataDescription, data_doubts, data_notes
from onnx_igpc.data.file_guard import FileGuard
from onnx_igpc.data.progress import Progress
from onnx_igpc.data.sources import Arrays, ImageSource, as_data, find_source
from onnx_igpc.errors import ModelError, with_flags
from onnx_igpc.evaluation.damage import UnlabelledData, measure_damage
from onnx_igpc.evaluation.verify import DEFAULT_SETTING, verify
from onnx_igpc.graph.checks import check_graph, check_original, shape_doubt
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel, PathLike, save_model
from onnx_igpc.lowering.lower import count_sites
from onnx_igpc.lowering.quantization.exclusions import LAYERS, excluded_nodes
from onnx_igpc.lowering.quantization.float_model import FloatModel, float_model, refuse_unsuitable
from onnx_igpc.lowering.quantization.kernels import ran
from onnx_igpc.lowering.quantization.options import AUTO, METHODS, Method, Quantization
from onnx_igpc.lowering.quantization.parts import ENOUGH, Parts, split
from onnx_igpc.lowering.quantization.restore import restore
from onnx_igpc.lowering.quantization.static import (
    BatchReader,
    count_batches,
    optimize,
    quantize_file,
)
from onnx_igpc.lowering.quantization.target import Target
from onnx_igpc.report.digest import read_digest, refuse_quantized, write_digest
from onnx_igpc.report.quantization import QuantizationReport, SampleCounts, TriedMethod
from onnx_igpc.report.result import CompressResult, new_report, open_copy
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.runtime.session import import_onnxruntime, provider_label, provider_name
from onnx_igpc.runtime.setting import Setting

# What inner tensors hold for one batch is in memory while it is calibrated on.
_BATCH = 4
_TRAINED = (
    "the weights were trained for int8, by the smallest and largest values, which are taken here, too; the damage "
    "compares with the same weights in float, and the samples may be among those of the training: verify against "
    "the original, on others, tells what it is worth"
)


def quantize_model(
    model: onnx.ModelProto | PathLike,
    calibration: Calibration | PathLike | Arrays | Data,
    *,
    quantization: Quantization | None = None,
    progress: Progress | None = None,
) -> CompressResult:
    """Quantize a model to int8 (QDQ) with onnxruntime's static quantization.

    The model is an original, or what compress, finetune or lower wrote. BatchNormalization is folded and
    weights that the model lists as inputs become constants. Weights are int8 with a scale for each channel;
    the ranges of activations are found on most of the data. A fifth of it (40 samples at least, of 100
    or more) is held out to measure the damage on, another to choose the method by. The result is final.

    Args:
        model: a ModelProto, which is not changed, or the path of a file.
        calibration: unlabelled data; images are preprocessed as it says, or else as the model's report.
        quantization: what is quantized and how.
        progress: called with (done, in all or 0, what is being done).

    Raises:
        UsageError: the model is quantized or in float16; a glob that matches no node; an unknown provider.
        ModelError: the model cannot be read or run, or has nothing to quantize.
        DataError: data that cannot be used.
        CheckFailedError: the provider is missing or ran none of the quantized model.
    """
    import_onnxruntime("quantizing a model")
    options = quantization or Quantization()
    if not isinstance(calibration, Calibration):
        calibration = Calibration(calibration)
    start = time.perf_counter()
    opened = open_copy(model)
    guard = FileGuard()
    guard.reads_model(opened)
    guard.reads_data(calibration.data, "calibration")
    check_original(opened)
    digest = read_digest(opened.proto)
    refuse_quantized(digest, opened.name, "quantize")
    refuse_unsuitable(opened)
    trained = (
        digest is not None and digest.finetune is not None and digest.finetune.int8 is not None
    )
    if trained and options.method == AUTO:
        options = replace(options, method=METHODS[0])
    setting = (options.setting or Setting()).fitted(opened.proto)
    data = _open(calibration, opened, digest)
    source = float_model(opened)
    say = progress or (lambda done, total, what: None)
    with (
        HeldSamples(data, model_inputs(opened.proto), _BATCH) as held,
        tempfile.TemporaryDirectory(prefix="onnx-igpc-", ignore_cleanup_errors=True) as folder,
    ):
        parts = split(held, choosing=options.method == AUTO)
        run = _Run(source, opened, options, setting, parts, Path(folder), say)
        written, said = run.quantized()
        result = _finish(opened, source, written, digest or new_report(opened))
        report = result.report
        report.quantization = said
        report.preprocessing = data.preprocessing or report.preprocessing
        run.measure(result)
    report.notes += [*data_notes(data), *data_doubts(data), *_lowering_notes(report)]
    report.notes += [_TRAINED] if trained else []
    write_digest(result.opened.proto, report)
    report.totals.file_bytes.after = result.opened.total_bytes()
    said.seconds = time.perf_counter() - start
    return replace(result, guard=guard)


def _lowering_notes(report: RewriteReport) -> list[str]:
    """What to know of a lowering that was chosen by other times than those of integers."""
    said = report.lowering
    if said is None or said.mode != AUTO or said.precision is not None:
        return []
    return [
        with_flags(
            "its sites are written as they were fastest in float32: for int8, choose them with `precision` int8"
        )
    ]


def _open(calibration: Calibration, opened: OpenModel, digest: RewriteReport | None) -> Data:
    """The data; images are preprocessed as asked, or else as for earlier commands."""
    preprocessing = calibration.preprocessing
    if preprocessing is None and digest is not None and _are_images(calibration.data):
        preprocessing = digest.preprocessing
    return as_data(
        calibration.data,
        model_inputs(opened.proto),
        preprocessing,
        samples=calibration.samples,
        batch_size=_BATCH,
    )


def _are_images(data: object) -> bool:
    return isinstance(data, (str, os.PathLike)) and isinstance(find_source(data), ImageSource)


@dataclass(frozen=True)
class _Run:
    """One quantization: the float model, its data, and a folder for what comes between."""

    source: FloatModel
    original: OpenModel
    options: Quantization
    setting: Setting
    parts: Parts
    folder: Path
    say: Progress

    def quantized(self) -> tuple[onnx.ModelProto, QuantizationReport]:
        """The quantized graph as the quantizer wrote it, by the best method, and what the report says.

        Raises:
            ModelError: nothing was quantized, or as :func:`quantize_model`.
        """
        save_model(self.source.model, self.folder / "float.onnx")
        name, optimized = self.original.name, self.folder / "optimized.onnx"
        self.say(0, 0, "preparing")
        optimize(self.folder / "float.onnx", optimized, name)
        excluded = excluded_nodes(onnx.load(optimized), self.source, self.options)
        integers = Target.of(self.options, self.setting)
        batches = count_batches(self.parts.calibrate)
        methods = self._methods()
        for method in methods:
            reader = BatchReader(self.parts.calibrate, batches, self._tell(method, batches))
            path = self._path(method)
            quantize_file(optimized, path, reader, method, integers, excluded, name)
        tried = self._tried(methods)
        chosen = self._chosen(methods, tried)
        written = onnx.load(self._path(chosen))
        integer, floating = _layers(written.graph)
        if not integer:
            raise ModelError(
                f"{name}: there is nothing to quantize: no {', '.join(LAYERS[:-1])} or {LAYERS[-1]} in "
                "float32 with a stored weight, or all of them are excluded"
            )
        return written, QuantizationReport(
            provider=provider_label(provider_name(self.setting.provider)),
            method=chosen,
            activations=integers.activations,
            symmetric=integers.symmetric,
            reduce_range=integers.reduce_range,
            reason=integers.reason,
            data=_described(self.parts.calibrate),
            samples=SampleCounts(
                calibrated=self.parts.calibrate.size,
                chosen_by=self.parts.choose.size if self.parts.choose is not None else 0,
            ),
            tried=tried,
            integer=integer,
            floating=floating,
            excluded=excluded,
            opset=self.source.opset,
        )

    def _methods(self) -> tuple[Method, ...]:
        """What is tried; without samples to choose by, the one that needs no choice."""
        asked = [method for method in METHODS if method == self.options.method]
        return tuple(asked) or (METHODS if self.parts.choose is not None else METHODS[:1])

    def _tell(self, method: Method, batches: int) -> Callable[[int], None]:
        return lambda done: self.say(done, batches, f"calibrating, {method}")

    def _path(self, method: str) -> Path:
        return self.folder / f"{method}.onnx"

    def _tried(self, methods: tuple[Method, ...]) -> list[TriedMethod]:
        """The damage of each method, where there are several."""
        if self.parts.choose is None:
            return []
        tried = []
        for done, method in enumerate(methods):
            self.say(done, len(methods), f"comparing, {method}")
            tried.append(self._damage(method, self.parts.choose))
        return tried

    def _damage(self, method: str, data: Part) -> TriedMethod:
        setting = replace(DEFAULT_SETTING, threads=self.setting.threads)
        found = verify(self.original, self._path(method), UnlabelledData(data), setting=setting)
        worst = found.worst_output
        numbers = [each.agreement for each in found.outputs if each.agreement is not None]
        agreement = min(numbers, default=None)
        if found.classifier is not None:
            agreement = found.classifier.agreement
        error = worst.relative_norm if worst is not None else None
        return TriedMethod(method=method, relative_error=error, agreement=agreement)

    @staticmethod
    def _chosen(methods: tuple[Method, ...], tried: list[TriedMethod]) -> str:
        """By the agreement, and where that is equal or unknown by the error.

        Clipping too much changes the answers of a classifier long before it shows in the error: with the
        0.1 % of largest values clipped, MobileNet V1 0.25 lost a tenth of its agreement at the same error.
        """
        if not tried:
            return methods[0]
        return min(tried, key=lambda each: (-(each.agreement or 0.0), _error(each))).method

    def measure(self, result: CompressResult) -> None:
        """Measure what was written: its damage on samples held out for that, and what ran it.

        Raises:
            ModelError: it cannot be run.
            CheckFailedError: the provider is missing or ran none of its nodes.
        """
        report, said = result.report, result.report.quantization
        assert said is not None
        held_out = self.parts.measure
        if held_out is None:
            report.warnings.append(
                f"the damage was not measured: of {self.parts.calibrate.size} samples none were held "
                f"out, give {ENOUGH} or more"
            )
        else:
            self.say(0, 0, "measuring the damage")
            said.damage = measure_damage(
                self.original, result.opened, held_out, self.setting.threads, report
            )
            said.samples.measured = said.damage.samples
        self.say(0, 0, "profiling")
        save_model(result.opened, self.folder / "written.onnx")
        said.kernels, said.executed = ran(self.folder / "written.onnx", self.setting)
        said.onnxruntime = import_onnxruntime().__version__


def _error(tried: TriedMethod) -> float:
    return tried.relative_error if tried.relative_error is not None else 0.0


def _described(part: Part) -> DataDescription:
    found = UnlabelledData(part).describe()
    return DataDescription(found.source, found.samples, found.labelled, found.preprocessing)


def _layers(graph: onnx.GraphProto) -> tuple[dict[str, int], dict[str, int]]:
    """How many layers of each kind read integers, and how many do not."""
    quantized = {
        name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    layers = [node for node in graph.node if node.op_type in LAYERS]
    integer = Counter(node.op_type for node in layers if quantized.issuperset(node.input[:2]))
    floating = Counter(node.op_type for node in layers) - integer
    return dict(integer), dict(floating)


def _finish(
    opened: OpenModel, source: FloatModel, written: onnx.ModelProto, report: RewriteReport
) -> CompressResult:
    """Put back what was lost, check, and bring the counts of the report up to date.

    Raises:
        CheckFailedError: the quantized model is not valid, or its inputs or outputs differ.
    """
    doubt = shape_doubt(opened)
    removed = source.preparation.put_into(report)
    report.inputs_removed += [name for name in removed if name not in report.inputs_removed]
    report.notes += restore(opened.proto, written, source.named)
    result = OpenModel(written)
    count_sites(source.model, count(source.model), report)
    after = count(result)
    report.totals.parameters.after, report.totals.macs.after = after.parameters, after.macs
    report.checks = {**report.checks, **check_graph(opened.proto, result, doubt)}
    return CompressResult(result, report, changed=True)
