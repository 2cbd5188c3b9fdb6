"""``python -m sample_models NAME``: write one of the sample networks to an ONNX file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from onnx_igpc.errors import IgpcError
from onnx_igpc.graph.model import save_model
from sample_models import build


def _image_size(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Option callback: ``224`` or ``192x256`` (height x width) as two sides."""
    if value is None:
        return None
    sides = value.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise click.BadParameter(f"{value!r} is not a size like 224 or 192x256")
    return int(sides[0]), int(sides[-1])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="NAME")
@click.option(
    "--variant",
    type=click.Choice(["plain", "k"]),
    default="plain",
    show_default=True,
    help="k: what the published network with grouped pointwise convolutions is a rewrite of.",
)
@click.option("--classes", type=int, help="Number of classes; each network has its default.")
@click.option("--size", callback=_image_size, help="Input image: 224 or 192x256 (height x width).")
@click.option(
    "--skip-stride",
    type=int,
    help="EfficientNet for small images: stem and first N stages keep the resolution.",
)
@click.option("--alpha", type=float, default=1.0, show_default=True, help="Width multiplier.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the weights.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; NAME.onnx or NAME_k.onnx in this folder if left out.",
)
def write(
    name: str,
    variant: str,
    classes: int | None,
    size: tuple[int, int] | None,
    skip_stride: int | None,
    alpha: float,
    seed: int,
    output: Path | None,
) -> None:
    """Write the network NAME with random weights to an ONNX file.

    NAME is efficientnet_b0 ... efficientnet_b7, mobilenet_v1, mobilenet_v2, mobilenet_v3_large,
    densenet_bc_l100, inception_v3, resnet50 or digits_net.
    """
    model = build(
        name,
        variant="k" if variant == "k" else "plain",
        classes=classes,
        size=size,
        alpha=alpha,
        skip_stride=skip_stride,
        seed=seed,
    )
    path = output or Path(f"{name}_k.onnx" if variant == "k" else f"{name}.onnx")
    save_model(model, path)
    click.echo(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code. An error is one line on stderr, no traceback."""
    try:
        result = write.main(
            args=arguments, prog_name="python -m sample_models", standalone_mode=False
        )
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        return 2
    except IgpcError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except click.Abort:
        click.echo("error: interrupted", err=True)
        return 130
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
