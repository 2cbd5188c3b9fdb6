"""The arms: every way of making the baseline small, at equal pointwise parameters.

* ``budget``: the product's default, the extended family under a budget, fitted to calibration images.
* ``svd``: activation-weighted low rank, fitted in sequence to the same images, with the weights that the
  budget left in each layer.
* ``v2``: published V2, fitted to the same images; ``v2-random``: the same layers with random weights.
* ``paper``: the published form (BatchNorm and activation after K and after L), the whole network
  from random weights.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import onnx

import onnx_igpc
from benchmarks.accuracy import Bench
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import load_model, save_model
from onnx_igpc.report.digest import read_digest
from onnx_igpc.torch_bridge.training.recipe import Recipe

METHODS = ("budget", "svd", "v2", "v2-random", "paper")
MATCHINGS = ("features", "logits")
SHARES = (25, 12)
SAMPLES = 512


@dataclass(frozen=True)
class Arm:
    """One method at one share of the pointwise parameters (in per cent), and how it is trained.

    matching: ``features`` matches the output of every rewritten site to the teacher's, ``logits`` the class
    scores alone. changes: other values than the recipe of the arms has, by the names of its fields.
    """

    method: str
    share: int
    matching: str
    seed: int = 0
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def plain_name(self) -> str:
        """The name without the changes, which is what ``--arm`` matches."""
        return f"{self.method}-{self.share}-{self.matching}-{self.seed}"

    @property
    def name(self) -> str:
        return self.plain_name + "".join(f"+{key}={value}" for key, value in self.changes)

    @property
    def trained_on(self) -> str:
        """What it is trained on, and how otherwise than the other arms, in words."""
        return ", ".join([self.matching, *(f"{key} {value}" for key, value in self.changes)])

    def recipe(self, common: Recipe) -> Recipe:
        """The recipe of this arm.

        Raises:
            UsageError: the recipe has no such field, or not with such a value.
        """
        known = {each.name for each in fields(Recipe)}
        if unknown := [key for key, _ in self.changes if key not in known]:
            raise UsageError(f"no field {unknown[0]!r} in a recipe: {', '.join(sorted(known))}")
        matched = {} if self.matching == "features" else {"feature_loss": 0.0}
        return replace(common, **{"seed": self.seed, **matched, **dict(self.changes)})

    @property
    def model_name(self) -> str:
        """Arms that are trained from the same model share this name."""
        seed = f"-{self.seed}" if self.method in ("v2-random", "paper") else ""
        return f"{self.method}-{self.share}{seed}"


def all_arms(seeds: int = 1, changes: tuple[tuple[str, Any], ...] = ()) -> list[Arm]:
    """Every arm, the most telling first; ``changes`` are those of all of them."""
    found = []
    for seed in range(seeds):
        for share in SHARES:
            pairs = [(method, "features") for method in METHODS[:4]]
            pairs += [(method, "logits") for method in METHODS]
            found += [Arm(method, share, matching, seed, changes) for method, matching in pairs]
    return found


class Compressor:
    """Makes the models that the arms begin with, in ``folder``; those that are there are kept."""

    def __init__(
        self,
        baseline: Path,
        untrained: onnx.ModelProto,
        calibration: Path,
        test: Path,
        folder: Path,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._baseline, self._untrained = baseline, untrained
        self._calibration, self._folder = calibration, folder
        self._bench = Bench(baseline, calibration, test, None, SAMPLES, folder)

    def model(self, arm: Arm) -> Path:
        """The compressed model of an arm.

        Raises:
            UsageError: an unknown method.
        """
        target = self._folder / f"{arm.model_name}.onnx"
        if not target.is_file():
            self._make(arm, target)
        return target

    def _make(self, arm: Arm, target: Path) -> None:
        share = arm.share / 100
        if arm.method == "budget":
            self._compress(target, onnx_igpc.Budget(f"pointwise-parameters={arm.share}%"))
        elif arm.method == "svd":
            budget = left_per_site(self.model(Arm("budget", arm.share, arm.matching)))
            # Bench always writes the same file: a folder of its own lets processes run side by side.
            self._bench.folder = self._folder / f"{target.name}.work"
            self._bench.folder.mkdir(exist_ok=True)
            path, _ = self._bench.planned(lambda site: self._bench.svd(budget, site), True)
            path.rename(target)
            shutil.rmtree(self._bench.folder)
        elif arm.method == "v2":
            self._compress(target, onnx_igpc.Published(self._bench.channels_for(share)))
        elif arm.method == "v2-random":
            result = onnx_igpc.compress(
                self._baseline,
                onnx_igpc.Published(self._bench.channels_for(share), init="random", seed=arm.seed),
            )
            result.save(target)
        elif arm.method == "paper":
            result = onnx_igpc.compress(
                self._untrained,
                onnx_igpc.Published(self._bench.channels_for(share), form="paper", seed=arm.seed),
            )
            result.save(target)
        else:
            raise UsageError(f"unknown method {arm.method!r}: choose from {', '.join(METHODS)}")

    def _compress(self, path: Path, plan: onnx_igpc.Published | onnx_igpc.Budget) -> None:
        calibration = onnx_igpc.Calibration(self._calibration, samples=SAMPLES)
        result = onnx_igpc.compress(self._baseline, plan, calibration=calibration)
        save_model(result.opened, path)


def left_per_site(path: Path) -> dict[str, int]:
    """The weights that a compressed model has in the place of each pointwise convolution."""
    digest = read_digest(load_model(path))
    assert digest is not None
    left = {s.name: (s.in_channels or 0) * (s.out_channels or 0) for s in digest.sites}
    for site in digest.rewritten:
        left[site.name] = sum(stage.weights for stage in (site.k, site.l) if stage)
    return left


def pointwise_parameters(model: onnx.ModelProto) -> int:
    """Weights of all 1x1 convolutions of the graph as it is, grouped or not; biases are not counted."""
    shapes = {t.name: list(t.dims) for t in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        weight = shapes.get(node.input[1], []) if node.op_type == "Conv" else []
        if len(weight) > 2 and set(weight[2:]) == {1}:
            total += math.prod(weight)
    return total
