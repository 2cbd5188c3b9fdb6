"""What other tools make of compressed models: a table of models and clients, original beside compressed.

``python benchmarks/clients.py MODELS`` compresses every .onnx file of a folder (``--compress`` has the
options), gives the original and the compressed model to each client in a process of its own, and
compares what comes out with onnxruntime on the same inputs: seeded random ones or, with ``--data``,
images or arrays, preprocessed as the compressed model's report says unless told otherwise. Runtimes (OpenVINO, OpenCV)
run the model; tools (onnxslim, onnxsim, onnxconverter-common's fp16, onnxruntime's quantization)
rewrite it, and onnxruntime runs the result; Netron draws it in a headless Chromium, with as many
nodes as the graph has. A client that is not installed here can have its own
environment: ``--python openvino=venv/bin/python``.

Of each pair the table says whether the client takes both (``yes``), neither (``neither``: the original
is refused as well), only the original (``BROKEN``) or only the compressed model (``better``), or that
there was nothing to rewrite (``same``), and for lossy tools how many dB of signal to noise the original and the compressed model keep.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

# A script runs with its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.client_reference import Reference
from benchmarks.client_runners import RUNTIMES, TOOLS
from onnx_igpc.cli.preprocessing import (
    PreprocessingOptions,
    preprocessing_options,
    recorded_preprocessing,
)
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.errors import IgpcError, ModelError
from onnx_igpc.runtime.session import make_session, run_session, session_inputs

CLIENTS = (*RUNTIMES, *TOOLS)
LOSSY = ("fp16", "quantize_dynamic", "quantize_static")
_TIME_LIMIT_S = 240
# Outputs that are smaller throughout, as of a sigmoid that finds nothing, are held to this size: there
# onnxruntime with and without optimisation is as far from itself as others are from it.
_SMALLEST = 1e-3
# A lossy tool may keep so many dB less of a compressed model than of the original.
_LOSS_DB = 6.0


@dataclass(frozen=True)
class Outcome:
    """What one client made of one model.

    difference: the largest of an output as a part of that output's largest value; snr_db: the least
    signal-to-noise ratio of an output. Both are ``None`` where the client refused, see ``message``.
    """

    client: str
    loads: bool
    version: str = ""
    difference: float | None = None
    snr_db: float | None = None
    message: str = ""


def try_client(
    client: str, reference: Reference, folder: Path, python: str = sys.executable
) -> Outcome:
    """Give a model to a client in a process of its own and compare what comes out."""
    out = folder / f"{reference.model.stem}.{client}"
    out = out.with_name(out.name.replace(".", "_"))
    script = Path(__file__).with_name("client_runners.py")
    command = [python, str(script), client, *map(str, (reference.model, reference.feeds_file, out))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        return Outcome(client, False, message=f"no result within {_TIME_LIMIT_S} s")
    if done.returncode:
        return Outcome(client, False, message=_reason(done))
    try:
        values = _results(client, reference, out)
    except ModelError as error:
        return Outcome(client, False, message=f"onnxruntime refuses the result: {error}")
    version = done.stdout.strip().splitlines()[-1].removeprefix("v").split("-")[0]
    wanted = [reference.nodes] if client == "netron" else list(reference.outputs.values())
    return _compare(client, version, wanted, values)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    return (lines[-1] if lines else f"exit code {done.returncode}")[:600]


def _results(client: str, reference: Reference, out: Path) -> list[np.ndarray]:
    """What the client computed, or what onnxruntime computes of the model that the client wrote."""
    if client in RUNTIMES:
        with np.load(out.with_suffix(".npz")) as stored:
            return [stored[name] for name in stored.files]
    session = make_session(out.with_suffix(".onnx"), threads=1)
    wanted = {each.name for each in session_inputs(session)}
    feeds = {name: values for name, values in reference.batches[0].items() if name in wanted}
    return list(run_session(session, feeds, list(reference.outputs)).values())


def _compare(
    client: str, version: str, wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> Outcome:
    differences, ratios = [], []
    for ours, theirs in zip(wanted, found, strict=True):
        if ours.size != theirs.size:
            text = f"an output of shape {list(theirs.shape)} in place of {list(ours.shape)}"
            return Outcome(client, True, version, float("inf"), -float("inf"), text)
        a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
        error = np.where(np.isfinite(a) | np.isfinite(b), np.abs(a - b), 0.0)
        scale = max(float(np.max(np.abs(a), initial=0)), _SMALLEST)
        differences.append(float(np.max(error, initial=0)) / scale)
        noise, signal = np.mean(error**2), max(np.mean(a**2), _SMALLEST**2)
        # Beyond 150 dB even float64 could not tell the two apart.
        ratios.append(min(float(10 * np.log10(signal / max(noise, 1e-300))), 150.0))
    return Outcome(client, True, version, max(differences), min(ratios))


def accepts(outcome: Outcome, tolerance: float) -> bool:
    """Whether the client takes the model and, unless it is lossy, computes the same."""
    if not outcome.loads or outcome.difference is None or not np.isfinite(outcome.difference):
        return False
    if outcome.client in LOSSY:
        return True
    return outcome.difference <= tolerance


def verdict(original: Outcome, compressed: Outcome, tolerance: float) -> str:
    """``yes``, ``neither``, ``better`` or ``BROKEN``; lossy tools: ``worse`` beyond 6 dB."""
    taken = accepts(original, tolerance), accepts(compressed, tolerance)
    if taken != (True, True):
        return {(False, False): "neither", (True, False): "BROKEN", (False, True): "better"}[taken]
    if original.client in LOSSY:
        assert original.snr_db is not None
        assert compressed.snr_db is not None
        return "yes" if compressed.snr_db >= original.snr_db - _LOSS_DB else "worse"
    return "yes"


@dataclass(frozen=True)
class Row:
    """One model with one client."""

    model: str
    verdict: str
    original: Outcome
    compressed: Outcome

    def cell(self) -> str:
        """The table's text."""
        if self.original.client in LOSSY and self.verdict in ("yes", "worse"):
            return f"{self.verdict} ({self.original.snr_db:.0f} / {self.compressed.snr_db:.0f} dB)"
        return self.verdict


def compress(model: Path, options: Sequence[str], folder: Path) -> Path:
    """Compress a model with the command line; raises IgpcError with what it said."""
    out = folder / f"{model.stem}-small.onnx"
    command = [sys.executable, "-m", "onnx_igpc", "compress", str(model), "-o", str(out), "-q"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        raise ModelError(f"{model}: {done.stderr.strip()}")
    return out


def measure(
    model: Path,
    options: Sequence[str],
    clients: Mapping[str, str],
    folder: Path,
    data: Path | None = None,
    preprocessing: Preprocessing | None = None,
) -> list[Row]:
    """One row a client for one model. clients: the Python of each; data: see :class:`Reference`."""
    compressed = compress(model, options, folder)
    if compressed.read_bytes() == model.read_bytes():
        nothing = "nothing to rewrite: the same file"
        return [Row(model.stem, "same", *[Outcome(c, False, message=nothing)] * 2) for c in clients]
    if data is not None and preprocessing is None:
        preprocessing = recorded_preprocessing(compressed, data)
    before, after = (
        Reference.make(each, folder, data, preprocessing) for each in (model, compressed)
    )
    rows = []
    for client, python in clients.items():
        first = try_client(client, before, folder, python)
        second = try_client(client, after, folder, python)
        said = verdict(first, second, before.tolerance)
        rows.append(Row(model.stem, said, first, second))
        click.echo(f"{model.stem}: {client}: {rows[-1].cell()}", err=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, one line a model and one column a client."""
    clients = list(dict.fromkeys(row.original.client for row in rows))
    versions = {
        each.client: each.version
        for row in rows
        for each in (row.original, row.compressed)
        if each.version
    }
    head = [f"{client} {versions.get(client, '')}".strip() for client in clients]
    lines = ["| model | " + " | ".join(head) + " |", "|---" * (len(clients) + 1) + "|"]
    for model in dict.fromkeys(row.model for row in rows):
        cells = {row.original.client: row.cell() for row in rows if row.model == model}
        lines.append(f"| {model} | " + " | ".join(cells[client] for client in clients) + " |")
    return "\n".join(lines)


def refusals(rows: Sequence[Row]) -> str:
    """What clients said where they did not take the original or the compressed model."""
    lines = []
    for row in rows:
        for role, outcome in (("original", row.original), ("compressed", row.compressed)):
            text = outcome.message
            if outcome.loads and row.verdict in ("neither", "BROKEN", "better"):
                text = text or f"differs by {outcome.difference:.2g} of an output's largest value"
            if text and row.verdict != "same":
                lines.append(f"- {row.model}, {outcome.client}, {role}: {text}")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("models", type=click.Path(exists=True, path_type=Path))
@click.option("--compress", "options", default="--ch 16", show_default=True, help="Options.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Inputs; not random.")
@click.option("--client", "names", multiple=True, type=click.Choice(CLIENTS), help="Only these.")
@click.option("--python", "pythons", multiple=True, metavar="CLIENT=PYTHON", help="Its own Python.")
@click.option("--glob", default="*.onnx", show_default=True, help="Which files of the folder.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all outcomes.")
@preprocessing_options
def main(
    models: Path,
    options: str,
    data: Path | None,
    names: Sequence[str],
    pythons: Sequence[str],
    glob: str,
    json_file: Path | None,
    preprocessing: PreprocessingOptions,
) -> None:
    """Print the table; exit code 1 where a client takes an original and not what we made of it."""
    own = dict(entry.split("=", 1) for entry in pythons)
    clients = {name: own.get(name, sys.executable) for name in names or CLIENTS}
    preprocessed = preprocessing.read()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="onnx-igpc-") as folder:
        for model in sorted(models.glob(glob)) if models.is_dir() else [models]:
            try:
                rows += measure(
                    model, shlex.split(options), clients, Path(folder), data, preprocessed
                )
            except IgpcError as error:
                click.echo(f"error: {error}", err=True)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    click.echo(table(rows))
    click.echo(refusals(rows))
    sys.exit(1 if any(row.verdict == "BROKEN" for row in rows) else 0)


if __name__ == "__main__":
    main()
