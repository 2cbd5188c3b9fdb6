"""What is written beside an output, and data in folders and archives."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from tests.data.guarded import C, command, contents, refused, run
from tests.helpers import pointwise_model


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
