"""Choosing a lowering for every site by measurement: one race a site, then the model as a whole.

A site's race takes place in a cut-out with its surroundings. Choices interact through the layout of
the tensors between sites, which no cut-out sees, so that the chosen whole is then raced against the
model as it is, all dense, and each lowering throughout, and sites are changed where the whole gains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import ModelError, with_flags
from onnx_igpc.graph.inputs import model_inputs, resolve_shapes
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.graph.shape_inference import ShapeTracer
from onnx_igpc.lowering.cache import RaceCache
from onnx_igpc.lowering.catalogue import applicable, lower, site_opset
from onnx_igpc.lowering.cut_out import Surroundings, UnknownShapeError, cut_out
from onnx_igpc.lowering.options import FLOAT32, INT8, LITERAL, Precision
from onnx_igpc.lowering.race import as_run, race_key, race_models, race_site
from onnx_igpc.runtime.racing import Interval, speedup
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.sites.subgraph import IgpcSubgraph, find_subgraphs

DENSE = "dense"
# Times that differ by less are equal: then dense, which keeps the layer whole, goes before the
# literal form, and that before the others.
TIE = 1.02
# To quantize a whole model takes seconds: so many lowerings are tried throughout.
_WHOLES_AT_MOST = 3
# Sessions hold their weights, often twice: of larger models, fewer are raced together.
_BYTES_AT_ONCE = 2**30

Choices = dict[str, str]


@dataclass
class SiteRace:
    """The race of one site: median seconds of its cut-out by lowering.

    ``key`` is equal for sites that shared the race. ``reason`` says why there was none.
    """

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    key: str = ""
    reason: str | None = None

    def best(self, allow_slower: bool) -> str:
        """The lowering to take: the fastest, and dense or literal where they are as fast."""
        if not self.seconds:
            return LITERAL
        racers = {n: s for n, s in self.seconds.items() if not (allow_slower and n == DENSE)}
        fastest = min(racers, key=lambda name: racers[name])
        for simple in (DENSE, LITERAL):
            if simple in racers and racers[simple] <= TIE * racers[fastest]:
                return simple
        return fastest


def race_sites(
    model: OpenModel,
    setting: Setting,
    cache: RaceCache,
    progress: Progress | None = None,
    precision: Precision = FLOAT32,
) -> list[SiteRace]:
    """Race every site of the model; raises as :func:`~onnx_igpc.lowering.race.race_models`.

    ``model`` is not changed. Sites that cannot be raced have a reason instead of seconds.
    """
    surroundings, found = surroundings_of(model, setting)
    unknown = find_subgraphs(model)[1]
    races = [SiteRace(name, reason=f"not recognised: {why}") for name, why in unknown]
    for done, site in enumerate(found):
        if progress is not None:
            progress(done, len(found), f"racing {site.name}")
        races.append(_race(surroundings, site, setting, cache, precision))
    return races


def surroundings_of(model: OpenModel, setting: Setting) -> tuple[Surroundings, list[IgpcSubgraph]]:
    """What surrounds the sites of the model at the setting's sizes, and the sites.

    Raises:
        UsageError: shapes that do not fit the model.
        ModelError: an input that is not a tensor of numbers.
    """
    found, _ = find_subgraphs(model)
    shapes = resolve_shapes(model_inputs(model.proto), setting.batch, setting.shapes)
    return Surroundings.of(model, ShapeTracer(model, shapes).trace(), found), found


def contenders_of(
    surroundings: Surroundings, site: IgpcSubgraph
) -> tuple[dict[str, OpenModel], dict[str, str]]:
    """The site's cut-out in every lowering that it can take, and why it cannot take the others.

    Raises:
        UnknownShapeError: as :func:`~onnx_igpc.lowering.cut_out.cut_out`.
    """
    cut = cut_out(surroundings, site)
    contenders: dict[str, OpenModel] = {}
    refused: dict[str, str] = {}
    for label, refusal in applicable(site, site_opset(surroundings.opened, site)).items():
        if refusal is not None:
            refused[label] = refusal
            continue
        contenders[label] = snapshot(cut)
        lower(contenders[label], {site.name: label})
    return contenders, refused


def _race(
    surroundings: Surroundings,
    site: IgpcSubgraph,
    setting: Setting,
    cache: RaceCache,
    precision: Precision,
) -> SiteRace:
    try:
        contenders, refused = contenders_of(surroundings, site)
    except UnknownShapeError as reason:
        return SiteRace(site.name, reason=f"not raced: {reason}")
    race = SiteRace(site.name, refused=refused, key=race_key(contenders, setting, precision))
    try:
        race.seconds = race_site(contenders, setting, cache, precision)
    except ModelError as reason:
        race.reason = with_flags(f"not raced: {reason}")
    return race


def lowered(model: OpenModel, choices: Mapping[str, str]) -> OpenModel:
    """A copy of the model with the choices written."""
    copy = snapshot(model)
    lower(copy, {name: label for name, label in choices.items() if label != LITERAL})
    return copy


@dataclass
class WholeRace:
    """Seconds of one run of the whole model by name of the variant, all raced together.

    ``ratio`` is how many times faster ``chosen`` is than each of the others.
    """

    seconds: dict[str, float]
    ratio: dict[str, Interval]


def race_whole(
    variants: Mapping[str, OpenModel], setting: Setting, rounds: int, chosen: str
) -> WholeRace:
    """Race whole models against each other; ``chosen`` is one of the variants."""
    names = list(variants)
    seconds = race_models([variants[name] for name in names], setting, rounds)
    own = seconds[:, names.index(chosen)]
    ratio = {name: speedup(seconds[:, i], own) for i, name in enumerate(names) if name != chosen}
    medians = np.median(seconds, axis=0)
    return WholeRace(dict(zip(names, map(float, medians), strict=True)), ratio)


def uniform_choices(sites: Iterable[IgpcSubgraph], label: str) -> Choices:
    """``label`` for every one of the sites, all of which can take it."""
    return {site.name: label for site in sites}


def uniform(races: Iterable[SiteRace], label: str) -> Choices:
    """``label`` for every site that can take it, and the literal form for the others."""
    return {
        race.name: label if label in race.seconds else LITERAL for race in races if race.seconds
    }


@dataclass
class Improver:
    """Improves choices by racing whole models until nothing is gained or time is over."""

    model: OpenModel
    races: list[SiteRace]
    setting: Setting
    allow_slower: bool
    seconds: float
    progress: Progress | None = None
    precision: Precision = FLOAT32
    rounds: int = 11
    notes: list[str] = field(default_factory=list)
    best: tuple[Choices, OpenModel] | None = None
    """The fastest so far, as it was raced: to quantize a whole model takes seconds."""

    def run(self, choices: Choices) -> Choices:
        """The best choices found, beginning with the best of ``choices`` and uniform ones."""
        clock = self.setting.clock
        end = clock() + self.seconds
        current = self._start(choices)
        classes = self._classes()
        for done, (names, labels) in enumerate(classes):
            if clock() > end:
                self.notes.append(
                    f"{len(classes) - done} of {len(classes)} groups of equal sites were not tried "
                    "in the whole model: the time for it was over"
                )
                break
            self._say(done, len(classes), "comparing whole models")
            current = self._improve(current, names, labels)
        return current

    def _start(self, choices: Choices) -> Choices:
        labels = self._throughout()
        options = [choices, *(uniform(self.races, label) for label in labels)]
        distinct = [each for i, each in enumerate(options) if each not in options[:i]]
        self._say(0, 0, "comparing whole models")
        return distinct[self._fastest(distinct)]

    def _throughout(self) -> list[str]:
        """Lowerings to try at every site; of int8 forms those that the sites' races promise most of."""
        labels = list(dict.fromkeys(label for race in self.races for label in race.seconds))
        if self.allow_slower and DENSE in labels:
            labels.remove(DENSE)
        if self.precision == INT8:
            labels.sort(key=self._promised)
            del labels[_WHOLES_AT_MOST:]
        return labels

    def _promised(self, label: str) -> float:
        """Seconds of all sites with one lowering, where they can take it."""
        choices = uniform(self.races, label)
        return sum(race.seconds[choices[race.name]] for race in self.races if race.seconds)

    def _classes(self) -> list[tuple[list[str], list[str]]]:
        """Sites that shared a race, with the lowerings worth trying; those with most time first."""
        by_key: dict[str, list[SiteRace]] = {}
        for race in self.races:
            if race.seconds:
                by_key.setdefault(race.key, []).append(race)
        groups = sorted(
            by_key.values(), key=lambda group: -len(group) * min(group[0].seconds.values())
        )
        return [([race.name for race in group], self._worth(group[0])) for group in groups]

    def _worth(self, race: SiteRace) -> list[str]:
        """The three fastest in the cut-out; what is slower there by half is not tried."""
        ordered = sorted(race.seconds, key=lambda label: race.seconds[label])
        if self.allow_slower:
            ordered = [label for label in ordered if label != DENSE]
        least = race.seconds[ordered[0]]
        return [label for label in ordered if race.seconds[label] <= 1.5 * least][:3]

    def _improve(self, current: Choices, names: list[str], labels: list[str]) -> Choices:
        options = [current]
        for label in labels:
            changed = {**current, **dict.fromkeys(names, label)}
            if changed not in options:
                options.append(changed)
        return options[self._fastest(options)]

    def _fastest(self, options: list[Choices]) -> int:
        """The index of the fastest: the first, unless another is faster beyond noise."""
        best, rest = 0, list(range(1, len(options)))
        room = max(1, _BYTES_AT_ONCE // (2 * self.model.total_bytes()))
        while rest:
            now, rest = [best, *rest[:room]], rest[room:]
            models = [self._raced(options[index]) for index in now]
            seconds = race_models(models, self.setting, self.rounds)
            self.best = options[best], models[0]
            for place in np.argsort(np.median(seconds, axis=0)):
                if speedup(seconds[:, 0], seconds[:, place]).low > 1.0:
                    best = now[int(place)]
                    self.best = options[best], models[int(place)]
                    break
        return best

    def _raced(self, choices: Choices) -> OpenModel:
        """The model with the choices written, in the form in which it will run."""
        if self.best is not None and self.best[0] == choices:
            return self.best[1]
        return as_run(lowered(self.model, choices), self.setting, self.precision)

    def _say(self, done: int, total: int, what: str) -> None:
        if self.progress is not None:
            self.progress(done, total, what)
