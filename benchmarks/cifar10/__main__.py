"""``python -m benchmarks.cifar10 IMAGES WORK``: everything from the baseline to the table.

IMAGES has ``train/<class>/*`` and ``test/<class>/*``; all that is made lies in WORK, and what is there
is not made again: a run that was stopped goes on where it was. Arms are independent: several processes
with different ``--arm`` share the work, and one with ``--table-only`` prints what there is.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.cifar10.arms import SHARES, Arm, all_arms
from benchmarks.cifar10.data import prepare
from benchmarks.cifar10.runs import Place, run_arm, run_published, take_baseline, train_baseline
from benchmarks.cifar10.setups import SETUPS, Setup
from benchmarks.cifar10.table import curves_svg, markdown, read_results, spread
from onnx_igpc.errors import IgpcError

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("images", type=_PATH)
@click.argument("work", type=_PATH)
@click.option("--setup", "setup_name", type=click.Choice(list(SETUPS)), default="small")
@click.option("--baseline", type=_PATH, help="A trained one  [the one kept beside the code].")
@click.option("--train-baseline", "anew", is_flag=True, help="Also where a trained one is kept.")
@click.option("--arm", "globs", multiple=True, metavar="GLOB", help="As 'budget-25-*'. Repeatable.")
@click.option("--seeds", type=int, default=1, show_default=True, help="Of every arm.")
@click.option("--device", help="cpu, cuda or cuda:N  [a GPU if there is one].")
@click.option("--epochs", type=int, help="Of every arm  [by the setup].")
@click.option("--arm-images", type=int, help="Of the training images  [by the setup].")
@click.option("--baseline-epochs", type=int, help="Of each of its stages  [by the setup].")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another value in the recipe of the arms, as lr=0.002; part of their names. Repeatable.",
)
@click.option("--no-training", is_flag=True, help="Compress and measure the arms only.")
@click.option("--baseline-only", is_flag=True)
@click.option("--table-only", is_flag=True, help="The table of the results that there are.")
def main(
    images: Path,
    work: Path,
    setup_name: str,
    seeds: int,
    globs: tuple[str, ...],
    changes: tuple[str, ...],
    table_only: bool,
    **options: Any,
) -> None:
    """Train the baseline, compress it in every way, train it back, and print the table."""
    chosen = [arm for arm in all_arms(seeds, _changes(changes)) if _matches(arm.plain_name, globs)]
    setup = SETUPS[setup_name]
    networks = [n for n in setup.published_channels if _matches(f"published-ch{n}", globs)]
    if not chosen and not networks:
        raise click.UsageError(f"--arm {globs[0]} matches no arm such as budget-25-features-0")
    try:
        if not table_only:
            _run(setup, images, work, chosen, networks, **options)
        if not (globs or options["no_training"] or options["baseline_only"]) or table_only:
            _print_table(work)
    except IgpcError as error:
        raise click.ClickException(str(error)) from error


def _run(
    setup: Setup,
    folder: Path,
    work: Path,
    arms: Sequence[Arm],
    networks: Sequence[int],
    *,
    baseline: Path | None,
    anew: bool,
    device: str | None,
    epochs: int | None,
    arm_images: int | None,
    baseline_epochs: int | None,
    no_training: bool,
    baseline_only: bool,
) -> None:
    place = Place(*prepare(folder, work), work, device)
    scratch = [replace(r, epochs=baseline_epochs or r.epochs) for r in setup.baseline]
    source = baseline or setup.trained
    if source is None or anew or not source.is_file():
        source = train_baseline(setup, place, scratch, _say)
    _say(f"baseline: {take_baseline(source, place)['accuracy']:.2%}")
    if baseline_only:
        return
    for channels in networks if not no_training else ():
        found = run_published(channels, setup, place, scratch, _say)
        _say(f"{found['arm']}: {found['accuracy']:.2%}")
    recipe = replace(setup.arms, epochs=epochs or setup.arms.epochs)
    for arm in arms:
        images = arm_images or setup.arm_images
        result = run_arm(arm, setup, place, recipe, _say, images=images, train=not no_training)
        if result is not None:
            _say(f"{arm.name}: {result['before']['accuracy']:.2%} -> {result['accuracy']:.2%}")


def _changes(texts: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """``lr=0.002`` as a pair of the key and a JSON value, or else a text."""
    found = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set {text}: give KEY=VALUE, such as lr=0.002")
        try:
            found.append((key, json.loads(value)))
        except ValueError:
            found.append((key, value))
    return tuple(found)


def _matches(name: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _print_table(work: Path) -> None:
    baseline, arms = read_results(work / "results")
    click.echo(markdown(baseline, arms))
    for line in spread(arms):
        click.echo(line)
    for share in SHARES:
        drawn = [
            arm
            for arm in arms
            if arm["share"] == share and arm["seed"] == 0 and not arm.get("changes")
        ]
        if drawn:
            title = f"{share} % of the pointwise parameters: agreement on training images, by step"
            (work / f"curves-{share}.svg").write_text(curves_svg(drawn, title))


if __name__ == "__main__":
    main()
