"""The recipe of a fine-tuning run: everything that decides what comes out of it, and its defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnx_igpc.errors import UsageError, texts

BASES = ("few", "some", "many")
FEATURES = ("sites", "penultimate")
LOSSES = ("kd", "kd+ce", "ce", "mse")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("bf16", "fp16")
INT8 = "int8"
MODES = ("train", "frozen")
"""Of BatchNormalization's statistics, and of the front of a model."""

LEARNING_RATES = {"adamw": 1e-2, "sgd": 5e-2}
"""First choice of the learning rate. That of AdamW is relative, see :mod:`onnx_igpc.torch_bridge.training.optimizers`."""

MOST_FEW = 1200
"""Up to so many training samples are ``few``, or ``some``."""
FEWEST_SOME = 400
MUCH_LOST = 0.4
"""From so many samples on, and from so large a divergence that compress measured, in nats, ``some``."""


@dataclass(frozen=True)
class Defaults:
    """What a recipe takes where it is left open, besides what follows from the form of the model.

    steps: of a run, between these two, and so many as ``per_sample`` says between them; the bounds of ``epochs``
    count before that. rate: part of ``LEARNING_RATES``. interpolation, front: in float32. changed: no sample is seen
    as it is, but cropped, mirrored and mixed, where a teacher sees the same. again: views come again.
    """

    steps: tuple[int, int]
    per_sample: float
    epochs: tuple[int, int]
    batch_size: int
    rate: float
    batch_norm: str
    features: str
    interpolation: float = 1.0
    front: str = "frozen"
    changed: bool = True
    again: bool = True


# Few samples: the end of a long run at a small rate counts, on the way there it is worse than its start.
# Everything that could learn the samples by heart stays: statistics, and the layer that makes the scores.
DEFAULTS = {
    "few": Defaults(
        steps=(700, 1400),
        per_sample=1.3,
        epochs=(1, 200),
        batch_size=32,
        rate=0.2,
        batch_norm="frozen",
        features="penultimate",
        # What is learned last is of these samples alone.
        interpolation=0.75,
    ),
    # Where much is lost already there is little to spoil: what large steps ruin is soon made up for.
    "some": Defaults(
        steps=(2000, 2400),
        per_sample=1.9,
        epochs=(1, 200),
        batch_size=64,
        rate=1.0,
        batch_norm="train",
        features="sites",
    ),
    "many": Defaults(
        steps=(500, 500),
        per_sample=0.0,
        epochs=(5, 100),
        batch_size=64,
        rate=1.0,
        batch_norm="train",
        features="sites",
        front="train",
        changed=False,
        again=False,
    ),
}

# Of all samples together, and at most of each: of 200 images 32 did as well as ever new ones, 16 slightly worse.
_VIEWS, _MOST_VIEWS = 16_000, 32

_FEATURE_LOSS = {"sites": 1.0, "penultimate": 3.0}
# The variance over fewer samples is too uncertain to normalise by.
_FEWEST_FOR_STATISTICS = 8


@dataclass(frozen=True)
class Form:
    """What the model and the data are, as far as a recipe depends on it.

    penultimate: there is a teacher, and a penultimate feature that can be matched; ``head``: globs of the weights
    behind that. images: the data are images; sized: all of one size once preprocessed. labels: they are
    learned from.
    """

    penultimate: bool = False
    head: tuple[str, ...] = ()
    images: bool = False
    sized: bool = False
    labels: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned. Raises UsageError for values that cannot be meant.

    What is None is chosen by the number of training samples and the form of the model.

    Attributes:
        base: The recipe that fills in what is None: ``few``, ``some`` or ``many``. None takes ``many`` above 1,200 training
            samples, ``some`` for 400 to 1,200 where compress measured a divergence of 0.4 nats or more and the model has
            BatchNormalization, and else ``few``.
        epochs: Passes over the data; None takes as many as make 700 to 1,400 steps with ``few``, by the number of
            samples, but at most 200; 2,000 to 2,400 with ``some``; with ``many`` 500 steps, 5 to 100 epochs.
        lr: Highest learning rate; None takes that of the optimizer (``LEARNING_RATES``), with ``few`` a fifth
            of it. With ``adamw`` it is the part of its filter's root mean square by which a weight moves in
            a step.
        batch_size: Samples of one step, over all processes together; None takes what the model fixes, or
            32 with ``few`` and else 64.
        optimizer: ``adamw`` or ``sgd`` (with Nesterov momentum 0.9).
        weight_decay: For weights with more than one dimension; biases and BatchNorm have none.
        schedule: Learning rate after the warm-up: ``cosine`` or ``linear`` to zero, ``constant``.
        warmup: Share of all steps in which the learning rate rises linearly, in [0, 1).
        loss: ``kd``: class scores by the divergence from the teacher's, other outputs by their
            mean squared error; ``mse``: all outputs by that; ``ce``: cross-entropy with the labels;
            ``kd+ce``: both. None decides by what there is: with a teacher kd, without one ce.
        temperature: Of the teacher's and the student's class scores in ``kd``.
        label_weight: Share of the cross-entropy in ``kd+ce``, in [0, 1].
        features: What is matched to the teacher inside the model: ``sites``, the output of each rewritten site,
            or ``penultimate``, what the layer reads that makes the class scores. None takes the latter with
            ``few`` where there is such a layer.
        feature_loss: Weight of that; 0: off. None takes 1 for sites and 3 for the penultimate feature.
        augment: One or several of ``flip``, ``shift``, ``shift=PIXELS``, ``crop``, ``resized-crop``, ``mixup``;
            ``("none",)`` for none. None leaves arrays alone, and shifts images; with ``few`` or ``some``, a teacher and class
            scores it takes ``flip``, ``resized-crop`` and ``mixup`` for them.
        amp: Mixed precision: ``bf16``, ``fp16`` (CUDA only), or None for float32.
        freeze: A glob, or several, of names of weights that are not trained. None takes those of the layer behind
            the penultimate feature with ``few``, where that is matched.
        batch_norm: ``train`` normalises by the batch and moves the running statistics; ``frozen``
            uses the statistics as they are (Dropout is inactive then, too). None takes ``frozen`` with ``few``,
            and where a process has fewer than 8 samples in a batch.
        front: Whether what lies before the first rewritten layer is trained, and moves its statistics: ``train`` or
            ``frozen``. There the model is its teacher, so that frozen it is computed once for both, which spares most of a
            step where late layers were rewritten. None takes ``frozen`` with ``few`` and ``some`` but in int8. Where there is
            no such part, no teacher, or half precision in the graph, all is trained, and the log says ``train``.
        interpolation: How far from the weights that were given to the trained ones those are that the run ends with, in
            (0, 1] (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, section 3). None takes 0.75 with
            ``few`` but in int8, and else 1, the trained weights.
        views: Different views of each sample, at most: what the augmentation makes of it in one epoch is seen again so many
            epochs later, when neither decoding nor what is not trained takes time again (:class:`~onnx_igpc.Run`,
            ``cache_size``). None takes 32, or so many as make 16,000 of all samples, with ``few`` and ``some``, and with
            ``many`` one for each epoch.
        seed: Of the order of the data, the augmentation and Dropout.
        scores: Name of the output with class scores, or of an inner tensor that holds them; None finds it.
        hold_out: Share of the data that is not trained on but judged by, where there is no validation
            data; at least 40 samples or a quarter of the data, whichever is less.
        precision: ``int8`` trains, and judges, in fake int8, for a model that ``quantize`` comes after.
        int8_share: Share of the epochs, the last ones, that are trained so; BatchNormalization keeps its statistics
            there, since quantizing folds it.
    """

    base: str | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.001
    schedule: str = "cosine"
    warmup: float = 0.05
    loss: str | None = None
    temperature: float = 4.0
    label_weight: float = 0.5
    features: str | None = None
    feature_loss: float | None = None
    augment: str | Sequence[str] | None = None
    amp: str | None = None
    freeze: str | Sequence[str] | None = None
    batch_norm: str | None = None
    front: str | None = None
    interpolation: float | None = None
    views: int | None = None
    seed: int = 0
    scores: str | None = None
    hold_out: float = 0.1
    precision: str | None = None
    int8_share: float = 1.0

    def __post_init__(self) -> None:
        if self.augment is not None:
            object.__setattr__(self, "augment", texts("augment", self.augment))
        if self.freeze is not None:
            object.__setattr__(self, "freeze", texts("freeze", self.freeze))
        _one_of("base", self.base, (None, *BASES))
        _one_of("features", self.features, (None, *FEATURES))
        _one_of("loss", self.loss, (None, *LOSSES))
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("amp", self.amp, (None, *PRECISIONS))
        _one_of("batch_norm", self.batch_norm, (None, *MODES))
        _one_of("front", self.front, (None, *MODES))
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("views", self.views, 1)
        _at_least("seed", self.seed, 0)
        _at_least("weight_decay", self.weight_decay, 0)
        _at_least("feature_loss", self.feature_loss, 0)
        _above_zero("lr", self.lr)
        _above_zero("temperature", self.temperature)
        if not 0 <= self.warmup < 1:
            raise UsageError(f"`warmup` is a share of all steps, 0 up to 1, not {self.warmup}")
        if not 0 <= self.label_weight <= 1:
            raise UsageError(f"`label_weight` must lie between 0 and 1, not {self.label_weight}")
        _one_of("precision", self.precision, (None, INT8))
        if self.precision == INT8 and self.front == "frozen":
            raise UsageError(
                "`front` frozen is not for `precision` int8, which rounds all of the model"
            )
        if not 0 < self.int8_share <= 1:
            raise UsageError(
                f"`int8_share` is a share of all epochs above 0, not {self.int8_share}"
            )
        if self.interpolation is not None and not 0 < self.interpolation <= 1:
            raise UsageError(
                f"`interpolation` is a part of the way above 0, up to 1, not {self.interpolation}"
            )
        if not 0 < self.hold_out < 1:
            raise UsageError(f"`hold_out` is a share of the data above 0, not {self.hold_out}")

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the run."""
        return self.lr if self.lr is not None else LEARNING_RATES[self.optimizer]

    def resolved(
        self,
        fixed_batch: int | None,
        samples: int,
        processes: int,
        trained: bool = True,
        lost: float | None = None,
    ) -> Recipe:
        """The recipe with everything decided that the model's batch and the size of the data decide.

        fixed_batch: the number of samples the model takes at a time, None for any. trained: the weights are not
        random; those have nothing that few samples could spoil, and statistics that must be learned. lost: the
        divergence of the class scores from the original's, in nats, if it is known and large steps could make up for it.

        Raises:
            UsageError: the batch size is not the one that the model fixes.
        """
        fixed = fixed_batch * processes if fixed_batch is not None else None
        if fixed is not None and self.batch_size not in (None, fixed):
            raise UsageError(
                f"`batch_size` {self.batch_size}: the model takes {fixed_batch} samples at a time: "
                f"leave it out, or export the model with a dynamic batch"
            )
        base = self.base or self._chosen(samples if trained else None, lost, fixed)
        defaults = DEFAULTS[base]
        batch = min(fixed or self.batch_size or defaults.batch_size, samples)
        small = batch // processes < _FEWEST_FOR_STATISTICS
        steps = min(max(defaults.per_sample * samples, defaults.steps[0]), defaults.steps[1])
        epochs = math.ceil(steps / max(samples // batch, 1))
        fewest, most = defaults.epochs
        epochs = self.epochs or min(max(epochs, fewest), most)
        views = min(_MOST_VIEWS, math.ceil(_VIEWS / samples)) if defaults.again else epochs
        return replace(
            self,
            base=base,
            lr=self.lr or LEARNING_RATES[self.optimizer] * defaults.rate,
            batch_size=batch,
            epochs=epochs,
            views=min(self.views or views, epochs),
            batch_norm=self.batch_norm or ("frozen" if small else defaults.batch_norm),
            front=self.front or (defaults.front if self.precision is None else "train"),
            interpolation=self.interpolation
            or (defaults.interpolation if self.precision is None else 1.0),
        )

    def _chosen(self, samples: int | None, lost: float | None, fixed: int | None) -> str:
        """The base for so many samples (None: the weights are random) and a batch that the model fixes."""
        if samples is None or samples > MOST_FEW:
            return "many"
        if lost is None or lost < MUCH_LOST or samples < FEWEST_SOME:
            return "few"
        some = DEFAULTS["some"]
        batch = fixed or self.batch_size or some.batch_size
        # A run that is cut shorter than to half ends before it has made up for its first steps. With statistics that stay,
        # as for int8, large steps ruin a model.
        whole = self.epochs is None or self.epochs * max(samples // batch, 1) >= some.steps[0] // 2
        moving = self.batch_norm != "frozen" and self.precision is None
        return "some" if whole and moving and batch >= some.batch_size else "few"

    def fitted(self, form: Form) -> Recipe:
        """A :meth:`resolved` recipe with the rest decided, by the form of the model.

        Raises:
            UsageError: there is no penultimate feature to match, or labels are learned from mixed images.
        """
        assert self.base is not None
        if self.features == "penultimate" and not form.penultimate:
            raise UsageError(
                "`features` penultimate: there is no teacher, or no Gemm, MatMul or 1x1 Conv that makes "
                "class scores: take sites"
            )
        penultimate = form.penultimate and self._matches_penultimate
        features = "penultimate" if penultimate else "sites"
        frozen = form.head if self.base == "few" and penultimate else ()
        augment = self._augmented(form, DEFAULTS[self.base].changed and form.penultimate)
        return replace(
            self,
            features=features,
            feature_loss=_FEATURE_LOSS[features]
            if self.feature_loss is None
            else self.feature_loss,
            freeze=frozen if self.freeze is None else self.freeze,
            augment=augment,
            # As it is there is but one.
            views=1 if tuple(augment) == ("none",) else self.views,
        )

    def _augmented(self, form: Form, changed: bool) -> Sequence[str]:
        """Words for the augmentation; changed: no sample is seen as it is, if the data is of that kind."""
        words = self.augment
        if words is None and changed and (form.sized or not form.images):
            # What is done to a sample cannot be wrong where the teacher sees it, too.
            moved = ("flip", "resized-crop") if form.sized else ("shift",)
            return moved if form.labels else (*moved, "mixup")
        if words is None:
            return ("shift",) if form.images else ("none",)
        if "mixup" in words and form.labels:
            raise UsageError(
                "`augment` mixup is for `loss` kd and mse: a label is that of one image, not of a mix"
            )
        if "resized-crop" in words and form.images and not form.sized:
            raise UsageError("`augment` resized-crop needs the size of the images: give `resize`")
        return words

    @property
    def looks_for_penultimate(self) -> bool:
        """Whether something in a :meth:`resolved` recipe depends on there being a penultimate feature."""
        assert self.base is not None
        return self._matches_penultimate or DEFAULTS[self.base].changed

    @property
    def _matches_penultimate(self) -> bool:
        assert self.base is not None
        return (self.features or DEFAULTS[self.base].features) == "penultimate"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def _one_of(name: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        listed = ", ".join(choice for choice in choices if choice)
        raise UsageError(f"`{name}` must be one of {listed}, not {value!r}")


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and not (math.isfinite(value) and value >= least):
        raise UsageError(f"`{name}` must be at least {least}, not {value}")


def _above_zero(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(f"`{name}` must be above 0, not {value}")
