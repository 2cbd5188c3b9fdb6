"""What every command does alike on a terminal and in a pipe: progress, JSON, quiet, help, suggestions."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import onnx
import pytest
from click.testing import CliRunner, Result

from onnx_igpc.cli import main
from onnx_igpc.cli import progress as cli_progress
from onnx_igpc.cli.options import IgpcGroup
from onnx_igpc.cli.progress import ProgressLine
from onnx_igpc.errors import did_you_mean
from tests.torch_bridge.training_cases import classifier, smaller, write_data

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits_net.onnx"
IMAGES = DIGITS.with_name("digits_calibration.npz")
COMMANDS = sorted(main.commands)
DOING = {
    "compress": "compressing ",
    "budget": "compressing ",
    "verify": "verifying",
    "benchmark": "benchmarking at batch 1",
    "finetune": "fine-tuning epoch 1/1",
}


def run(*arguments: object, **settings: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **settings)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    assert run("compress", DIGITS, "-o", path, "--ch", 32).exit_code == 0
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    teacher = classifier()
    onnx.save(teacher, folder / "teacher.onnx")
    onnx.save(smaller(teacher), folder / "small.onnx")
    write_data(folder / "d.npz", teacher)
    return folder


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress as on a terminal, from the first moment on."""
    monkeypatch.setattr(cli_progress, "SHOW_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(cli_progress, "_REDRAW_SECONDS", 0.02)
    monkeypatch.setattr(cli_progress, "_is_terminal", lambda: True)


def long_commands(folder: Path, small: Path, trained: Path) -> dict[str, list[object]]:
    """Each command that can take more than a second."""
    teacher, data = trained / "teacher.onnx", trained / "d.npz"
    calibrated = ["compress", teacher, "-o", folder / "c.onnx", "--calibration", data]
    return {
        "compress": [*calibrated, "--samples", 32, "--ch", 4],
        "budget": [*calibrated, "--samples", 16, "--target", "macs=90%"],
        "verify": ["verify", DIGITS, small, "--data", IMAGES],
        "benchmark": ["benchmark", DIGITS, small, "--rounds", 3, "--threads", 1],
        "finetune": [
            *("finetune", trained / "small.onnx", "--teacher", teacher),
            *("--data", data, "-o", folder / "f.onnx", "--epochs", 1, "--restart"),
        ],
    }


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", DOING)
def test_progress_is_on_stderr_only_and_goes_away(
    name: str, tmp_path: Path, small: Path, trained: Path
) -> None:
    words = long_commands(tmp_path, small, trained)[name]
    result = run(*words)
    assert result.exit_code == 0, result.output
    text = plain(result.stderr)
    assert DOING[name] in text
    assert re.search(r"━ +\d+% 0:0", text)
    assert "\x1b" not in result.stdout
    assert "━" not in result.stdout


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", ["compress", "verify", "benchmark", "finetune"])
def test_quiet_shows_nothing(name: str, tmp_path: Path, small: Path, trained: Path) -> None:
    result = run(*long_commands(tmp_path, small, trained)[name], "-q")
    assert (result.exit_code, result.output) == (0, "")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("name", ["compress", "verify", "benchmark"])
def test_no_progress_where_stderr_is_no_terminal(
    name: str, tmp_path: Path, small: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_progress, "SHOW_AFTER_SECONDS", 0.0)
    result = run(*long_commands(tmp_path, small, trained)[name])
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.usefixtures("at_once")
def test_an_undisturbed_line_draws_only_when_it_is_moved_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[str] = []
    draw = ProgressLine._draw

    def noted(line: ProgressLine) -> None:
        drawn.append(threading.current_thread().name)
        draw(line)

    monkeypatch.setattr(ProgressLine, "_draw", noted)
    monkeypatch.setattr(cli_progress, "_REDRAW_SECONDS", 0.001)
    with ProgressLine("racing", undisturbed=True) as line:
        line.update(0, 10, "at batch 1")
        drawn.clear()
        threading.Event().wait(0.05)
        assert drawn == []
        line.update(1, 10, "at batch 1")
        assert drawn == ["MainThread"]


def test_the_time_left_is_foretold_by_the_pace_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(cli_progress.time, "monotonic", lambda: now[0])
    pace = cli_progress._Pace()
    assert pace.left() == ""
    pace.update(0, 1000)
    now[0] += 10.0
    pace.update(10, 1000)
    assert pace.left() == "", "too little is done to say"
    now[0] += 10.0
    pace.update(250, 1000)
    assert pace.left() == "60 s left"
    pace.update(2, 8)
    assert pace.left() == "", "another count begins"
    now[0] += 120.0
    pace.update(4, 8)
    assert pace.left() == "4 min left"
    pace.update(1, 8)
    assert pace.left() == ""


def test_a_line_that_stays_is_written_without_a_terminal_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressLine("x") as line:
        line.log("epoch [1]")
    with ProgressLine("x", quiet=True) as line:
        line.log("nothing")
    assert capsys.readouterr().err == "epoch [1]\n"


@pytest.mark.parametrize("name", ["inspect", "compress", "report", "verify", "benchmark"])
def test_json_on_stdout_is_nothing_but_json(name: str, tmp_path: Path, small: Path) -> None:
    words: dict[str, list[object]] = {
        "inspect": [DIGITS],
        "compress": [DIGITS, "-o", tmp_path / "o.onnx"],
        "report": [small],
        "verify": [DIGITS, small],
        "benchmark": [DIGITS, small, "--rounds", 2],
    }
    result = run(name, *words[name], "--json", "-")
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout), dict)


def test_json_of_finetune(tmp_path: Path, trained: Path, small: Path) -> None:
    result = run(*long_commands(tmp_path, small, trained)["finetune"], "--json", "-")
    assert json.loads(result.stdout)["finetune"]["epochs"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_quiet_and_shows_an_example(name: str) -> None:
    command = main.commands[name]
    assert "--quiet" in {option for each in command.params for option in each.opts}
    assert (command.epilog or "").startswith(f"Example: onnx-igpc {name} ")
    help_text = run(name, "--help", terminal_width=80).stdout
    assert max(map(len, help_text.splitlines())) <= 80
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts} has no help"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_the_help_is_a_command_line_that_parses(name: str) -> None:
    command = main.commands[name]
    words = (command.epilog or "").removeprefix(f"Example: onnx-igpc {name} ").split()
    command.make_context(name, words)  # raises UsageError for an option that there is not


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["verfy"], "verify"),
        (["bench"], "benchmark"),
        (["compress", "m.onnx", "--calibraton", "x"], "--calibration"),
        (["finetune", "m.onnx", "--techer", "1"], "--teacher"),
        (["verify", DIGITS, DIGITS, "--provider", "cudda"], "cuda"),
        (["compress", DIGITS, "--dry-run", "--target", "pointwise-mac=4%"], "pointwise-macs"),
    ],
)
def test_what_is_mistyped_suggests_the_nearest(words: list[object], nearest: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert re.search(rf"Did you mean '?{nearest}'?\?", result.stderr), result.stderr


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["cpu", "cuda"]) == ""
    assert "Did you mean" not in run("xyzzy").stderr


def test_version_names_what_it_works_with() -> None:
    lines = run("--version").stdout.splitlines()
    names = [line.split()[0] for line in lines]
    assert names[0] == "onnx-igpc"
    for package in ("onnx", "torch"):
        assert package in names
    assert {"onnxruntime", "onnxruntime-gpu"} & set(names)
    assert all(re.fullmatch(r"[\w-]+ \d+\.\d+\S*", line) for line in lines)


def on_a_terminal(words: list[str], **environment: str) -> str:
    """What the command writes when stdout is a terminal of 80 columns."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "onnx_igpc", *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )
    os.close(slave)
    written = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        written += part
    os.close(master)
    assert process.wait() == 0
    return written.decode()


def test_colours_on_a_terminal_unless_no_color(small: Path) -> None:
    assert re.search(r"\x1b\[[0-9;]*3\dm", on_a_terminal(["report", str(small)]))
    without = on_a_terminal(["report", str(small)], NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*[34]\dm", without)
    assert max(map(len, plain(without).replace("\r", "").splitlines())) <= 80


def test_a_pipe_gets_whole_lines_and_no_colours(small: Path) -> None:
    text = run("verify", small, small).stdout
    assert "\x1b" not in text
    [warning] = [line for line in text.splitlines() if line.startswith("warning: ")]
    assert len(warning) > 80
    assert warning.endswith("for your use")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    script = run(env={"_ONNX_IGPC_COMPLETE": f"{shell}_source"}, prog_name="onnx-igpc")
    assert "_ONNX_IGPC_COMPLETE" in script.stdout
    completed = complete(main, "compress", "--cal")
    assert completed == ["--calibration"]
    assert complete(main, "", "ver") == ["verify"]


def complete(group: IgpcGroup | click.Group, words: str, incomplete: str) -> list[str]:
    from click.shell_completion import ShellComplete

    found: Callable[[list[str], str], list] = ShellComplete(
        group, {}, "onnx-igpc", "_ONNX_IGPC_COMPLETE"
    ).get_completions
    return [item.value for item in found(words.split(), incomplete)]


def test_ctrl_c_is_one_line_and_not_a_check_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_igpc.compression.pipeline.inspect", stopped)
    result = run("inspect", DIGITS)
    assert result.exit_code == 130
    assert result.output == "stopped\n"
