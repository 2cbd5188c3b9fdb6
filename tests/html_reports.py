"""Reports for the tests of the page: small ones with everything in them, and hostile ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from onnx_igpc import compress
from onnx_igpc.data.batches import DataDescription, SourceDescription
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.evaluation.thumbnails import add_thumbnails
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.planning.options import Published
from onnx_igpc.report.benchmark import BenchmarkReport, ModelFacts, Race, SpeedLimit, Timing
from onnx_igpc.report.quantization import QuantizationReport, SampleCounts, TriedMethod
from onnx_igpc.report.sections import (
    CalibrationReport,
    DamageReport,
    EpochReport,
    FinetuneReport,
    LoweringReport,
    MeansReport,
    OptionsReport,
    RacesReport,
    SiteLowering,
    WholeModelReport,
)
from onnx_igpc.report.selection import SelectionReport
from onnx_igpc.report.training import WrittenCheck
from onnx_igpc.report.tree import Change, RewriteReport, SiteReport, StageReport, Totals
from onnx_igpc.report.verification import Accuracy, ClassifierResult, OutputDifference, VerifyReport
from onnx_igpc.runtime.bandwidth import Bandwidth
from onnx_igpc.runtime.footprint import Footprint
from onnx_igpc.runtime.profile import NodeRun
from onnx_igpc.runtime.racing import Interval
from tests.helpers import pointwise_model

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<b>\u202eevil\x00\x1b[31m\U0001f480"
"""A name that breaks out of everything that does not escape it."""


def network_report(sites: int = 12) -> RewriteReport:
    """A report of ``sites`` rewritten and kept convolutions with all that commands add to it."""
    report = RewriteReport(
        options=OptionsReport(form="linear", init="fitted", ch=16),
        totals=Totals(Change(2_000_000, 700_000), Change(9 * 10**8, 3 * 10**8)),
        sites=[_site(number) for number in range(sites)],
        warnings=["expect to fine-tune before use"],
        notes=["a note"],
        checks={"onnx.checker": "passed"},
        input_shapes={"image": [1, 3, 224, 224]},
        calibration=CalibrationReport(
            source="images", samples=300, skipped=[], sequential=True, without_data={}
        ),
        selection=selection_report(),
        finetune=finetune_report(),
        verify=verify_report(),
        benchmark=benchmark_report(),
    )
    report.totals.file_bytes = Change(8_000_000, 2_800_000)
    return report


def hostile_report() -> RewriteReport:
    """A compressed model, and everything it could bring along, under a hostile name."""
    model = pointwise_model(40, 24)
    _rename(model)
    result = compress(model, Published(8))
    add_thumbnails(result.report, result.opened, OpenModel(model))
    report = result.report
    kept = SiteReport(HOSTILE + "2", 8, 8, "kept", HOSTILE, output=HOSTILE)
    report.sites.append(kept)
    report.notes.append(HOSTILE)
    report.warnings.append(HOSTILE)
    report.removed.append(HOSTILE)
    report.options.include = [HOSTILE]
    report.checks[HOSTILE] = HOSTILE
    report.tool = HOSTILE
    report.input_shapes = {HOSTILE: [1, 2]}
    report.finetune = finetune_report()
    report.calibration = CalibrationReport(
        source=HOSTILE,
        samples=3,
        skipped=[HOSTILE],
        sequential=True,
        fit=HOSTILE,
        chosen_by={HOSTILE: 1.0},
        without_data={HOSTILE: HOSTILE},
    )
    fitted = DamageReport(relative_error=0.5, output=HOSTILE, samples=3)
    report.damage = DamageReport(samples=0, unknown=HOSTILE, fitted=fitted)
    damage = {HOSTILE: 1.0}
    report.selection = replace(
        selection_report(), target=HOSTILE, measure=HOSTILE, damage_by_site=damage
    )
    verified = verify_report()
    report.verify = replace(
        verified,
        outputs=(replace(verified.outputs[0], name=HOSTILE),),
        failures=(HOSTILE,),
        metric={HOSTILE: 1.0},
    )
    raced = benchmark_report()
    (race,) = raced.races
    report.benchmark = replace(
        raced,
        machine=HOSTILE,
        models=tuple(replace(each, path=each.path + HOSTILE) for each in raced.models),
        races=(
            replace(
                race,
                timings=tuple(replace(each, path=each.path + HOSTILE) for each in race.timings),
            ),
        ),
    )
    return report


def _rename(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = HOSTILE.replace("\x00", "")


def _site(number: int) -> SiteReport:
    width = 32 * (1 + number % 6)
    before, name = 64 * width, f"/features/{number}/conv"
    if number % 4 == 3:
        counts = Change(before, before)
        return SiteReport(
            name, 64, width, "kept", "excluded by --exclude", None, None, None, None, counts
        )
    layout = plan_layout(64, width, 16)
    k = StageReport.of(layout.k)
    stage = StageReport.of(layout.l)
    site = SiteReport(name, 64, width, "rewritten", None, layout.scheme, 16, k, stage)
    site.parameters = Change(before, layout.weights)
    site.macs = Change(49 * before, 49 * layout.weights)
    site.error = 0.9 / (number + 1)
    site.layout = layout
    site.nodes, site.replaced = [f"{name}/igpc/K", f"{name}/igpc/L"], [name]
    return site


def selection_report() -> SelectionReport:
    curve = [(float(share), float(0.5 * np.exp(-9 * share))) for share in np.linspace(0.1, 0.9, 9)]
    return SelectionReport(
        target="pointwise-parameters=40%",
        family="extended",
        grouping="learned",
        measure="KL divergence, nats",
        samples=300,
        predicted_damage=0.014,
        curve=[*curve, (1.0, 0.0)],
        chosen=(0.398, 0.014),
        damage_by_site={"/features/0/conv": 0.001},
    )


def finetune_report(epochs: int = 5) -> FinetuneReport:
    rows = [
        EpochReport(
            epoch=i,
            step=20 * i,
            learning_rate=0.005,
            loss=2.0 / i,
            output_loss=2.0 / i,
            label_loss=0.0,
            feature_loss=0.0,
            accuracy=None,
            agreement=1 - 0.5 / i,
            val_loss=None,
            val_accuracy=None,
            val_agreement=1 - 0.6 / i,
        )
        for i in range(1, epochs + 1)
    ]
    return FinetuneReport(
        recipe={"epochs": epochs, "lr": 0.005},
        taught=True,
        data=DataDescription("train", 1437, False, None),
        val=None,
        device="cpu",
        processes=1,
        matched_sites=["/features/0/conv"],
        unmatched_sites={},
        notes=["a note"],
        val_before=MeansReport(
            loss=3.0,
            output_loss=3.0,
            label_loss=0.0,
            feature_loss=0.0,
            accuracy=None,
            agreement=0.2,
        ),
        seconds=2.5,
        check=WrittenCheck(relative=1e-6, bound=1e-4, samples=16),
        epochs=rows,
        damage_before=DamageReport(relative_error=0.5, output="logits", samples=300),
    )


def lowering_report() -> LoweringReport:
    """As of a measured lowering, which has everything."""
    seconds = {"literal": 0.002, "dense": 0.003, "chosen": 0.001}
    return LoweringReport(
        mode="auto",
        provider="cpu",
        threads=1,
        batch=1,
        shapes={"image": [1, 3, 224, 224]},
        allow_slower=False,
        onnxruntime="1.20.0",
        device="x86_64",
        sites={"/features/0/conv": SiteLowering(lowering="padded-8", seconds=seconds)},
        notes=["a note"],
        model=WholeModelReport(
            seconds=seconds, predicted=0.001, speedup={"dense": (3.0, 2.9, 3.1)}
        ),
        races=RacesReport(measured=2, reused=1),
    )


def quantization_report() -> QuantizationReport:
    """As of a measured quantization, which has everything."""
    return QuantizationReport(
        provider="cpu",
        method="minmax",
        activations="uint8",
        symmetric=False,
        reduce_range=False,
        reason="this processor has avx512_vnni",
        data=DataDescription("images", 120, False, None),
        samples=SampleCounts(calibrated=120, chosen_by=40, measured=40),
        tried=[TriedMethod(method="minmax", relative_error=0.1, agreement=0.95)],
        integer={"Conv": 28},
        floating={"Gemm": 1},
        excluded={"head": "makes the model's outputs"},
        damage=DamageReport(agreement=0.975, samples=40),
        opset=11,
        kernels={"QLinearConv": 28, "Gemm": 1},
        executed="cpu ran 30 of 30 nodes",
        onnxruntime="1.32.0",
        seconds=12.5,
    )


def verify_report() -> VerifyReport:
    return VerifyReport(
        original="model.onnx",
        candidate="small.onnx",
        provider="cpu",
        samples=360,
        random=False,
        data=SourceDescription("test", 360, True, Preprocessing(resize=32), []),
        outputs=(OutputDifference("logits", 3600, 3.31, 0.241, 0.607, 0.199, 0.98, 5.4, 0, 0, 0),),
        classifier=ClassifierResult(
            "logits", 10, 360, 0.992, Accuracy(0.983, 1.0), Accuracy(0.992, 0.997)
        ),
        metric=None,
        executed={"original": "cpu ran 23 of 23 nodes"},
        failures=(),
    )


def benchmark_report() -> BenchmarkReport:
    speed, limit = Interval(1.25, 1.21, 1.3), SpeedLimit(1.6, 0.78, 1.5, 0.5, 0, ())
    return BenchmarkReport(
        provider="cpu",
        onnxruntime="1.20.0",
        machine="x86_64 Linux, 2 processors",
        rounds=8,
        inputs="random",
        models=(_facts("models/model.onnx", 8_000_000), _facts("models/small.onnx", 2_800_000)),
        races=(
            Race(
                1,
                2,
                (
                    _timing("models/model.onnx", 2.5),
                    replace(_timing("models/small.onnx", 2.0), speedup=speed, limit=limit),
                ),
                Bandwidth((1024,), (1e9,)),
            ),
        ),
    )


def _facts(path: str, size: int) -> ModelFacts:
    node = NodeRun("conv", "Conv", "CPUExecutionProvider", "conv", ((1, 8),), 1, 100)
    return ModelFacts(path, size, Footprint(0.1, 2**20, None), 0, "", (node,), 6, (), None)


def _timing(path: str, median: float) -> Timing:
    rounds = tuple(median + 0.1 * step for step in (-1, 0, 0, 1, -2, 2, 0, 40))
    return Timing(path, median, (median - 0.1, median + 0.1), 1000 / median, None, rounds)
