"""Every command on broken and hostile files, each in a process with little memory and little time.

``python benchmarks/hostile_files.py --flips 3000`` runs the cases of tests/hostile.py and
tests/hostile_data.py through every command, models with flipped bits through inspect, report, compress
and the commands that read weights, and files of weights with flipped bits through from-torch. A command
may end well or refuse its input with code 2 and one line. A traceback, another code, a signal, more than
4 GiB of address space or 60 seconds of processor time are findings; each is printed with its file kept.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

# A script runs with its own folder on the path. Threads of a parent do not outlive a fork.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import torch

import onnx_igpc.torch_bridge.state_files
import onnx_igpc.torch_bridge.training.finetune
from onnx_igpc import compress
from onnx_igpc.cli import main as onnx_igpc_command
from onnx_igpc.planning.options import Published
from onnx_igpc.runtime.session import import_onnxruntime
from tests.helpers import pointwise_model
from tests.hostile import complaint, hostile_models
from tests.hostile_data import hostile_arrays, hostile_images
from tests.rich_model import rich_model

ADDRESS_SPACE = 8 * 2**30
CPU_SECONDS = 60
_SHORT = ("--epochs", "1", "--workers", "0", "-q", "--restart")


class Runner:
    """Runs commands in forked processes and keeps what should not have happened."""

    def __init__(self, findings: Path) -> None:
        self.findings = findings
        self.codes: Counter[str] = Counter()
        self.found: list[str] = []
        findings.mkdir(parents=True, exist_ok=True)

    def run(self, label: str, file: Path, *arguments: str | Path, works: bool = False) -> int:
        """Run one command; ``file`` is the input that is kept where it ends badly."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                _become(list(map(str, arguments)), out.fileno(), err.fileno())
            _, status = os.waitpid(child, 0)
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace"))
        code = os.waitstatus_to_exitcode(status)
        self.codes[f"{arguments[0]} {code}"] += 1
        wrong = f"signal {-code}" if code < 0 else complaint(code, *texts, works)
        if wrong:
            self._keep(f"{label}: {arguments[0]}: {wrong}", file, texts[1])
        return code

    def _keep(self, text: str, file: Path, err: str) -> None:
        number = len(self.found)
        self.found.append(text)
        click.echo(f"FINDING {number}: {text[:700]}")
        if file.is_file():
            shutil.copy(file, self.findings / f"{number}{file.suffix}")
        (self.findings / f"{number}.txt").write_text(f"{text}\n{err}")


def _become(arguments: list[str], out: int, err: int) -> None:
    """Be the command: with limits, and with its output in files."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.dup2(out, 1)
    os.dup2(err, 2)
    code = 70
    try:
        onnx_igpc_command(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def flipped(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """The content with one to four bits of it the other way round."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        damaged = bytearray(content)
        for position in generator.integers(0, len(content), generator.integers(1, 5)):
            damaged[position] ^= 1 << int(generator.integers(0, 8))
        yield bytes(damaged)


def commands(model: Path, good: Path, folder: Path) -> Iterator[Sequence[str | Path]]:
    """Every command with ``model`` as its input."""
    out = folder / "out.onnx"
    yield "inspect", model, "--ch", "3"
    yield "report", model
    yield "compress", model, "-o", out, "--ch", "3", "-q"
    yield "lower", model, "-o", out, "-q"
    yield "verify", good, model, "--samples", "2"
    yield "benchmark", model, "--rounds", "1", "--threads", "1"
    yield "to-torch", model, "-o", folder / "state"
    yield "from-torch", model, folder / "weights.safetensors", "-o", out
    data = ("--data", folder / "data.npz", "--epochs", "1", "--workers", "0", "-q", "--restart")
    yield "finetune", model, "--teacher", good, "-o", out, *data


def try_models(runner: Runner, folder: Path) -> int:
    """The cases of tests/hostile.py through every command."""
    good, tried = folder / "good.onnx", 0
    good.write_bytes(pointwise_model(12, 12).SerializeToString())
    np.savez(folder / "data.npz", x=np.zeros((4, 12, 5, 5), np.float32))
    runner.run("good", good, "to-torch", good, "-o", folder)
    for case in hostile_models():
        model = folder / "model.onnx"
        model.write_bytes(case.content)
        for arguments in commands(model, good, folder):
            runner.run(case.name, model, *arguments)
            _clean(folder)
            tried += 1
    return tried


def try_flips(runner: Runner, folder: Path, count: int) -> int:
    """Models with flipped bits through the commands that need no runtime, and every tenth through all."""
    dense = pointwise_model(12, 12, batch_norm=True)
    models = [dense, rich_model(8), compress(dense, Published(3)).model]
    good, tried = folder / "good.onnx", 0
    for number, whole in enumerate(models):
        content = whole.SerializeToString()
        for index, damaged in enumerate(flipped(content, count // len(models), number)):
            model = folder / "model.onnx"
            model.write_bytes(damaged)
            for arguments in list(commands(model, good, folder))[: 9 if not index % 10 else 3]:
                runner.run(f"flip {number} {index}", model, *arguments)
                _clean(folder)
            tried += 1
    return tried


def try_data(runner: Runner, folder: Path) -> int:
    """The cases of tests/hostile_data.py as data of compress, verify and finetune."""
    model, tried = folder / "picture.onnx", 0
    proto = pointwise_model(3, 12)
    for axis in (2, 3):
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.shape.dim[axis].dim_value = 8
    model.write_bytes(proto.SerializeToString())
    for make in (hostile_arrays, hostile_images):
        at = folder / make.__name__
        at.mkdir()
        for name, data in make(at):
            out = folder / "out.onnx"
            for arguments in (
                ("compress", model, "-o", out, "--ch", "1", "--calibration", data, "-q"),
                ("verify", model, model, "--data", data),
                ("finetune", model, "--teacher", model, "--data", data, "-o", out, *_SHORT),
            ):
                runner.run(name, data, *arguments)
                _clean(folder)
                tried += 1
    return tried


def try_weights(runner: Runner, folder: Path, count: int) -> int:
    """Files of weights with flipped bits, pickles that would run code, and a damaged checkpoint."""
    good = folder / "good.onnx"
    runner.run("good", good, "to-torch", good, "-o", folder)
    plain = (folder / "weights.safetensors").read_bytes()
    state = onnx_igpc.torch_bridge.to_torch(_proto(good)).state_dict()
    torch.save(state, folder / "weights.pt")
    pickled = (folder / "weights.pt").read_bytes()
    evil = b"cos\nsystem\n(S'touch " + str(folder / "hacked").encode() + b"'\ntR."
    files = [(".pt", evil), (".pt", b""), (".pt", b"PK\x03\x04"), (".safetensors", b"\xff" * 64)]
    files += [(".safetensors", damaged) for damaged in flipped(plain, count, 1)]
    files += [(".pt", damaged) for damaged in flipped(pickled, count, 2)]
    files += [(".pt", pickled[: len(pickled) * tenth // 10]) for tenth in range(10)]
    for suffix, content in files:
        file = folder / f"damaged{suffix}"
        file.write_bytes(content)
        runner.run("weights", file, "from-torch", good, file, "-o", folder / "out.onnx")
        _clean(folder)
    checkpoint = folder / "out.onnx.checkpoint"
    for damaged in flipped(plain, max(count // 10, 5), 3):
        checkpoint.write_bytes(damaged)
        arguments = ("finetune", good, "--teacher", good, "--data", folder / "data.npz", "-o")
        rest = (folder / "out.onnx", "--epochs", "1", "--workers", "0", "-q", "--resume")
        runner.run("checkpoint", checkpoint, *arguments, *rest)
        _clean(folder)
    if (folder / "hacked").exists():
        runner.found.append("a pickle ran code")
    return len(files) + max(count // 10, 5)


def _proto(path: Path) -> object:
    from onnx_igpc.graph.model import load_model

    return load_model(path)


def _clean(folder: Path) -> None:
    for path in folder.glob("out.*"):
        path.unlink()


@click.command()
@click.option(
    "--flips", type=int, default=3000, show_default=True, help="Models with flipped bits."
)
@click.option("--findings", type=click.Path(path_type=Path), default=Path("hostile-findings"))
@click.option("--part", multiple=True, type=click.Choice(["models", "data", "weights", "flips"]))
def main(flips: int, findings: Path, part: tuple[str, ...]) -> None:
    """Run it all; exit code 1 where something was found."""
    import_onnxruntime()
    runner, start = Runner(findings), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "good.onnx").write_bytes(pointwise_model(12, 12).SerializeToString())
        np.savez(folder / "data.npz", x=np.zeros((4, 12, 5, 5), np.float32))
        for label, work in (
            ("models", lambda: try_models(runner, folder)),
            ("data", lambda: try_data(runner, folder)),
            ("weights", lambda: try_weights(runner, folder, flips // 10)),
            ("flips", lambda: try_flips(runner, folder, flips)),
        ):
            if not part or label in part:
                click.echo(f"{label}: {work()} inputs, {time.monotonic() - start:.0f} s so far")
    click.echo(f"{len(runner.found)} findings; codes: {dict(sorted(runner.codes.items()))}")
    raise SystemExit(1 if runner.found else 0)


if __name__ == "__main__":
    main()
