"""Kills compress and finetune at random moments: what is on disk is old, new or nothing, never half.

``python benchmarks/kill_test.py --kills 100`` starts each command in a process of its own, kills it
(SIGKILL) after a random part of the time that it takes, and reads what is there: the output is the
old model, the new one or missing; a checkpoint can be resumed. Fine-tuning is resumed after every
kill until it ends, and must end with the same bytes as a run that nobody stopped.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# A script runs with its own folder on the path. Threads of a parent do not outlive a fork.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import onnx

from onnx_igpc import compress
from onnx_igpc.graph.model import load_model, open_model, save_model
from onnx_igpc.planning.options import Published
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.recipe import Recipe
from tests.helpers import pointwise_model


def killed_after(seconds: float, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process and kill it after so long; whether it was still running."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(seconds)
    running = process.is_alive()
    assert process.pid is not None
    if running:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if not running and process.exitcode:
        raise SystemExit(f"the process ended by itself with {process.exitcode}")
    return running


def kill_compress(folder: Path, kills: int, external: bool) -> Counter[str]:
    """Kill compress while an older output is there; what the output was after each kill."""
    source, target = folder / "model.onnx", folder / "out" / "small.onnx"
    target.parent.mkdir()
    models = [pointwise_model(256, 256, seed=seed) for seed in (0, 1)]
    old, new = (compress(model, Published(16)) for model in models)
    onnx.save(models[1], source, save_as_external_data=external, location="model.data")
    work = functools.partial(_compress, source, target)
    start = time.monotonic()
    killed_after(600.0, work)
    duration = time.monotonic() - start
    new_bytes = load_model(target).SerializeToString()
    old_path = folder / "old.onnx"
    save_model(old.model, old_path)
    seen: Counter[str] = Counter()
    for number in range(kills):
        for path in target.parent.iterdir():
            path.unlink()
        if number % 3:
            save_model(open_model(old_path), target)
        seen["killed"] += killed_after(random.uniform(0.0, duration * 1.3), work)
        if not target.exists():
            seen["nothing" if not number % 3 else "LOST"] += 1
            continue
        found = load_model(target).SerializeToString()
        kind = {new_bytes: "new", old.model.SerializeToString(): "old"}.get(found, "HALF")
        seen[kind] += 1
        seen["strays"] += len(list(target.parent.glob(".*.tmp")))
    assert new.changed
    return seen


def _compress(source: Path, target: Path) -> None:
    compress(source, Published(16)).save(target)


def kill_finetune(folder: Path, kills: int) -> Counter[str]:
    """Kill fine-tuning again and again, resuming it each time; what its output was in the end."""
    folder.mkdir()
    model = compress(pointwise_model(32, 32, batch_norm=True), Published(8)).model
    teacher = folder / "teacher.onnx"
    teacher.write_bytes(pointwise_model(32, 32, batch_norm=True).SerializeToString())
    small = folder / "small.onnx"
    small.write_bytes(model.SerializeToString())
    data = folder / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((96, 32, 5, 5)).astype(np.float32))

    def run(output: Path, resume: bool) -> None:
        finetune(
            small,
            data=data,
            output=output,
            teacher=teacher,
            recipe=Recipe(epochs=8, batch_size=16, loss="mse"),
            run=Run(device="cpu", workers=0, resume=resume),
        )

    start = time.monotonic()
    whole = folder / "whole.onnx"
    process = multiprocessing.get_context("fork").Process(target=run, args=(whole, False))
    process.start()
    process.join()
    duration = time.monotonic() - start
    expected = weights(whole)
    seen: Counter[str] = Counter()
    target = folder / "tuned.onnx"
    checkpoint = folder / "tuned.onnx.checkpoint"
    while seen["killed"] < kills:
        resume = checkpoint.exists()
        seen["resumed"] += resume
        alive = killed_after(random.uniform(0.0, duration), functools.partial(run, target, resume))
        seen["killed"] += alive
        if target.exists():
            right = weights(target) == expected
            seen["whole runs that end as one nobody stopped" if right else "OTHER"] += 1
            target.unlink()
            checkpoint.unlink(missing_ok=True)
    return seen


def weights(path: Path) -> list[bytes]:
    """The weights of a written model; the run's times in its report differ."""
    return [tensor.SerializeToString() for tensor in load_model(path).graph.initializer]


@click.command()
@click.option("--kills", type=int, default=100, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    """Kill a third each of compress, compress with external data, and finetune."""
    random.seed(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bad = 0
        for label, work in (
            ("compress, one file", lambda at: kill_compress(at, kills // 3, False)),
            ("compress, external data", lambda at: kill_compress(at, kills // 3, True)),
            ("finetune", lambda at: kill_finetune(at / "tune", kills - 2 * (kills // 3))),
        ):
            at = folder / label.replace(" ", "_")
            at.mkdir()
            seen = work(at)
            bad += seen["HALF"] + seen["LOST"] + seen["OTHER"]
            click.echo(f"{label}: {dict(seen)}")
        raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
