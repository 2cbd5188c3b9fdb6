"""Nothing is written over what is read, nor one output over another: every command, every pair."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnx_igpc import compress
from onnx_igpc.cli import main
from onnx_igpc.data.file_guard import FileGuard
from onnx_igpc.data.sources import open_data
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.lowering.lower import lower_model
from onnx_igpc.lowering.options import Lowering
from onnx_igpc.planning.options import Budget, Published
from onnx_igpc.torch_bridge.training.options import Run
from tests.helpers import pointwise_model

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
}
ARGUMENTS = {
    "verify": ("outside.onnx", "small.onnx"),
    "benchmark": ("outside.onnx", "small.onnx"),
    "report": ("small.onnx",),
    "lower": ("small.onnx",),
    "finetune": ("small.onnx",),
    "from-torch": ("small.onnx", "state.pt"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the commands read, in which one stands."""
    monkeypatch.chdir(tmp_path)
    proto = pointwise_model(C, C)
    onnx.save(proto, "outside.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    compress("outside.onnx", Published(12)).save("small.onnx")
    values = np.random.default_rng(0).standard_normal((8, C, 5, 5)).astype(np.float32)
    for name in ("data", "val"):
        np.savez(f"{name}.npz", x=values)
    for name in ("pre.json", "s.json", "merged.json", "measure.py", "state.pt"):
        Path(name).write_text("{}")
    return tmp_path


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


class TestWhatIsWrittenBeside:
    def test_copies_keep_the_names_of_their_data(self, folder: Path) -> None:
        """Nothing is rewritten at 48 channels: out/ gets the model and w.bin."""
        line = ["compress", "outside.onnx", "--ch", 48]
        Path("out").mkdir()
        refused(folder, "external data is called", *line, "-o", "out/w.bin")
        message = "how external data of out/o.onnx is called"
        refused(folder, message, *line, "-o", "out/o.onnx", "--json", "out/w.bin")
        result = run(*line, "-o", "out/o.onnx", "--json", "out/o.json")
        assert result.exit_code == 0, result.output
        assert set(contents(folder / "out")) == {"o.onnx", "w.bin", "o.json"}

    def test_copies_of_data_in_a_folder_and_beside_a_link(self, folder: Path) -> None:
        Path("sub").mkdir()
        proto = pointwise_model(C, C)
        onnx.save(proto, "deep.onnx", save_as_external_data=True, location="sub/w.bin")
        for name in ("out/sub", "links"):
            Path(name).mkdir(parents=True)
        Path("links/o.onnx").symlink_to("../out/o.onnx")
        line = ["compress", "deep.onnx", "--ch", 48]
        message = "how external data of"
        refused(folder, message, *line, "-o", "out/o.onnx", "--json", "out/sub/w.bin")
        Path("links/sub").mkdir()
        refused(folder, message, *line, "-o", "links/o.onnx", "--report", "links/sub/w.bin")

    def test_a_log_on_stdout(self, folder: Path) -> None:
        result = run(*command("finetune", **{"--log": "-"}))
        assert result.exit_code == 2
        assert "cannot be stdout" in result.stderr

    @pytest.mark.parametrize("name", ["compress", "lower", "finetune"])
    def test_data_that_a_model_gets(self, name: str, folder: Path) -> None:
        file = f"out/o.onnx.{'0' * 16}.data"
        refused(folder, "how external data of", *command(name, **{"--json": file}))

    @pytest.mark.parametrize(
        "file", ["out/o.onnx.checkpoint", "out/o.finetune.csv", "out/o.finetune.json"]
    )
    def test_files_of_a_fine_tuning_run(self, file: str, folder: Path) -> None:
        refused(folder, "are one file", *command("finetune", **{"--json": file}))
        Path(file).symlink_to(folder / "val.npz")
        refused(folder, "is what --val reads", *command("finetune"))

    def test_a_log_over_the_output_or_the_data(self, folder: Path) -> None:
        line = command("finetune", **{"-o": "tuned.json", "--log": "tuned"})
        refused(folder, "-o and the log are one file", *line)
        Path("data.csv").symlink_to("data.npz")
        refused(folder, "is what --data reads", *command("finetune", **{"--log": "data"}))
        line = command("finetune", **{"--log": "pre"})
        refused(folder, "is what --preprocess reads", *line)

    def test_weights_in_a_folder(self, folder: Path) -> None:
        (folder / "weights").mkdir()
        (folder / "weights" / "weights.safetensors").symlink_to(folder / "small.onnx")
        refused(folder, "is the input itself", "to-torch", "small.onnx", "-o", "weights")

    def test_weights_that_are_read(self, folder: Path) -> None:
        (folder / "weights").mkdir()
        state = folder / "weights" / "weights.safetensors"
        state.write_bytes(b"weights")
        line = ["from-torch", "small.onnx", "weights", "-o", state]
        refused(folder, "is what STATE reads", *line)

    def test_a_cache_is_no_output(self, folder: Path) -> None:
        line = command("lower", **{"-o": "c", "--cache": "c"})
        refused(folder, "--cache and -o are one file", *line)


class TestDataFolders:
    @pytest.fixture
    def images(self, folder: Path) -> Path:
        images = folder / "images"
        for name in ("cat/a.png", "dog/b.JPG"):
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            (images / name).write_bytes(b"an image")
        return images

    def check(self, folder: Path, output: str | Path) -> None:
        for name, option in (("compress", "--calibration"), ("verify", "--data")):
            line = command(name, **{option: "images", "--json": output})
            refused(folder, "is among what", *line)

    def test_a_file_in_it(self, folder: Path, images: Path) -> None:
        self.check(folder, images / "cat" / "a.png")
        self.check(folder, "images/dog/../dog/b.JPG")

    def test_a_file_that_would_become_data(self, folder: Path, images: Path) -> None:
        """An .npz among images would be read in their place the next time."""
        self.check(folder, images / "new.npz")

    def test_hard_links_and_links(self, folder: Path, images: Path) -> None:
        os.link(images / "cat" / "a.png", "hard.json")
        self.check(folder, "hard.json")
        (folder / "elsewhere.json").write_bytes(b"an image")
        (images / "cat" / "c.png").symlink_to(folder / "elsewhere.json")
        self.check(folder, "elsewhere.json")

    def test_archives(self, folder: Path, images: Path) -> None:
        (folder / "images.tar").write_bytes(b"an archive")
        for data in ("images.tar", "images.tar/cat"):
            line = command("compress", **{"--calibration": data, "--json": "images.tar"})
            refused(folder, "is what --calibration reads", *line)
        (images / "shard.tar.gz").write_bytes(b"an archive")
        self.check(folder, images / "shard.tar.gz")

    def test_other_files_beside_the_data_are_free(self, folder: Path) -> None:
        """One who works among the data writes there, and writes again."""
        line = ["compress", "outside.onnx", "--ch", 12, "--calibration", "data", "-q"]
        Path("data").mkdir()
        os.link("data.npz", "data/a.npz")
        for _ in range(2):
            result = run(*line, "-o", "data/o.onnx", "--json", "data/o.json")
            assert result.exit_code == 0, result.output


class TestLibrary:
    def test_measurements_over_what_is_read(self, folder: Path) -> None:
        def check(file: str, calibration: object = "data.npz") -> None:
            before = contents(folder)
            with pytest.raises(UsageError, match="choose another output"):
                compress(
                    "outside.onnx",
                    Budget("pointwise-parameters=60%", sensitivity="s.json", save_sensitivity=file),
                    calibration=calibration,
                )
            assert contents(folder) == before

        for file in ("outside.onnx", "w.bin", "data.npz", "s.json"):
            check(file)
        check("data.npz", open_data("data.npz", model_inputs(onnx.load("outside.onnx"))))

    def test_results_know_what_was_read(self, folder: Path) -> None:
        result = compress("outside.onnx", Published(12), calibration="data.npz")
        before = contents(folder)
        for file in ("outside.onnx", "w.bin", "data.npz"):
            with pytest.raises(UsageError, match="choose another output"):
                result.save(file)
        lowered = lower_model("small.onnx", lowering=Lowering("literal"))
        [data] = folder.glob("small.onnx.*.data")
        for path in (data, "small.onnx"):
            with pytest.raises(UsageError, match="choose another output"):
                lowered.save(path)
        assert contents(folder) == before

    def test_models_in_memory_have_no_file(self, folder: Path) -> None:
        compress(pointwise_model(C, C), Published(12)).save("outside.onnx")
        assert not onnx.load("outside.onnx").graph.initializer[0].external_data

    def test_fine_tuning(self, folder: Path) -> None:
        pytest.importorskip("torch")
        from onnx_igpc.torch_bridge.training.finetune import finetune

        before = contents(folder)
        for output in ("small.onnx", "outside.onnx", "w.bin", "data.npz", "val.npz"):
            with pytest.raises(UsageError, match="choose another output"):
                finetune(
                    "small.onnx",
                    teacher="outside.onnx",
                    data="data.npz",
                    val="val.npz",
                    output=output,
                )
        assert contents(folder) == before

    def test_reads_without_files(self) -> None:
        guard = FileGuard()
        guard.reads_model(None, onnx.ModelProto())
        guard.reads_data(np.zeros(3), "data")
        guard.reads(None, "x")
        guard.writes(None, "x")
        guard.check()


def test_a_missing_input_is_what_is_said(folder: Path) -> None:
    refused(folder, "none.onnx does not exist", "inspect", "none.onnx", "--json", "o.json")


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "y" * 300, "a\0b", "none/at/all"])
def test_data_of_impossible_names(name: str, folder: Path) -> None:
    """What is wrong with data is said by whoever reads it; never an exception of the system."""
    guard = FileGuard()
    guard.reads_data(name, "--data")
    guard.reads(name, "--preprocess")
    guard.reads_model(name)
    guard.writes("o.json", "--json")
    guard.check()


def test_resume_and_restart_exclude_each_other(folder: Path) -> None:
    result = run(*command("finetune"), "--resume", "--restart")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr
    with pytest.raises(UsageError, match="give one"):
        Run(resume=True, restart=True)
