"""Command lines of every command that writes, and that each is refused with nothing changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from click.testing import CliRunner, Result

from onnx_igpc.cli import main

C = 48


# What each option of a command names, as a file of the folder that the fixture makes.
READS = {
    "compress": {
        "--calibration": "data.npz",
        "--preprocess": "pre.json",
        "--sensitivity": "s.json",
    },
    "inspect": {},
    "lower": {},
    "quantize": {"--calibration": "data.npz", "--preprocess": "pre.json"},
    "report": {"--merge": "merged.json", "--original": "outside.onnx"},
    "verify": {"--data": "data.npz", "--preprocess": "pre.json", "--metric": "measure:agree"},
    "benchmark": {"--data": "data.npz", "--preprocess": "pre.json"},
    "finetune": {
        "--teacher": "outside.onnx",
        "--data": "data.npz",
        "--val": "val.npz",
        "--preprocess": "pre.json",
    },
    "from-torch": {},
    "optimize": {"--data": "data.npz", "--val": "val.npz", "--preprocess": "pre.json"},
}


WRITES = {
    "compress": ("-o", "--save-sensitivity", "--json", "--report"),
    "inspect": ("--json",),
    "lower": ("-o", "--json"),
    "quantize": ("-o", "--json", "--report"),
    "report": ("--html", "--json"),
    "verify": ("--json", "--report"),
    "benchmark": ("--json", "--report"),
    "finetune": ("-o", "--json", "--report"),
    "from-torch": ("-o",),
    "optimize": ("-o", "--json"),
}


ARGUMENTS = {
    "verify": ("outside.onnx", "small.onnx"),
    "benchmark": ("outside.onnx", "small.onnx"),
    "report": ("small.onnx",),
    "lower": ("small.onnx",),
    "finetune": ("small.onnx",),
    "from-torch": ("small.onnx", "state.pt"),
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, str]:
    """What every file is and holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(folder: Path, message: str, *arguments: object) -> None:
    """One line, exit code 2, and every file as it was."""
    before = contents(folder)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert contents(folder) == before


def command(name: str, **given: str | Path) -> list[object]:
    """A whole command line; ``given`` replaces options."""
    options = {**READS[name]}
    if "-o" in WRITES[name]:
        options["-o"] = "out/o.onnx"
        Path("out").mkdir(exist_ok=True)
    if name == "compress":
        options |= {"--target": "pointwise-parameters=60%"}
    options |= {key: str(value) for key, value in given.items()}
    arguments = ARGUMENTS.get(name, ("outside.onnx",))
    return [name, *arguments, *(each for pair in options.items() for each in pair)]


def read_files(name: str) -> list[str]:
    files = [*ARGUMENTS.get(name, ("outside.onnx",)), *READS[name].values()]
    files = ["measure.py" if each == "measure:agree" else each for each in files]
    return [*files, "w.bin"] if "outside.onnx" in files else files
