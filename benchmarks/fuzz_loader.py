"""Coverage-guided fuzzing of what reads a model: loading, finding sites, counting, planning, reports.

``python benchmarks/fuzz_loader.py FINDINGS --seconds 3600`` mutates small models for so long, both as
bytes and as protobuf messages, and calls what ``inspect`` and ``report`` call. An input may be read or
refused with an error of this package; anything else is a finding and is kept in FINDINGS: the input
and its traceback, one of each kind, so that a run goes on. What ends the process (a crash in native
code, 20 seconds, 3 GiB) is kept by libFuzzer as ``crash-*``, ``timeout-*`` or ``oom-*``, and the run
starts anew with the corpus that it has. Needs ``pip install atheris``, which the project does not.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A script runs with its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["onnx_igpc", "onnx_graphsurgeon"]):
    import onnx_igpc.compression.pipeline
    from onnx_igpc.errors import IgpcError
    from onnx_igpc.graph.model import open_model
    from onnx_igpc.report.console.rewrite import show_rewrite
    from onnx_igpc.report.digest import read_digest

import click
import onnx
from google.protobuf.message import DecodeError
from rich.console import Console

from onnx_igpc.planning.options import Published

MAX_BYTES = 16384
SLOW_SECONDS = 3.0
_RESTARTS_PER_SECOND = 0.2
_NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    16,
    63,
    127,
    2**16,
    2**31 - 1,
    2**31,
    2**40,
    2**63 - 1,
    -1,
    -2,
    -(2**63),
)


class Target:
    """Runs one input; what is neither read nor refused is written to ``findings``."""

    def __init__(self, findings: Path) -> None:
        self._findings = findings
        self._known = {path.stem for path in findings.glob("*.txt")}
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_fast_folder()))
        self._path = self._folder / "model.onnx"
        (self._folder / "weights.data").write_bytes(bytes(range(256)) * 64)
        self._console = Console(file=io.StringIO(), width=100)
        self.executions = 0

    def run(self, data: bytes) -> None:
        self.executions += 1
        if self.executions % 1000 == 0:
            (self._findings / f"executions.{os.getpid()}").write_text(str(self.executions))
        self._path.write_bytes(data)
        self._console.file.truncate(0)  # what is shown is not looked at
        start = time.process_time()
        try:
            self._read(data)
        except IgpcError as error:
            if len(str(error)) > 2000:
                self._keep(data, f"message of {len(str(error))} characters", type(error).__name__)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in where if "onnx_igpc" in frame.filename] or where
            label = f"{type(error).__name__}-{Path(ours[-1].filename).stem}-{ours[-1].lineno}"
            self._keep(data, traceback.format_exc(), label)
        seconds = time.process_time() - start
        if seconds > SLOW_SECONDS:
            self._keep(data, f"{seconds:.1f} s", "slow")

    def _read(self, data: bytes) -> None:
        model = open_model(self._path)
        report = read_digest(model.proto)
        if report is not None:
            show_rewrite(self._console, report, verbose=True)
        channels = 1 + hashlib.md5(data, usedforsecurity=False).digest()[0] % 8
        plan = onnx_igpc.compression.pipeline.inspect(self._path, onnx_igpc.Published(channels))
        show_rewrite(self._console, plan, planned=True)
        plan.to_json()

    def _keep(self, data: bytes, text: str, label: str) -> None:
        if label in self._known:
            return
        self._known.add(label)
        (self._findings / f"{label}.txt").write_text(text)
        (self._findings / f"{label}.onnx").write_bytes(data)


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change a few fields of the message, or bytes where it is none, or at every third turn."""
    random.seed(seed)
    if seed % 3 == 0:
        return bytes(atheris.Mutate(data, max_size))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        for _ in range(random.choice((1, 1, 2, 3, 5))):
            _change(model)
        changed = model.SerializeToString()
    except (DecodeError, ValueError, TypeError, UnicodeDecodeError):
        return bytes(atheris.Mutate(data, max_size))
    return changed if len(changed) <= max_size else bytes(atheris.Mutate(data, max_size))


def _change(model: onnx.ModelProto) -> None:
    """Change one field of one message anywhere in the model."""
    message = random.choice(list(_messages(model)))
    descriptors = list(message.DESCRIPTOR.fields)
    present = [field for field, _ in message.ListFields()]
    field = random.choice(present if present and random.random() < 0.8 else descriptors)
    if field.is_repeated:
        _change_repeated(model, message, field)
    elif random.random() < 0.15:
        message.ClearField(field.name)
    elif field.message_type is not None:
        _fill(model, getattr(message, field.name))
    else:
        setattr(message, field.name, _scalar(model, field, getattr(message, field.name)))


def _change_repeated(model: onnx.ModelProto, message: Any, field: Any) -> None:
    entries = getattr(message, field.name)
    action = random.randrange(5)
    if action == 0 and len(entries):
        del entries[random.randrange(len(entries))]
    elif action == 1 and len(entries) > 1:
        order = list(entries)
        random.shuffle(order)
        copies = [_copied(entry) for entry in order]
        del entries[:]
        entries.extend(copies)
    elif action == 2 and len(entries):
        entries.extend([_copied(random.choice(list(entries)))])
    elif field.message_type is not None:
        _fill(model, entries.add())
    elif len(entries) and action == 3:
        index = random.randrange(len(entries))
        entries[index] = _scalar(model, field, entries[index])
    else:
        entries.append(_scalar(model, field, entries[0] if len(entries) else None))


def _copied(entry: Any) -> Any:
    if not hasattr(entry, "SerializeToString"):
        return entry
    copy = type(entry)()
    copy.CopyFrom(entry)
    return copy


def _fill(model: onnx.ModelProto, message: Any) -> None:
    """Make a message a copy of another of its kind in the model."""
    alike = [each for each in _messages(model) if each.DESCRIPTOR is message.DESCRIPTOR]
    if alike:
        copy = _copied(random.choice(alike))
        message.Clear()
        message.MergeFrom(copy)


def _scalar(model: onnx.ModelProto, field: Any, old: Any) -> Any:
    if field.enum_type is not None:
        return random.choice([value.number for value in field.enum_type.values])
    if field.type == field.TYPE_STRING:
        return _text(model, old or "")
    if field.type == field.TYPE_BYTES:
        return bytes(atheris.Mutate(old or b"", len(old or b"") + 16))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return random.choice((0.0, -1.0, float("nan"), float("inf"), 1e30, 1e-30))
    number = (
        random.choice(_NUMBERS) if random.random() < 0.6 else int(old or 0) + random.randint(-3, 3)
    )
    bits = 31 if field.type == field.TYPE_INT32 else 64 if field.type == field.TYPE_UINT64 else 63
    low = 0 if field.type == field.TYPE_UINT64 else -(2**bits)
    return min(max(number, low), 2**bits - 1)


def _text(model: onnx.ModelProto, old: str | bytes) -> str:
    """Another string of the model, a name that is troublesome, or the old one changed."""
    old = old if isinstance(old, bytes) else old.encode()  # bytes: what is not UTF-8
    if random.random() < 0.6:
        found = [
            value
            for message in _messages(model)
            for field, value in message.ListFields()
            if isinstance(value, str)
        ]
        return random.choice(found or [""])
    if random.random() < 0.5:
        special = (
            "",
            "\0",
            "../weights.data",
            "/etc/passwd",
            "\n",
            "[bold]x",
            "a/b",
            "weights.data",
        )
        operators = (
            "Conv",
            "Gather",
            "If",
            "Loop",
            "Constant",
            "Reshape",
            "Expand",
            "Cast",
            "Identity",
        )
        return random.choice(special + operators)
    return bytes(atheris.Mutate(old, len(old) + 32)).decode(errors="replace")


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                yield from _messages(each)


def write_seeds(folder: Path) -> None:
    """Small models of every kind: forms of weights, sub-graphs, functions, external data, digests."""
    from onnx_igpc import compress
    from tests.helpers import pointwise_model
    from tests.rich_model import rich_model

    models = [rich_model(4)]
    models += [pointwise_model(6, 6, weights=w) for w in ("initializer", "input", "constant")]
    models += [pointwise_model(6, 4, opset=7, batch_norm=True), pointwise_model(5, 5, head=True)]
    models += [compress(models[i], Published(2)).model for i in (0, 1, 4)]
    outside = pointwise_model(8, 8)
    for offset, tensor in enumerate(outside.graph.initializer):
        size = len(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, "weights.data", offset * 256, size)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    for index, model in enumerate([*models, outside]):
        (folder / f"seed{index}").write_bytes(model.SerializeToString())


def _fuzz(findings: Path, seconds: int) -> None:
    target = Target(findings)
    corpus = findings / "corpus"
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-max_len={MAX_BYTES}",
            "-timeout=20",
            "-rss_limit_mb=3072",
            "-len_control=0",
            f"-artifact_prefix={findings}/",
            str(corpus),
        ],
        target.run,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


@click.command()
@click.argument("findings", type=click.Path(path_type=Path))
@click.option("--seconds", type=int, default=3600, show_default=True)
@click.option("--worker", is_flag=True, hidden=True)
def main(findings: Path, seconds: int, worker: bool) -> None:
    """Fuzz the loader for a while; FINDINGS is the folder that keeps the corpus and what is found."""
    if worker:
        _fuzz(findings, seconds)
        return
    corpus = findings / "corpus"
    if not corpus.is_dir():
        corpus.mkdir(parents=True)
        write_seeds(corpus)
    end = time.monotonic() + seconds
    runs = 0
    while (left := int(end - time.monotonic())) > 0:
        runs += 1
        command = [sys.executable, __file__, str(findings), "--worker", "--seconds", str(left)]
        with (findings / "log.txt").open("a") as log:
            subprocess.run(command, stdout=log, stderr=log, check=False)
        time.sleep(1 / _RESTARTS_PER_SECOND if left > 10 else 0)
    counts = [int(path.read_text()) for path in findings.glob("executions.*")]
    kept = sorted(path.name for path in findings.iterdir() if path.suffix == ".txt")
    click.echo(f"{sum(counts)} executions in {runs} runs of the fuzzer; kept: {', '.join(kept)}")
    for folder in Path(_fast_folder() or tempfile.gettempdir()).glob("fuzz-*"):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
