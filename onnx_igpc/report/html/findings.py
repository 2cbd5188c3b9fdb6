"""What a verification found, and how the model was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_igpc.report.html.charts import opened_by, value_table
from onnx_igpc.report.html.elements import Child, Element, element
from onnx_igpc.report.numbers import exact
from onnx_igpc.report.tree import RewriteReport, lowered_sites


def verification(verified: Mapping[str, Any] | None) -> list[Child]:
    """Whether it passed, every output's difference, and where the nodes ran."""
    if not verified:
        return []
    failures = verified.get("failures") or ()
    samples = exact(verified.get("samples"))
    on = "random inputs" if verified.get("random") else f"{samples} samples"
    made: list[Child] = [
        element(
            "p",
            None,
            f"Both models ran on {on}; {'what was asked for did not hold.' if failures else 'nothing that was asked for failed.'}",
        )
    ]
    if failures:
        made.append(_list("warnings", failures))
    if verified.get("random"):
        made.append(
            element("p", {"class": "note"}, "On random inputs agreement says little: give --data.")
        )
    rows = [
        (
            str(each["name"]),
            f"{each['max_abs']:.3g}",
            f"{each['mean_abs']:.3g}",
            _number(each.get("relative"), ".3g"),
            _number(each.get("relative_norm"), ".3g"),
            _number(each.get("cosine"), ".6f"),
        )
        for each in verified.get("outputs") or ()
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
    executed = (verified.get("executed") or {}).items()
    made.append(_list("plain", [f"{role}: {text}" for role, text in executed]))
    return made


def machine(benchmark: Mapping[str, Any] | None) -> list[Child]:
    """On what the races were run, and the models' sizes and memory."""
    if not benchmark:
        return []
    facts = []
    for model in benchmark.get("models") or ():
        footprint = model.get("footprint") or {}
        parts = [f"{exact(model.get('file_bytes'))} bytes"]
        if footprint.get("load_seconds") is not None:
            parts.append(f"loads in {1000 * footprint['load_seconds']:.0f} ms")
        if footprint.get("peak_bytes") is not None:
            parts.append(f"peak memory {footprint['peak_bytes'] / 2**20:.0f} MiB")
        facts.append(f"{model['path']}: {', '.join([*parts, str(model.get('executed', ''))])}")
        facts += [str(note) for note in model.get("notes") or ()]
    text = (
        f"onnxruntime {benchmark['onnxruntime']}, {benchmark['provider']}, {benchmark['machine']}; "
        f"{benchmark['rounds']} rounds in which the models take turns; inputs: {benchmark['inputs']}."
    )
    return [element("p", None, text), _list("plain", facts)]


def making(report: RewriteReport) -> list[Child]:
    """Options, data, checks, notes and what was changed beside the sites."""
    parts: list[Child] = []
    for title, facts in (
        ("Options", report.options),
        ("Calibration", report.calibration),
        ("Preprocessing", report.preprocessing),
        ("Fine-tuning", _training(report.finetune)),
        ("Lowering", _lowering(report.lowering)),
        ("Checks", report.checks),
    ):
        if facts:
            parts += [element("h3", None, title), _definitions(facts)]
        if title == "Lowering" and report.lowering:
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


def _training(finetune: Mapping[str, Any] | None) -> dict[str, Any]:
    """The facts of a run without its curves, which are drawn."""
    left = {"epochs", "val_before", "damage_before", "matched_sites"}
    facts = {key: value for key, value in (finetune or {}).items() if key not in left}
    recipe = facts.pop("recipe", None)
    return {**facts, **(recipe if isinstance(recipe, Mapping) else {})}


def _lowering(lowering: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where it was measured, how many sites became what, and the times of whole models."""
    if not lowering:
        return {}
    counts = Counter(label for _, label, _ in lowered_sites(lowering))
    facts = {
        key: value
        for key, value in lowering.items()
        if key not in ("sites", "model", "races", "notes") and value is not None
    }
    facts["sites"] = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    if lowering.get("model"):
        times = lowering["model"]["seconds"].items()
        facts["whole model, ms"] = ", ".join(f"{name} {1000 * each:.4g}" for name, each in times)
    return facts


def _sites_lowered(lowering: Mapping[str, Any]) -> Element:
    said = "What each site became"
    rows = lowered_sites(lowering)
    return opened_by(said, value_table(said, ("site", "written as", "reason"), rows))


def _definitions(facts: Mapping[str, Any]) -> Element:
    return element(
        "dl",
        {"class": "facts"},
        [
            element(
                "div",
                None,
                element("dt", None, str(key).replace("_", " ")),
                element("dd", None, _plain(value)),
            )
            for key, value in facts.items()
            if value not in (None, [], {}, "")
        ],
    )


def _plain(value: Any) -> str:
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
