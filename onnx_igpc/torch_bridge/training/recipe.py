"""The recipe of a fine-tuning run: everything that decides what comes out of it, and its defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnx_igpc.errors import UsageError, texts

LOSSES = ("kd", "kd+ce", "ce", "mse")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("bf16", "fp16")
BATCH_NORM_MODES = ("train", "frozen")

LEARNING_RATES = {"adamw": 1e-2, "sgd": 5e-2}
"""First choice of the learning rate. That of AdamW is relative, see :mod:`onnx_igpc.torch_bridge.training.optimizers`."""

# A run has about so many steps where the number of epochs is left open, within these bounds.
_STEPS = 500
_BATCH_SIZE = 64
# The variance over fewer samples is too uncertain to normalise by.
_FEWEST_FOR_STATISTICS = 8
_FEWEST_EPOCHS, _MOST_EPOCHS = 5, 100


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned. Raises UsageError for values that cannot be meant.

    Attributes:
        epochs: Passes over the data; None takes as many as make about 500 steps, 5 to 100.
        lr: Highest learning rate; None takes that of the optimizer (``LEARNING_RATES``). With ``adamw`` it
            is the part of its filter's root mean square by which a weight moves in a step.
        batch_size: Samples of one step, over all processes together; None takes 64, or what the
            model fixes.
        optimizer: ``adamw`` or ``sgd`` (with Nesterov momentum 0.9).
        weight_decay: For weights with more than one dimension; biases and BatchNorm have none.
        schedule: Learning rate after the warm-up: ``cosine`` or ``linear`` to zero, ``constant``.
        warmup: Share of all steps in which the learning rate rises linearly, in [0, 1).
        loss: ``kd``: class scores by the divergence from the teacher's, other outputs by their
            mean squared error; ``mse``: all outputs by that; ``ce``: cross-entropy with the labels;
            ``kd+ce``: both. None decides by what there is: with a teacher kd, without one ce.
        temperature: Of the teacher's and the student's class scores in ``kd``.
        label_weight: Share of the cross-entropy in ``kd+ce``, in [0, 1].
        feature_loss: Weight of matching the output of each rewritten site to the teacher's; 0: off.
        augment: One or several of ``flip``, ``shift``, ``shift=PIXELS``, ``crop``; ``("none",)`` for none. None
            shifts images and leaves arrays alone.
        amp: Mixed precision: ``bf16``, ``fp16`` (CUDA only), or None for float32.
        freeze: A glob, or several, of names of weights that are not trained.
        batch_norm: ``train`` normalises by the batch and moves the running statistics; ``frozen``
            uses the statistics as they are (Dropout is inactive then, too). None takes ``train``
            unless a process has fewer than 8 samples in a batch.
        seed: Of the order of the data, the augmentation and Dropout.
        scores: Name of the output with class scores, or of an inner tensor that holds them; None finds it.
        hold_out: Share of the data that is not trained on but judged by, where there is no validation
            data; at least 40 samples or a quarter of the data, whichever is less.
    """

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
    feature_loss: float = 1.0
    augment: str | Sequence[str] | None = None
    amp: str | None = None
    freeze: str | Sequence[str] = ()
    batch_norm: str | None = None
    seed: int = 0
    scores: str | None = None
    hold_out: float = 0.1

    def __post_init__(self) -> None:
        if self.augment is not None:
            object.__setattr__(self, "augment", texts("augment", self.augment))
        object.__setattr__(self, "freeze", texts("freeze", self.freeze))
        _one_of("loss", self.loss, (None, *LOSSES))
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("amp", self.amp, (None, *PRECISIONS))
        _one_of("batch_norm", self.batch_norm, (None, *BATCH_NORM_MODES))
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("seed", self.seed, 0)
        _at_least("weight_decay", self.weight_decay, 0)
        _at_least("feature_loss", self.feature_loss, 0)
        _above_zero("lr", self.lr)
        _above_zero("temperature", self.temperature)
        if not 0 <= self.warmup < 1:
            raise UsageError(f"`warmup` is a share of all steps, 0 up to 1, not {self.warmup}")
        if not 0 <= self.label_weight <= 1:
            raise UsageError(f"`label_weight` must lie between 0 and 1, not {self.label_weight}")
        if not 0 < self.hold_out < 1:
            raise UsageError(f"`hold_out` is a share of the data above 0, not {self.hold_out}")

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the run."""
        return self.lr if self.lr is not None else LEARNING_RATES[self.optimizer]

    def resolved(self, fixed_batch: int | None, samples: int, processes: int) -> Recipe:
        """The recipe with everything decided that the model and the size of the data decide.

        fixed_batch: the number of samples the model takes at a time, None for any.

        Raises:
            UsageError: the batch size is not the one that the model fixes.
        """
        fixed = fixed_batch * processes if fixed_batch is not None else None
        if fixed is not None and self.batch_size not in (None, fixed):
            raise UsageError(
                f"`batch_size` {self.batch_size}: the model takes {fixed_batch} samples at a time: "
                f"leave it out, or export the model with a dynamic batch"
            )
        batch = min(fixed or self.batch_size or _BATCH_SIZE, samples)
        small = batch // processes < _FEWEST_FOR_STATISTICS
        return replace(
            self,
            lr=self.learning_rate,
            batch_size=batch,
            epochs=self.epochs_for(max(samples // batch, 1)),
            batch_norm=self.batch_norm or ("frozen" if small else "train"),
        )

    def epochs_for(self, steps_per_epoch: int) -> int:
        """The number of epochs, decided by the length of one where the recipe leaves it open."""
        if self.epochs is not None:
            return self.epochs
        return min(max(math.ceil(_STEPS / steps_per_epoch), _FEWEST_EPOCHS), _MOST_EPOCHS)

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
