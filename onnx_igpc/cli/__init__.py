"""The command line: the group, and the commands that the modules beside this one define."""

from __future__ import annotations

import click

from onnx_igpc._version import __version__
from onnx_igpc.cli import compress as cli_compress
from onnx_igpc.cli import lower as cli_lower
from onnx_igpc.cli import measure as cli_measure
from onnx_igpc.cli import optimize as cli_optimize
from onnx_igpc.cli import quantize as cli_quantize
from onnx_igpc.cli import report as cli_report
from onnx_igpc.cli import train as cli_train
from onnx_igpc.cli.options import IgpcGroup


def _show_versions(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    import importlib.metadata  # slow to import

    click.echo(f"onnx-igpc {__version__}")
    for package in ("onnx", "onnx-graphsurgeon", "onnxruntime", "onnxruntime-gpu", "torch"):
        try:
            click.echo(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    ctx.exit()


@click.group(
    cls=IgpcGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: onnx-igpc inspect model.onnx",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of onnx-igpc and what it works with.",
)
def main() -> None:
    """Make the pointwise convolutions of a trained CNN cheap: ONNX in, ONNX out."""


for _module in (
    *(cli_optimize, cli_compress, cli_lower, cli_report, cli_measure, cli_train, cli_quantize),
):
    _module.register(main)
