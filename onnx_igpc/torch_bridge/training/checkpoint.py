"""Checkpoints: one safetensors file with the tensors, and the rest as JSON in its header.

Nothing in it is ever unpickled. It is written to a temporary file that is then renamed: a checkpoint is
whole, or the one before it is still there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onnx_igpc.errors import ModelError, UsageError, first_line
from onnx_igpc.report.sections import EpochReport, JudgedMeans
from onnx_igpc.report.typed_json import from_values, to_values
from onnx_igpc.torch_bridge.tensor_files import read_tensors, write_tensors

CHECKPOINT_VERSION = 2
_MODEL, _BEST, _OPTIMIZER, _RANDOM = "model/", "best/", "optimizer/", "random/"


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        settings: What decides the run, as JSON values; a run is only resumed with the same.
        epoch: Epochs that are complete.
        step: Steps done in the epoch that is not.
        rates: Learning rates that were tried before the run, and their losses, behind that of the start.
        sums: Of the losses and counts of these steps.
        history: A row for each complete epoch.
        val_before: What was measured at the start of the run.
        judged: What the model was judged by, before the first epoch and after each.
        scaler: State of the gradient scaler of fp16.
        ranges: Of the tensors that are rounded in fake int8, as they were last found.
        best_epoch: The epoch after which the model was judged best, 0 for the model as it was given.
        best_weights: Its state dict on the CPU; not part of the JSON.
        seconds: Time spent so far.
    """

    settings: dict[str, Any]
    epoch: int = 0
    step: int = 0
    rates: dict[str, float | None] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    history: list[EpochReport] = field(default_factory=list)
    val_before: JudgedMeans | None = None
    judged: list[float] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = len(self.judged)
        if (self.epoch or known) and known != self.epoch + 1:
            raise ValueError("judged is not of each epoch")
        if not 0 <= self.best_epoch <= self.epoch == len(self.history):
            raise ValueError("best_epoch is not one of the epochs")


def save_checkpoint(
    path: Path, state: RunState, module: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write the weights, the optimizer's state, the random state and ``state``.

    Raises:
        UsageError: the file cannot be written.
        MissingExtraError: safetensors is not installed.
    """
    tensors = {_MODEL + name: value for name, value in module.state_dict().items()}
    if state.best_epoch:  # that of epoch 0 is the model that was given
        tensors |= {_BEST + name: value for name, value in state.best_weights.items()}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if value is not None:
                tensors[f"{_OPTIMIZER}{index}/{key}"] = torch.as_tensor(value)
    tensors[f"{_RANDOM}cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors[f"{_RANDOM}cuda"] = torch.cuda.get_rng_state()
    header = {"version": CHECKPOINT_VERSION, **to_values(replace(state, best_weights={}))}
    write_tensors(path, tensors, {"onnx_igpc.run": json.dumps(header)})


def load_checkpoint(
    path: Path, settings: Mapping[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer
) -> RunState:
    """Put the weights, the optimizer and the random state back as they were, and say where the run stood.

    Raises:
        UsageError: there is no checkpoint, or it is of a run with other settings.
        ModelError: it is damaged, or not a checkpoint.
    """
    if not path.is_file():
        raise UsageError(f"nothing to resume: {path} does not exist")
    tensors, header = read_tensors(path)
    try:
        fields = json.loads(header["onnx_igpc.run"])
        version = fields.pop("version")
        if version != CHECKPOINT_VERSION:
            raise ModelError(f"{path} was written by another release of onnx-igpc")
        state = from_values(RunState, fields)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is not a checkpoint of a fine-tuning run") from error
    _check_same_run(path, state.settings, settings)
    try:
        if state.best_epoch:
            state.best_weights = _part(tensors, _BEST)
            module.load_state_dict(state.best_weights)  # raises where it is not of the model
        module.load_state_dict(_part(tensors, _MODEL))
        _restore_optimizer(optimizer, _part(tensors, _OPTIMIZER))
        torch.set_rng_state(tensors[f"{_RANDOM}cpu"])
        if torch.cuda.is_available() and f"{_RANDOM}cuda" in tensors:
            torch.cuda.set_rng_state(tensors[f"{_RANDOM}cuda"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} does not fit the model: {first_line(error)}") from error
    return state


def _check_same_run(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise UsageError(
                f"{path} is of a run with {key} {json.dumps(old.get(key))}, not "
                f"{json.dumps(new.get(key))}: resume it with the same settings, or `restart`"
            )


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
