"""How small: a published scheme throughout, or a budget from which every site gets its layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import PathLike
from onnx_igpc.layout.schemes import SCHEMES, Scheme
from onnx_igpc.planning.grouping import Grouping
from onnx_igpc.planning.knapsack import TARGETS, Target
from onnx_igpc.planning.promise import Promise
from onnx_igpc.sites.rewrite import Form

DEFAULT_CH = 16
Family = Literal["published", "extended"]
Init = Literal["fitted", "random"]
Allowed = Literal["auto", "keep", "only"]
# What a model is counted in without some of its residual blocks or channels.
_OF_ALL = ("latency", "macs")


@dataclass(frozen=True)
class Published:
    """The published layout for every site.

    Args:
        channels_per_group: the schemes' hyper-parameter ``ch``.
        scheme: ``"v2"`` (without divisibility constraints) or ``"v1"`` (with).
        form: ``"linear"`` replaces only the convolution and can be fitted to its weight;
            ``"paper"`` has BatchNorm and activation after K and after L, for training from scratch.
        init: ``"fitted"`` or ``"random"``; fitted in the linear form if ``None``, random in the
            paper's, which cannot be fitted.
        seed: for random weights.
        grouping: ``"learned"`` puts channels that belong together into one group, where that fits
            better on calibration data; ``"contiguous"`` leaves them in order.

    Raises:
        UsageError: a value that cannot be used, or fitted weights in the paper's form.
    """

    channels_per_group: int = DEFAULT_CH
    scheme: Scheme = "v2"
    form: Form = "linear"
    init: Init | None = None
    seed: int = 0
    grouping: Grouping = "contiguous"

    def __post_init__(self) -> None:
        if self.channels_per_group < 1:
            raise UsageError(
                f"`channels_per_group` must be at least 1, not {self.channels_per_group}"
            )
        _one_of("`scheme`", self.scheme, SCHEMES)
        _one_of("`form`", self.form, ("linear", "paper"))
        _one_of("`init`", self.init, ("fitted", "random", None))
        _one_of("`grouping`", self.grouping, ("learned", "contiguous"))
        if self.form == "paper" and self.init == "fitted":
            raise UsageError(
                "the paper's form cannot be fitted to the dense weights: "
                "use the linear form, or leave out `init` fitted"
            )

    @property
    def random(self) -> bool:
        """Whether the weights are random."""
        return self.init == "random" or self.form == "paper"


@dataclass(frozen=True)
class Budget:
    """The layout for every site with which the predicted damage of the whole is least.

    Args:
        target: as ``"pointwise-parameters=40%"``; see :data:`~onnx_igpc.planning.knapsack.TARGETS`.
            ``"latency=60%"`` is measured where the model will run.
        family: what it chooses from: ``"extended"`` or ``"published"``.
        grouping: as in :class:`Published`.
        sensitivity: a file of measurements to reuse.
        save_sensitivity: where to write the measurements.
        blocks: whether whole residual blocks may be replaced by one pointwise convolution each, for a target of
            latency or of all MACs: ``"auto"`` where that does less damage, ``"keep"`` never, ``"only"`` nothing
            but that.
        channels: whether channels between two convolutions may be left out, for such a target; as ``blocks``.

    Raises:
        UsageError: a value that cannot be used.
    """

    target: str
    family: Family = "extended"
    grouping: Grouping = "learned"
    sensitivity: PathLike | None = None
    save_sensitivity: PathLike | None = None
    blocks: Allowed = "auto"
    channels: Allowed = "auto"

    def __post_init__(self) -> None:
        Target.parse(self.target)
        _one_of("`family`", self.family, ("published", "extended"))
        _one_of("`grouping`", self.grouping, ("learned", "contiguous"))
        _check_allowed("blocks", self.blocks, "`target`", self.quantity)
        _check_allowed("channels", self.channels, "`target`", self.quantity)
        if self.blocks == self.channels == "only":
            raise UsageError(
                "`blocks` only and `channels` only exclude each other: give one of them"
            )

    @property
    def quantity(self) -> Target:
        """The target, read."""
        return Target.parse(self.target)

    @property
    def collapses(self) -> bool:
        """Whether residual blocks may be collapsed, and can help: they are more than pointwise convolutions."""
        return self.channels != "only" and _can_help(self.blocks, self.quantity)

    @property
    def narrows(self) -> bool:
        """Whether channels between convolutions may be left out, and can help."""
        return self.blocks != "only" and _can_help(self.channels, self.quantity)

    @property
    def restructures_only(self) -> bool:
        """Whether no site may be rewritten."""
        return "only" in (self.blocks, self.channels)


@dataclass(frozen=True)
class Keep:
    """The least that keeps a promise on held-out data.

    Args:
        promise: ``"agreement=95%"``: the share of samples with the same highest score, at the lower end
            of its 95 % interval; ``"output=0.05"``: at most so much relative error of the outputs;
            ``"accuracy=-1"``: with labelled data, so many points of top-1 accuracy at most are lost, at
            the lower end as well.
        minimize: what is made least, one of :data:`~onnx_igpc.planning.knapsack.TARGETS`.
        family: as in :class:`Budget`, as for ``grouping``, ``sensitivity``, ``save_sensitivity`` and ``blocks``;
            of MACs, blocks are collapsed only if it is ``"only"``.

    Raises:
        UsageError: a value that cannot be used.
    """

    promise: str
    minimize: str = "pointwise-parameters"
    family: Family = "extended"
    grouping: Grouping = "learned"
    sensitivity: PathLike | None = None
    save_sensitivity: PathLike | None = None
    blocks: Allowed = "auto"

    def __post_init__(self) -> None:
        Promise.parse(self.promise)
        _one_of("`minimize`", self.minimize, TARGETS)
        _one_of("`family`", self.family, ("published", "extended"))
        _one_of("`grouping`", self.grouping, ("learned", "contiguous"))
        _check_allowed("blocks", self.blocks, "`minimize`", self.quantity)

    @property
    def collapses(self) -> bool:
        """Whether residual blocks are collapsed, before anything else is tried."""
        return _can_help(self.blocks, self.quantity) and (
            self.quantity.is_latency or self.blocks == "only"
        )

    @property
    def kept(self) -> Promise:
        """The promise, read."""
        return Promise.parse(self.promise)

    @property
    def quantity(self) -> Target:
        """What is made least, all of it."""
        return Target(self.minimize, 1.0)


def _can_help(allowed: Allowed, quantity: Target) -> bool:
    return allowed != "keep" and quantity.quantity in _OF_ALL


def _check_allowed(what: str, allowed: Allowed, option: str, quantity: Target) -> None:
    _one_of(f"`{what}`", allowed, ("auto", "keep", "only"))
    if allowed == "only" and not _can_help(allowed, quantity):
        raise UsageError(
            f"`{what}` only is for {option} {' or '.join(_OF_ALL)}, not {quantity.quantity}"
        )


def _one_of(option: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        names = ", ".join(str(each) for each in known if each is not None)
        raise UsageError(f"{option} must be one of {names}, not {value!r}")
