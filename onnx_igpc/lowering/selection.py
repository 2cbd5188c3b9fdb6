"""The lowering of every site of a model, chosen by measurement, and the figures that speak for it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import astuple, dataclass, field
from pathlib import Path

from onnx_igpc.data.progress import Progress
from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.cache import RaceCache, read_seconds
from onnx_igpc.lowering.options import FLOAT32, INT8, LITERAL, Precision
from onnx_igpc.lowering.race import as_run, environment, structure
from onnx_igpc.lowering.site_races import (
    DENSE,
    Choices,
    Improver,
    SiteRace,
    WholeRace,
    lowered,
    race_sites,
    race_whole,
    uniform,
)
from onnx_igpc.report.sections import LoweringReport, RacesReport, SiteLowering, WholeModelReport
from onnx_igpc.runtime.profile import misplaced_message, read_profile
from onnx_igpc.runtime.racing import Interval
from onnx_igpc.runtime.session import (
    import_onnxruntime,
    make_session,
    provider_label,
    provider_name,
    run_session,
)
from onnx_igpc.runtime.setting import Setting, device_name

IMPROVE_SECONDS = 40.0
"""How long whole models are compared at most."""
FINAL_ROUNDS = 21
CHOSEN = "chosen"


@dataclass
class Selection:
    """What was chosen: a lowering by site, the races, and the whole model's times.

    ``whole`` has the seconds of ``literal``, ``dense`` and ``chosen``; ``predicted`` is what the races
    of the sites say of ``chosen``, starting from the measured literal form. ``notes`` says what a
    reader must know. All times are of models in ``precision``.
    """

    setting: Setting
    allow_slower: bool
    choices: Choices
    races: list[SiteRace]
    whole: WholeRace | None = None
    predicted: float | None = None
    notes: list[str] = field(default_factory=list)
    precision: Precision = FLOAT32

    def reason(self, name: str) -> str | None:
        """Why a site has the lowering that it has, where there is more to say than its times."""
        if self.choices.get(name) == DENSE:
            return slower_reason(self.setting, self.precision)
        return next((race.reason for race in self.races if race.name == name), None)

    def described(self, cache: RaceCache) -> LoweringReport:
        """For the report: everything that was measured."""
        sites = {
            race.name: SiteLowering(
                lowering=self.choices.get(race.name, LITERAL),
                reason=self.reason(race.name),
                seconds=dict(race.seconds),
            )
            for race in self.races
        }
        said = describe_lowering("auto", self.setting, sites, self.precision)
        said.allow_slower, said.notes = self.allow_slower, list(self.notes)
        said.onnxruntime = import_onnxruntime().__version__
        said.device = device_name(self.setting.provider)
        if self.whole is not None:
            said.model = WholeModelReport(
                seconds=dict(self.whole.seconds),
                predicted=self.predicted,
                speedup={n: (r.value, r.low, r.high) for n, r in self.whole.ratio.items()},
            )
        said.races = RacesReport(measured=cache.misses, reused=cache.hits)
        return said


def describe_lowering(
    mode: str,
    setting: Setting,
    sites: dict[str, SiteLowering],
    precision: Precision = FLOAT32,
) -> LoweringReport:
    """What the report says of a lowering at a setting, before anything is measured."""
    return LoweringReport(
        mode=mode,
        provider=provider_label(provider_name(setting.provider)),
        threads=setting.threads,
        batch=setting.batch,
        shapes={name: list(shape) for name, shape in setting.shapes.items()},
        precision=None if precision == FLOAT32 else precision,
        sites=sites,
    )


def slower_reason(setting: Setting, precision: Precision = FLOAT32) -> str:
    """Why a site is dense after all."""
    return f"slower {'in int8 ' if precision == INT8 else ''}on {setting.label}"


def check_provider_runs(model: OpenModel, setting: Setting) -> str | None:
    """Make sure that the provider is there and runs the model, before anything is measured.

    Returns what to say where another provider runs a part of the arithmetic.

    Raises:
        CheckFailedError, UsageError: as :func:`onnx_igpc.runtime.session.make_session`, or the provider ran
            none of the nodes.
        ModelError: the model cannot be loaded or cannot run at the setting's sizes.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-igpc-", ignore_cleanup_errors=True) as folder:
        prefix = Path(folder) / "profile"
        session = make_session(model, setting.provider, threads=setting.threads, profile=prefix)
        specs = model_inputs(model.proto)
        run_session(session, random_inputs(specs, batch=setting.batch, shapes=setting.shapes))
        profile = read_profile(session.end_profiling())
    if not profile.ran_on(setting.provider):
        label = provider_label(provider_name(setting.provider))
        raise CheckFailedError(f"{label} ran none of the nodes; {profile.describe()}")
    misplaced = profile.misplaced(setting.provider)
    return misplaced_message(misplaced, setting.provider) if misplaced else None


def select(
    model: OpenModel,
    setting: Setting,
    cache: RaceCache,
    *,
    allow_slower: bool = False,
    precision: Precision = FLOAT32,
    seconds: float = IMPROVE_SECONDS,
    progress: Progress | None = None,
) -> Selection:
    """Choose a lowering for every site of ``model``, which is not changed.

    BatchNormalization should be folded already. ``allow_slower`` never leaves a site dense.
    ``precision``: in which the model will run, and everything is raced.
    ``seconds`` bounds the comparison of whole models.

    Raises:
        CheckFailedError: the provider is missing or fell back to another one.
        UsageError: shapes that do not fit, or an unknown provider.
        ModelError: the model cannot be run, or not be quantized.
    """
    elsewhere = check_provider_runs(model, setting)
    races = race_sites(model, setting, cache, progress, precision)
    choices = {race.name: race.best(allow_slower) for race in races if race.seconds}
    selection = Selection(setting, allow_slower, choices, races, precision=precision)
    key = _key(model, selection)
    if choices and not _recall(selection, cache, key):
        improver = Improver(model, races, setting, allow_slower, seconds, progress, precision)
        selection.choices = improver.run(choices)
        selection.notes += improver.notes
        _final(model, selection, progress)
        _keep(selection, cache, key)
    selection.notes += [note for note in (elsewhere, cache.note) if note]
    return selection


def _key(model: OpenModel, selection: Selection) -> str:
    """Equal for models of one structure whose sites had the same races at the same setting."""
    setting = selection.setting
    facts = [
        environment(setting, selection.precision),
        [setting.batch, {name: list(shape) for name, shape in setting.shapes.items()}],
        selection.allow_slower,
        structure(model.proto),
        [race.key for race in selection.races],
    ]
    return f"whole {hashlib.sha256(json.dumps(facts).encode()).hexdigest()}"


def _keep(selection: Selection, cache: RaceCache, key: str) -> None:
    assert selection.whole is not None
    measured = {
        "choices": [selection.choices.get(race.name) for race in selection.races],
        "seconds": selection.whole.seconds,
        "ratio": {name: astuple(each) for name, each in selection.whole.ratio.items()},
        "predicted": selection.predicted,
        "notes": selection.notes,
    }
    cache.put(key, measured)


def _recall(selection: Selection, cache: RaceCache, key: str) -> bool:
    """Take what was chosen and measured before for such a model; whether there was anything."""
    known = cache.get(key)
    if known is None:
        return False
    try:
        pairs = list(zip(selection.races, known["choices"], strict=True))
        fits = all(label in race.seconds for race, label in pairs if race.seconds)
        seconds = read_seconds(known["seconds"], [LITERAL, DENSE, CHOSEN])
        ratio = {str(name): Interval(*map(float, each)) for name, each in known["ratio"].items()}
        predicted, notes = float(known["predicted"]), [str(note) for note in known["notes"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        fits, seconds = False, None
    if not fits or seconds is None:
        cache.damaged(key)
        return False
    selection.choices = {race.name: label for race, label in pairs if race.seconds}
    selection.whole, selection.predicted = WholeRace(seconds, ratio), predicted
    selection.notes += notes
    return True


def _final(model: OpenModel, selection: Selection, progress: Progress | None) -> None:
    """Race the chosen whole against literal and dense; take the better of those if it is slower."""
    if progress is not None:
        progress(0, 0, "racing the whole model")
    plain = {LITERAL: uniform(selection.races, LITERAL), DENSE: uniform(selection.races, DENSE)}
    variants = {
        name: as_run(lowered(model, choices), selection.setting, selection.precision)
        for name, choices in {**plain, CHOSEN: selection.choices}.items()
    }
    whole = race_whole(variants, selection.setting, FINAL_ROUNDS, CHOSEN)
    rivals = [LITERAL] if selection.allow_slower else [LITERAL, DENSE]
    better = [name for name in rivals if whole.ratio[name].high < 1.0]
    if better:
        taken = min(better, key=lambda name: whole.seconds[name])
        selection.choices = plain[taken]
        selection.notes.append(
            f"the sites' races promised more than the whole model kept: all are {taken}"
        )
        variants[CHOSEN] = variants[taken]
        whole = race_whole(variants, selection.setting, FINAL_ROUNDS, CHOSEN)
    selection.whole = whole
    selection.predicted = whole.seconds[LITERAL] + sum(
        race.seconds[selection.choices[race.name]] - race.seconds[LITERAL]
        for race in selection.races
        if race.seconds
    )
