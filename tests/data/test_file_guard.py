"""Nothing is written over what is read, nor one output over another: every command, every pair."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from onnx_igpc.cli import main
from onnx_igpc.errors import UsageError
from onnx_igpc.torch_bridge.training.options import Run
from tests.data.guarded import READS, WRITES, C, command, contents, read_files, refused, run
from tests.helpers import pointwise_model


def test_every_command_that_writes_is_here() -> None:
    writing = {
        name
        for name, each in main.commands.items()
        if any({"-o", "--json", "--html"} & set(option.opts) for option in each.params)
    }
    assert writing - {"to-torch"} == set(READS) == set(WRITES)


CASES = [(name, option) for name, options in WRITES.items() for option in options]


@pytest.mark.parametrize(("name", "option"), CASES, ids=lambda case: str(case))
def test_no_output_over_an_input(name: str, option: str, folder: Path) -> None:
    for file in read_files(name):
        refused(folder, "choose another output", *command(name, **{option: file}))


def hard_link(path: Path, target: Path) -> None:
    os.link(target, path)


def soft_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def relative(path: Path, target: Path) -> None:
    path.parent.joinpath("sub").mkdir()
    path.symlink_to(Path("sub") / ".." / target.name)


@pytest.mark.parametrize("disguise", [hard_link, soft_link, relative])
@pytest.mark.parametrize("file", ["outside.onnx", "w.bin", "data.npz", "pre.json", "s.json"])
def test_under_another_name(
    file: str, disguise: Callable[[Path, Path], None], folder: Path
) -> None:
    disguise(folder / "other.json", folder / file)
    for option in ("-o", "--json", "--save-sensitivity"):
        refused(folder, "choose another output", *command("compress", **{option: "other.json"}))
    (folder / "folder").mkdir()
    way = folder / "folder" / ".." / file
    refused(folder, "choose another output", *command("compress", **{"--json": way}))


def test_external_data_of_the_compressed_model(folder: Path) -> None:
    [data] = folder.glob("small.onnx.*.data")
    for name in ("report", "lower", "finetune", "from-torch", "verify", "benchmark"):
        for option in WRITES[name]:
            refused(folder, "external data of small.onnx", *command(name, **{option: data.name}))


PAIRS = [
    (name, one, other)
    for name, options in WRITES.items()
    for number, one in enumerate(options)
    for other in options[:number]
]


@pytest.mark.parametrize(("name", "one", "other"), PAIRS)
def test_no_two_outputs_of_one_name(name: str, one: str, other: str, folder: Path) -> None:
    Path("link.json").symlink_to("same.json")
    for first, second in (("same.json", "same.json"), ("same.json", "link.json"), ("-", "-")):
        given = {one: first, other: second}
        if first == "-" and "-o" in given:
            continue  # models with external data need a file
        refused(folder, "are one file", *command(name, **given))
    # Of one inode: what is one file now stays one where it is written into.
    Path("a.json").write_text("")
    os.link("a.json", "b.json")
    refused(folder, "are one file", *command(name, **{one: "a.json", other: "b.json"}))


def test_a_model_and_its_report_on_stdout(folder: Path) -> None:
    Path("one.onnx").write_bytes(pointwise_model(C, C).SerializeToString())
    line = ["compress", "one.onnx", "--ch", 12, "-o", "-"]
    for option in ("--json", "--report"):
        refused(folder, "are one file, /dev/stdout", *line, option, "-")
    refused(folder, "-o takes a file", *command("finetune", **{"-o": "-"}))


def test_outputs_that_differ_in_case(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files here, one where the file system does not tell cases apart."""
    upper = folder / "O.JSON"
    line = command("compress", **{"--json": upper, "--report": "o.json"})
    line = [
        each for each in line if each not in ("--sensitivity", "s.json", "--preprocess", "pre.json")
    ]
    if not Path(str(folder).swapcase()).exists():
        assert run(*line).exit_code == 0
        assert {"O.JSON", "o.json"} <= set(contents(folder))
        upper.unlink()
        Path("o.json").unlink()
    monkeypatch.setattr("onnx_igpc.data.file_guard._ignores_case", lambda folder: True)
    refused(folder, "are one file", *line)


def test_a_missing_input_is_what_is_said(folder: Path) -> None:
    refused(folder, "none.onnx does not exist", "inspect", "none.onnx", "--json", "o.json")


def test_resume_and_restart_exclude_each_other(folder: Path) -> None:
    result = run(*command("finetune"), "--resume", "--restart")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr
    with pytest.raises(UsageError, match="give one"):
        Run(resume=True, restart=True)
