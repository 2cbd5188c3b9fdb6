"""Measures how time and memory grow with a model: with its nodes, its weights, its calibration data.

``python benchmarks/scale.py nodes --nodes 50000`` builds graphs of several shapes (a chain, one tensor
with all nodes as consumers, one shared weight, Constant nodes, an If with everything inside) at a
tenth of that size and at full size, and runs ``inspect`` and ``compress`` on them.
``python benchmarks/scale.py weights DIR --gib 1 --gib 3`` writes models with external data
(see large_model.py) and compresses them. ``python benchmarks/scale.py samples --samples 100000``
calibrates a small network on tar shards of images and samples its memory while it runs.
Every command runs in a process of its own; the table has its processor time and peak memory.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# A script runs with its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.large_model import write_external
from onnx_igpc.graph.model import save_model

# Runs the command and says at the end what it took at its peak; the system's count for a process that
# has ended would include what this one holds.
_WRAPPED = """\
import runpy, sys
from onnx_igpc.runtime.footprint import peak_memory
try:
    runpy.run_module("onnx_igpc", run_name="__main__", alter_sys=True)
finally:
    print(f"\\npeak {peak_memory()}", file=sys.stderr)
"""
_CHANNELS = 48
_SIDE = 4


@dataclass(frozen=True)
class Usage:
    """What a command took: processor seconds (user and system), elapsed seconds, peak KiB."""

    processor_s: float
    elapsed_s: float
    peak_kib: int
    resident_kib: tuple[int, ...] = ()


def run_measured(arguments: Sequence[str], every_s: float | None = None) -> Usage:
    """Run ``onnx-igpc`` with these arguments in a process of its own, with one thread for arrays.

    every_s: how often to look at its resident memory; never if ``None``. Raises RuntimeError with
    what the command said where it fails.
    """
    command = [sys.executable, "-c", _WRAPPED, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as said:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        samples: list[int] = []
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, every_s, samples, stop))
        if every_s is not None:
            watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.monotonic() - started
        stop.set()
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read().decode()
        if process.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {text[-500:]}")
    peak = int(text.rsplit("\npeak ", 1)[1]) // 1024
    return Usage(usage.ru_utime + usage.ru_stime, elapsed, peak, tuple(samples))


def _watch(pid: int, every_s: float | None, samples: list[int], stop: threading.Event) -> None:
    while not stop.wait(every_s):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        samples += [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]


class _Nodes:
    """Collects nodes and weights up to a number of nodes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.generator = np.random.default_rng(0)

    def weight(self, name: str) -> str:
        values = self.generator.standard_normal((_CHANNELS, _CHANNELS, 1, 1), dtype=np.float32)
        self.weights.append(numpy_helper.from_array(values * np.float32(0.1), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=f"n_{output}", **attributes)
        )
        return output

    def graph(self, name: str, output: str, inputs: Sequence[str] = ("x",)) -> onnx.GraphProto:
        dims = [1, _CHANNELS, _SIDE, _SIDE]
        return helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(each, TensorProto.FLOAT, dims) for each in inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, dims)],
            self.weights,
        )


def _fill(made: _Nodes, value: str, nodes: int, sites: int) -> str:
    """A chain of Relu, Neg and Add, with pointwise convolutions at even distances."""
    step = max(1, nodes // max(sites, 1))
    last = value
    for index in range(nodes):
        if index % step == step // 2 and index // step < sites:
            value = made.add("Conv", [value, made.weight(f"w{index}")], f"t{index}")
        elif index % 3 == 0:
            value = made.add("Add", [value, last], f"t{index}")
        else:
            value = made.add(("Relu", "Neg")[index % 2], [value], f"t{index}")
        if index % 7 == 0:
            last = value
    return value


def chain(nodes: int, sites: int) -> onnx.GraphProto:
    """Node after node, with skip connections."""
    made = _Nodes()
    return made.graph("chain", _fill(made, "x", nodes, sites))


def fan(nodes: int, sites: int) -> onnx.GraphProto:
    """Every node reads the input; an N-ary Sum collects them."""
    made = _Nodes()
    heads = [made.add("Conv", ["x", made.weight(f"w{i}")], f"c{i}") for i in range(sites)]
    heads += [made.add("Relu", ["x"], f"r{index}") for index in range(nodes - sites - 2)]
    total = made.add("Sum", heads, "total")
    return made.graph("fan", made.add("Relu", [total], "y"))


def shared(nodes: int, sites: int) -> onnx.GraphProto:
    """Half the nodes are convolutions with one and the same weight."""
    made = _Nodes()
    made.weight("w")
    value = "x"
    for index in range(nodes // 2):
        value = made.add("Conv", [value, "w"], f"c{index}")
        value = made.add("Tanh", [value], f"t{index}")
    return made.graph("shared", value)


def constants(nodes: int, sites: int) -> onnx.GraphProto:
    """Every second node is a Constant; those of the convolutions are weights."""
    made = _Nodes()
    value = "x"
    scale = numpy_helper.from_array(np.float32(1.0), "")
    for index in range(nodes // 2):
        if index < sites:
            made.weight(f"k{index}")
            tensor = made.weights.pop()
            made.add("Constant", [], f"k{index}", value=tensor)
            value = made.add("Conv", [value, f"k{index}"], f"t{index}")
        else:
            made.add("Constant", [], f"k{index}", value=scale)
            value = made.add("Mul", [value, f"k{index}"], f"t{index}")
    return made.graph("constants", made.add("Relu", [value], "y"))


def branch(nodes: int, sites: int) -> onnx.GraphProto:
    """Everything in the branches of one If."""
    outer = _Nodes()
    parts = []
    for name in ("yes", "no"):
        inner = _Nodes()
        output = _fill(inner, "x", nodes // 2, sites // 2)
        parts.append(inner.graph(name, output, inputs=()))
        for node in parts[-1].node:
            node.name = f"{name}_{node.name}"
    condition = numpy_helper.from_array(np.array(True), "condition")
    outer.weights.append(condition)
    value = outer.add("If", ["condition"], "picked", then_branch=parts[0], else_branch=parts[1])
    return outer.graph("branch", outer.add("Relu", [value], "y"))


SHAPES: dict[str, Callable[[int, int], onnx.GraphProto]] = {
    "chain": chain,
    "fan": fan,
    "shared": shared,
    "constants": constants,
    "branch": branch,
}
"""Graphs by name: given the number of nodes and of pointwise convolutions."""


def build_model(shape: str, nodes: int, sites: int) -> onnx.ModelProto:
    """A model of about ``nodes`` nodes with ``sites`` pointwise convolutions of 48 channels."""
    graph = SHAPES[shape](nodes, sites)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@click.group(help=__doc__)
def main() -> None:
    """The commands below."""


@main.command("nodes")
@click.option("--nodes", type=click.IntRange(min=1000), default=50_000, show_default=True)
@click.option("--sites", type=click.IntRange(min=2), default=20, show_default=True)
@click.option("--shape", "names", multiple=True, type=click.Choice(list(SHAPES)))
def measure_nodes(nodes: int, sites: int, names: Sequence[str]) -> None:
    """inspect and compress at a tenth of the size and at full size."""
    click.echo("| shape | nodes | command | processor s | peak MiB |\n|---|--:|---|--:|--:|")
    with tempfile.TemporaryDirectory(prefix="onnx-igpc-") as folder:
        for name in names or SHAPES:
            for size in (nodes // 10, nodes):
                model, out = Path(folder, "model.onnx"), Path(folder, "out.onnx")
                save_model(build_model(name, size, sites), model)
                for command in (["inspect", str(model)], ["compress", str(model), "-o", str(out)]):
                    used = run_measured([*command, "--ch", "16"])
                    click.echo(
                        f"| {name} | {size:,} | {command[0]} | {used.processor_s:.1f} | "
                        f"{used.peak_kib / 1024:.0f} |"
                    )


@main.command("weights")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--gib", "sizes", type=float, multiple=True, default=(1.0, 3.0), show_default=True)
@click.option("--channels", type=click.IntRange(min=64), default=2048, show_default=True)
def measure_weights(folder: Path, sizes: Sequence[float], channels: int) -> None:
    """compress models with external data, one size after another; the models are deleted."""
    click.echo("| GiB | layers | processor s | peak MiB |\n|--:|--:|--:|--:|")
    folder.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        layers = max(1, round(size * 2**28 / channels**2))
        with tempfile.TemporaryDirectory(dir=folder) as place:
            model = write_external(Path(place), layers, channels)
            out = Path(place, "small.onnx")
            used = run_measured(["compress", str(model), "-o", str(out), "--ch", "16"])
        click.echo(f"| {size:g} | {layers} | {used.processor_s:.0f} | {used.peak_kib / 1024:.0f} |")


def write_shards(folder: Path, samples: int, side: int, in_shard: int = 10_000) -> None:
    """Tar shards of PNG images, cheap ones: few different images under many names."""
    from PIL import Image

    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(64):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(
            buffer, "png"
        )
        encoded.append(buffer.getvalue())
    for first in range(0, samples, in_shard):
        with tarfile.open(folder / f"shard-{first // in_shard:04}.tar", "w") as shard:
            for index in range(first, min(first + in_shard, samples)):
                data = encoded[index % len(encoded)]
                entry = tarfile.TarInfo(f"{index:07}.png")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))


def small_network(side: int) -> onnx.ModelProto:
    """Images in, a 3x3 convolution with stride 2, four pointwise convolutions with Relu, scores."""
    made = _Nodes()
    first = made.generator.standard_normal((_CHANNELS, 3, 3, 3), dtype=np.float32) * 0.2
    made.weights.append(numpy_helper.from_array(first.astype(np.float32), "stem"))
    value = made.add("Conv", ["x", "stem"], "c", strides=[2, 2], pads=[1, 1, 1, 1])
    for index in range(4):
        value = made.add("Relu", [value], f"r{index}")
        value = made.add("Conv", [value, made.weight(f"w{index}")], f"p{index}")
    value = made.add("Relu", [value], "last")
    value = made.add("GlobalAveragePool", [value], "pooled")
    value = made.add("Flatten", [value], "y")
    graph = helper.make_graph(
        made.nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", _CHANNELS])],
        made.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@main.command("samples")
@click.option("--samples", "counts", type=int, multiple=True, default=(1000, 100_000))
@click.option("--side", type=click.IntRange(min=8), default=16, show_default=True)
@click.option("--sequential/--no-sequential", default=True, show_default=True)
def measure_samples(counts: Sequence[int], side: int, sequential: bool) -> None:
    """compress on calibration images; private memory in tenths of the run."""
    click.echo("| samples | processor s | peak MiB | private MiB over time |\n|--:|--:|--:|---|")
    mode = "--sequential" if sequential else "--no-sequential"
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="onnx-igpc-") as place:
            folder = Path(place)
            (folder / "shards").mkdir()
            write_shards(folder / "shards", count, side)
            save_model(small_network(side), folder / "model.onnx")
            command = ["compress", str(folder / "model.onnx"), "-o", str(folder / "out.onnx")]
            options = ["--ch", "16", "--calibration", str(folder / "shards"), mode]
            used = run_measured([*command, *options, "--samples", str(count)], every_s=0.25)
        curve = [used.resident_kib[i * len(used.resident_kib) // 10] // 1024 for i in range(10)]
        click.echo(f"| {count:,} | {used.processor_s:.0f} | {used.peak_kib / 1024:.0f} | {curve} |")


if __name__ == "__main__":
    main()
