"""``python -m benchmarks.from_scratch``: train every arm from random weights, and print the table.

``train IMAGES RUNS`` goes on where it was stopped, with the same options; ``table RUNS`` can be asked
for at any time. IMAGES has ``train/<class>/*`` and ``test/<class>/*``; all that is made lies in RUNS, and once
the images are decoded IMAGES is not read again.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.cifar10.data import prepare, subset
from benchmarks.cifar10.runs import Place
from benchmarks.from_scratch.arms import SETUPS, Arm
from benchmarks.from_scratch.runs import (
    Plan,
    epochs_planned,
    read_row,
    train_arm,
    write_untrained,
)
from benchmarks.from_scratch.table import markdown
from onnx_igpc.errors import CheckFailedError, IgpcError

_PATH = click.Path(path_type=Path)
_MOST_SEEDS = 10


@click.group()
def main() -> None:
    """Interleaved grouped pointwise convolutions trained from random weights."""


@main.command()
@click.argument("images", type=_PATH)
@click.argument("runs", type=_PATH)
@click.option("--setup", "setup_name", type=click.Choice(list(SETUPS)), default="small")
@click.option("--arm", "globs", multiple=True, metavar="GLOB", help="As 'v2-*'. Repeatable.")
@click.option("--seeds", type=click.IntRange(1, _MOST_SEEDS), default=1, show_default=True)
@click.option("--device", help="cpu, cuda or cuda:N  [a GPU if there is one].")
@click.option("--epochs", type=click.IntRange(1), help="Of every arm  [by the setup].")
@click.option("--images", "some", type=click.IntRange(1), help="Of the training images  [all].")
def train(
    images: Path,
    runs: Path,
    setup_name: str,
    globs: tuple[str, ...],
    seeds: int,
    device: str | None,
    epochs: int | None,
    some: int | None,
) -> None:
    """Train the arms that are not finished, one after the other."""
    setup = SETUPS[setup_name]
    arms = setup.seeded_arms(seeds)
    chosen = [arm for arm in arms if _matches(arm.plain_name, globs)]
    if not chosen:
        raise click.UsageError(f"--arm {globs[0]} matches no arm such as v2-16")
    recipe = replace(setup.recipe, epochs=epochs or setup.recipe.epochs)
    try:
        plan = Plan(setup_name, recipe, some)
        plan.write(runs)
        place = Place(*prepare(images, runs), runs, device)
        place = replace(place, train=subset(place.train, some))
        write_untrained(arms, setup, runs)
        failed = _train_all(chosen, plan, place)
    except IgpcError as error:
        raise click.ClickException(str(error)) from error
    if failed:
        raise click.ClickException(f"did not train to the end: {', '.join(failed)}")


@main.command()
@click.argument("runs", type=_PATH)
def table(runs: Path) -> None:
    """Print the table of the arms as they stand, and the papers' figures."""
    try:
        setup_name, epochs = epochs_planned(runs)
        arms = SETUPS[setup_name].seeded_arms(_MOST_SEEDS)
        rows = [row for row in (read_row(arm, runs) for arm in arms) if row is not None]
    except IgpcError as error:
        raise click.ClickException(str(error)) from error
    click.echo(markdown(rows, epochs))


def _train_all(arms: Sequence[Arm], plan: Plan, place: Place) -> list[str]:
    """Train every arm; the names of those that diverged, which do not keep the others from it."""
    failed = []
    for arm in arms:
        try:
            train_arm(arm, plan, place, lambda line: click.echo(line, err=True))
        except CheckFailedError as error:
            click.echo(f"{arm.name}: {error}", err=True)
            failed.append(arm.name)
    return failed


def _matches(name: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)


if __name__ == "__main__":
    main()
