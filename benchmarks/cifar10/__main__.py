"""``python -m benchmarks.cifar10 IMAGES WORK``: everything from the baseline to the table.

IMAGES has ``train/<class>/*`` and ``test/<class>/*``; all that is made lies in WORK, and what is there
is not made again: a run that was stopped goes on where it was. Arms are independent: several processes
with different ``--arm`` share the work, and one without ``--arm`` prints the table in the end.
"""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.cifar10 import arms as all_of
from benchmarks.cifar10.data import prepare
from benchmarks.cifar10.runs import Place, run_arm, run_published, take_baseline, train_baseline
from benchmarks.cifar10.setups import SETUPS
from benchmarks.cifar10.table import curves_svg, markdown, read_results, spread

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("images", type=_PATH)
@click.argument("work", type=_PATH)
@click.option("--setup", "setup_name", type=click.Choice(list(SETUPS)), default="small")
@click.option("--train-baseline", "anew", is_flag=True, help="Also where a trained one is kept.")
@click.option("--arm", "globs", multiple=True, metavar="GLOB", help="As 'budget-25-*'. Repeatable.")
@click.option("--seeds", type=int, default=1, show_default=True, help="Of every arm.")
@click.option("--device", help="cpu, cuda or cuda:N  [a GPU if there is one].")
@click.option("--epochs", type=int, help="Of every arm  [by the setup].")
@click.option("--baseline-epochs", type=int, help="Of each of its stages  [by the setup].")
@click.option("--no-training", is_flag=True, help="Compress and measure the arms only.")
@click.option("--baseline-only", is_flag=True)
@click.option("--table-only", is_flag=True, help="The table of the results that there are.")
def main(
    images: Path,
    work: Path,
    setup_name: str,
    anew: bool,
    globs: tuple[str, ...],
    seeds: int,
    device: str | None,
    epochs: int | None,
    baseline_epochs: int | None,
    no_training: bool,
    baseline_only: bool,
    table_only: bool,
) -> None:
    """Train the baseline, compress it in every way, train it back, and print the table."""
    setup = SETUPS[setup_name]
    if not table_only:
        place = Place(*prepare(images, work), work, device)
        scratch = [replace(r, epochs=baseline_epochs or r.epochs) for r in setup.baseline]
        source = setup.trained
        if source is None or anew or not source.is_file():
            source = train_baseline(setup, place, scratch, _say)
        found = take_baseline(source, place)
        _say(f"baseline: {found['accuracy']:.2%}")
        if baseline_only:
            return
        chosen = [a for a in all_of.all_arms(seeds) if not globs or _matches(a.name, globs)]
        networks = [
            n for n in setup.published_channels if not globs or _matches(_published(n), globs)
        ]
        if globs and not chosen and not networks:
            raise click.UsageError(f"--arm {globs[0]} matches no arm such as budget-25-features-0")
        for channels in networks if not no_training else ():
            result = run_published(channels, setup, place, scratch, _say)
            _say(f"{result['arm']}: {result['accuracy']:.2%}")
        recipe = replace(setup.arms, epochs=epochs or setup.arms.epochs)
        for arm in chosen:
            result = run_arm(arm, setup, place, recipe, _say, train=not no_training)
            if result is not None:
                _say(f"{arm.name}: {result['before']['accuracy']:.2%} -> {result['accuracy']:.2%}")
    if globs or no_training:
        return
    _print_table(work)


def _published(channels: int) -> str:
    return f"published-ch{channels}"


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _print_table(work: Path) -> None:
    baseline, arms = read_results(work / "results")
    click.echo(markdown(baseline, arms))
    for line in spread(arms):
        click.echo(line)
    for share in all_of.SHARES:
        drawn = [arm for arm in arms if arm["share"] == share and arm["seed"] == 0]
        if drawn:
            title = f"{share} % of the pointwise parameters: agreement on training images, by step"
            (work / f"curves-{share}.svg").write_text(curves_svg(drawn, title))


if __name__ == "__main__":
    main()
