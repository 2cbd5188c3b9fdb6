"""What a verification found, and how the model was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_igpc.report.benchmark import BenchmarkReport
from onnx_igpc.report.html.charts import definitions, opened_by, value_table
from onnx_igpc.report.html.elements import Child, Element, element
from onnx_igpc.report.numbers import exact
from onnx_igpc.report.quantization import QuantizationReport, counts
from onnx_igpc.report.sections import CalibrationReport, FinetuneReport, LoweringReport
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.report.typed_json import to_values
from onnx_igpc.report.verification import VerifyReport

Facts = Mapping[str, object]
"""JSON values by what they are called."""


def verification(verified: VerifyReport | None) -> list[Child]:
    """Whether it passed, every output's difference, and where the nodes ran."""
    if verified is None:
        return []
    failures = verified.failures
    on = "random inputs" if verified.random else f"{exact(verified.samples)} samples"
    made: list[Child] = [
        element(
            "p",
            None,
            f"Both models ran on {on}; {'what was asked for did not hold.' if failures else 'nothing that was asked for failed.'}",
        )
    ]
    if failures:
        made.append(_list("warnings", failures))
    if verified.random:
        made.append(
            element("p", {"class": "note"}, "On random inputs agreement says little: give --data.")
        )
    rows = [
        (
            each.name,
            f"{each.max_abs:.3g}",
            f"{each.mean_abs:.3g}",
            _number(each.relative, ".3g"),
            _number(each.relative_norm, ".3g"),
            _number(each.cosine, ".6f"),
        )
        for each in verified.outputs
    ]
    head = (
        "output",
        "max |a − b|",
        "mean |a − b|",
        "relative to max |b|",
        "|a − b| / |b|",
        "cosine",
    )
    made += value_table("The rewritten model's outputs a against the original's b", head, rows)
    made.append(_list("plain", [f"{role}: {text}" for role, text in verified.executed.items()]))
    return made


def machine(benchmark: BenchmarkReport | None) -> list[Child]:
    """On what the races were run, and the models' sizes and memory."""
    if benchmark is None:
        return []
    facts: list[str] = []
    for model in benchmark.models:
        parts = [f"{exact(model.file_bytes)} bytes"]
        if model.footprint is not None:
            parts.append(f"loads in {1000 * model.footprint.load_seconds:.0f} ms")
            if model.footprint.peak_bytes is not None:
                parts.append(f"peak memory {model.footprint.peak_bytes / 2**20:.0f} MiB")
        facts += [f"{model.path}: {', '.join([*parts, model.executed])}", *model.notes]
    text = (
        f"onnxruntime {benchmark.onnxruntime}, {benchmark.provider}, {benchmark.machine}; "
        f"{benchmark.rounds} rounds in which the models take turns; inputs: {benchmark.inputs}."
    )
    return [element("p", None, text), _list("plain", facts)]


def making(report: RewriteReport) -> list[Child]:
    """Options, data, checks, notes and what was changed beside the sites."""
    parts: list[Child] = []
    for title, facts in (
        ("Options", to_values(report.options)),
        ("Calibration", _calibration(report.calibration)),
        ("Preprocessing", to_values(report.preprocessing)),
        ("Fine-tuning", _training(report.finetune)),
        ("Lowering", _lowering(report.lowering)),
        ("Quantization", _quantization(report.quantization)),
        ("Checks", report.checks),
    ):
        if facts:
            parts += [element("h3", None, title), _definitions(facts)]
        if title == "Calibration" and report.calibration is not None:
            parts += _fits(report.calibration)
        if title == "Lowering" and report.lowering is not None:
            parts.append(_sites_lowered(report.lowering))
    if report.notes:
        parts += [element("h3", None, "Notes"), _list("plain", report.notes)]
    changed = [
        opened_by(f"{label}: {len(names)}", _list("plain names", names))
        for label, names in (
            ("Folded BatchNormalizations", report.folded),
            ("Merged Gathers", report.merged),
            ("Nodes whose channels lie in another order", report.permuted),
            ("Nodes and constants that are no longer needed", report.removed),
            ("Constants that are no longer graph inputs", report.inputs_removed),
        )
        if names
    ]
    if changed:
        parts += [element("h3", None, "Changed beside the sites"), *changed]
    return parts


def _calibration(calibration: CalibrationReport | None) -> Facts:
    """The facts without the fits that were tried, which have a table."""
    facts = {} if calibration is None else to_values(calibration)
    return {key: value for key, value in facts.items() if key != "chosen_by"}


def _fits(calibration: CalibrationReport) -> list[Element]:
    """The fits that were tried, the best first."""
    tried = sorted((calibration.chosen_by or {}).items(), key=lambda each: each[1])
    rows = [
        (label, f"{damage:.3g}", "chosen" if label == calibration.fit else "")
        for label, damage in tried
    ]
    said = "Fits that were tried: damage to samples that each left out"
    return value_table(said, ("fit", "damage", ""), rows) if rows else []


def _training(finetune: FinetuneReport | None) -> Facts:
    """The facts of a run without its curves, which are drawn."""
    if finetune is None:
        return {}
    drawn = {"recipe", "epochs", "val_before", "damage_before", "matched_sites"}
    facts = {key: value for key, value in to_values(finetune).items() if key not in drawn}
    return {**facts, **finetune.recipe}


def _lowering(lowering: LoweringReport | None) -> Facts:
    """Where it was measured, how many sites became what, and the times of whole models."""
    if lowering is None:
        return {}
    told = {"sites", "model", "races", "notes"}
    facts = {key: value for key, value in to_values(lowering).items() if key not in told}
    facts["sites"] = lowering.counts
    if lowering.model is not None:
        times = lowering.model.seconds.items()
        facts["whole model, ms"] = ", ".join(f"{name} {1000 * each:.4g}" for name, each in times)
    return facts


def _quantization(said: QuantizationReport | None) -> Facts:
    """What was chosen and by what; the damage is told where the page says what all of it brought."""
    if said is None:
        return {}
    told = {"tried", "damage", "excluded", "integer", "floating", "kernels", "seconds"}
    facts = {key: value for key, value in to_values(said).items() if key not in told}
    tried = [
        f"{each.method} {_number(each.relative_error, '.3g')}"
        + (f" (agreement {each.agreement:.1%})" if each.agreement is not None else "")
        for each in said.tried
    ]
    counted = (("quantized", said.integer), ("in float", said.floating), ("ran as", said.kernels))
    facts |= {title: counts(numbers) for title, numbers in counted if numbers}
    reasons = [f"{name}: {reason}" for name, reason in said.excluded.items()]
    return {**facts, "relative error of each method": tried, "excluded": reasons}


def _sites_lowered(lowering: LoweringReport) -> Element:
    said = "What each site became"
    rows = [(name, site.lowering, site.reason or "") for name, site in lowering.sites.items()]
    return opened_by(said, value_table(said, ("site", "written as", "reason"), rows))


def _definitions(facts: Facts) -> Element:
    return definitions(
        (key.replace("_", " "), _plain(value))
        for key, value in facts.items()
        if value not in (None, [], {}, "")
    )


def _plain(value: object) -> str:
    """A JSON value as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        given = {key: each for key, each in value.items() if each is not None}
        return ", ".join(
            f"{str(key).replace('_', ' ')} {_plain(each)}" for key, each in given.items()
        )
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(each) for each in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else f"{value:,}"


def _list(style: str, items: Sequence[str]) -> Element | None:
    if not items:
        return None
    return element(
        "ul",
        {"class": style},
        [element("li", None, element("bdi", None, str(each))) for each in items],
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
