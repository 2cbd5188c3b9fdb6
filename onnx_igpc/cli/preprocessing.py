"""The options that say how images become model inputs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_igpc.cli.options import option_group
from onnx_igpc.errors import UsageError

if TYPE_CHECKING:
    from onnx_igpc.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class PreprocessingOptions:
    """What was given: a file, and what is to hold in the place of what it says."""

    preprocess: Path | None
    resize: int | None
    crop: int | None
    scale: float | None
    mean: str | None
    std: str | None
    layout: str | None
    color: str | None

    def read(self) -> Preprocessing | None:
        """The preprocessing; ``None`` if nothing was given.

        Raises:
            UsageError: a file that is not JSON, or values that cannot be used.
        """
        from onnx_igpc.data.preprocessing import Preprocessing

        given, chosen = asdict(self), {}
        if (file := given.pop("preprocess")) is not None:
            chosen = _read_object(file)
        for name, value in given.items():
            if value is not None:
                chosen[name] = _floats(name, value) if name in ("mean", "std") else value
        return Preprocessing.from_dict(chosen) if chosen else None


preprocessing_options = option_group(
    "preprocessing",
    PreprocessingOptions,
    click.option("--preprocess", type=click.Path(path_type=Path), help="JSON with all of these."),
    click.option("--resize", type=int, help="Short side in pixels."),
    click.option("--crop", type=int, help="Side of the centre crop."),
    click.option("--scale", type=float, help="What pixels 0-255 are multiplied by [1/255]."),
    click.option("--mean", type=str, help="Subtracted after scaling: one value or one a channel."),
    click.option("--std", type=str, help="Divided by after that: one value or one a channel."),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Layout of the input."),
    click.option("--color", type=click.Choice(["rgb", "bgr", "gray"]), help="Order of channels."),
)


def recorded_preprocessing(model: Path, data: Path) -> Preprocessing | None:
    """How ``compress`` or ``finetune`` preprocessed images for ``model``; ``None`` if it does not say.

    Also ``None`` where ``data`` are arrays, which are taken as they are.

    Raises:
        ModelError: the model cannot be read.
    """
    from onnx_igpc.graph.model import open_model
    from onnx_igpc.report.digest import read_digest

    files = data.iterdir() if data.is_dir() else [data]
    if any(file.suffix in (".npz", ".npy") for file in files):
        return None
    digest = read_digest(open_model(model).proto)
    return digest.preprocessing if digest is not None else None


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--preprocess {file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"--preprocess {file} holds no JSON object")
    return found


def _floats(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise UsageError(f"--{name} takes numbers separated by commas, not {text!r}") from None
