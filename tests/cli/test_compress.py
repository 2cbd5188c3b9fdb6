"""The commands as a user runs them: exit codes, one-line errors, what is written and what is not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnx_igpc.cli import main
from onnx_igpc.errors import UsageError
from onnx_igpc.report.digest import DIGEST_KEY

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits_net.onnx"
HELD_OUT = DIGITS.with_name("digits_test.npz")
CALIBRATION = DIGITS.with_name("digits_calibration.npz")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_refused(result: Result, message: str, *absent: Path) -> None:
    """Exit code 2, one line on stderr with ``message`` in it, and nothing written."""
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output
    assert not [path for path in absent if path.exists()]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    output = tmp_path / "small.onnx"
    result = run("compress", DIGITS, "-o", output, "--ch", 32)
    assert result.exit_code == 0, result.output
    return output


def test_compress_writes_a_smaller_model_and_says_so(tmp_path: Path) -> None:
    output, report_file = tmp_path / "small.onnx", tmp_path / "report.json"
    result = run("compress", DIGITS, "-o", output, "--ch", 32, "--report", report_file)
    assert result.exit_code == 0, result.output
    report = json.loads(report_file.read_text())
    assert report["totals"]["file_bytes"] == {
        "before": DIGITS.stat().st_size,
        "after": output.stat().st_size,
    }
    assert output.stat().st_size < DIGITS.stat().st_size
    assert "8 of 10 pointwise rewritten" in result.stdout
    assert "178,826" in result.stdout
    # The damage comes before the savings: without data there is only the warning.
    warned = result.stdout.index("fitted without data")
    assert warned < result.stdout.index("rewritten")
    assert report["warnings"]


def test_compress_lists_every_pointwise_convolution(tmp_path: Path) -> None:
    result = run("compress", DIGITS, "-o", tmp_path / "o.onnx", "--ch", 32, "-v")
    for index in range(1, 10):
        assert f"conv_pw_{index}" in result.stdout
    assert "head: only Flatten before output 'logits' (conv_preds)" in result.stdout


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = run("compress", DIGITS, "--dry-run", "-o", tmp_path / "o.onnx")
    assert result.exit_code == 0, result.output
    assert "pointwise rewritten" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    result = run("compress", DIGITS, "-o", tmp_path / "o.onnx", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_the_same_command_writes_the_same_bytes(tmp_path: Path, small: Path) -> None:
    again = tmp_path / "again.onnx"
    assert run("compress", DIGITS, "-o", again, "--ch", 32).exit_code == 0
    assert again.read_bytes() == small.read_bytes()


def test_compressing_again_changes_nothing(tmp_path: Path, small: Path) -> None:
    again = tmp_path / "again.onnx"
    result = run("compress", small, "-o", again, "--ch", 32)
    assert result.exit_code == 0, result.output
    assert "nothing to rewrite" in result.output
    assert again.read_bytes() == small.read_bytes()


def test_nothing_to_rewrite_copies_the_input_with_a_warning(tmp_path: Path) -> None:
    output = tmp_path / "o.onnx"
    result = run("compress", DIGITS, "-o", output, "--ch", 1000)
    assert result.exit_code == 0
    assert "nothing to rewrite" in result.stderr
    assert output.read_bytes() == DIGITS.read_bytes()


def test_paper_form_is_random_and_says_so(tmp_path: Path) -> None:
    output = tmp_path / "o.onnx"
    result = run("compress", DIGITS, "-o", output, "--form", "paper", "--scheme", "v1")
    assert result.exit_code == 0, result.output
    assert "the weights are random" in result.stdout
    kinds = [node.op_type for node in onnx.load(output).graph.node]
    original = [node.op_type for node in onnx.load(DIGITS).graph.node]
    assert kinds.count("BatchNormalization") > original.count("BatchNormalization")


def test_inspect_shows_the_plan(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    result = run("inspect", DIGITS, "--ch", 32, "--json", plan)
    assert result.exit_code == 0, result.output
    assert "8 of 10 pointwise to rewrite" in result.stdout
    sites = {site["name"]: site for site in json.loads(plan.read_text())["sites"]}
    assert sites["conv_pw_9"]["k"]["groups"] == 6
    assert sites["conv_preds"]["status"] == "kept"


def test_json_on_stdout_is_nothing_but_json() -> None:
    result = run("inspect", DIGITS, "--json", "-")
    assert json.loads(result.stdout)["sites"]


def test_report_shows_what_compress_wrote(small: Path) -> None:
    result = run("report", small)
    assert result.exit_code == 0, result.output
    assert "8 of 10 pointwise rewritten" in result.stdout
    assert "fitted without data" in result.stdout


def test_report_refuses_a_model_without_one() -> None:
    assert_refused(run("report", DIGITS), "carries no report")


def test_report_of_a_damaged_digest_is_one_line(tmp_path: Path, small: Path) -> None:
    model = onnx.load(small)
    for entry in model.metadata_props:
        if entry.key == DIGEST_KEY:
            entry.value = entry.value[:100]
    damaged = tmp_path / "damaged.onnx"
    onnx.save(model, damaged)
    assert_refused(run("report", damaged), "report")


def test_verify_shows_agreement_and_accuracy(small: Path) -> None:
    result = run("verify", DIGITS, small, "--data", HELD_OUT)
    assert result.exit_code == 0, result.output
    assert "top-1 agreement" in result.stdout
    assert "top-1 accuracy 98.3% ->" in result.stdout
    assert "cpu ran" in result.stdout


def test_verify_exits_1_below_the_agreement_asked_for(small: Path) -> None:
    result = run("verify", DIGITS, small, "--data", HELD_OUT, "--min-agreement", 0.99)
    assert result.exit_code == 1
    assert "failed:" in result.stdout
    same = run("verify", DIGITS, DIGITS, "--data", HELD_OUT, "--min-agreement", 1.0)
    assert same.exit_code == 0, same.output


def test_verify_preprocesses_as_the_model_was_calibrated(tmp_path: Path) -> None:
    from PIL import Image

    images, small = tmp_path / "images", tmp_path / "small.onnx"
    images.mkdir()
    for number, digit in enumerate(np.load(CALIBRATION)["input"][:20]):
        pixels = (digit.reshape(8, 8) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    how = ("--scale", 0.005, "--mean", 0.25)
    written = run("compress", DIGITS, "-o", small, "--ch", 32, "--calibration", images, *how)
    assert written.exit_code == 0, written.output
    plain, told = (
        json.loads(run("verify", DIGITS, small, "--data", images, "--json", "-", *options).stdout)
        for options in ((), how)
    )
    assert plain["data"]["preprocessing"]["scale"] == 0.005
    assert plain == told
    # Arrays are taken as they are, whatever the images were.
    assert run("verify", DIGITS, small, "--data", HELD_OUT).exit_code == 0


def test_verify_without_data_warns() -> None:
    result = run("verify", DIGITS, DIGITS)
    assert result.exit_code == 0, result.output
    assert "compared on random inputs" in result.stdout


def test_verify_refuses_a_provider_that_is_not_there() -> None:
    result = run("verify", DIGITS, DIGITS, "--provider", "cuda")
    assert result.exit_code == 1
    assert "onnx-igpc[gpu]" in result.stderr


def test_benchmark_races_models(small: Path) -> None:
    result = run("benchmark", DIGITS, small, "--rounds", 3, "--batch", 1, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "batch 1, threads 1" in result.stdout


class TestBadInput:
    """Exit code 2, one line, nothing written."""

    def test_missing_model(self, tmp_path: Path) -> None:
        output = tmp_path / "o.onnx"
        result = run("compress", tmp_path / "none.onnx", "-o", output)
        assert_refused(result, "does not exist", output)

    def test_not_an_onnx_file(self, tmp_path: Path) -> None:
        text, output = tmp_path / "text.onnx", tmp_path / "o.onnx"
        text.write_text("this is not a model\n" * 50)
        assert_refused(run("compress", text, "-o", output), "not an ONNX model", output)

    def test_truncated_file(self, tmp_path: Path) -> None:
        cut, output = tmp_path / "cut.onnx", tmp_path / "o.onnx"
        data = DIGITS.read_bytes()
        for tenth in range(10):
            cut.write_bytes(data[: len(data) * tenth // 10])
            assert_refused(run("compress", cut, "-o", output), str(cut), output)

    def test_missing_external_data(self, tmp_path: Path) -> None:
        model, output = tmp_path / "m.onnx", tmp_path / "o.onnx"
        onnx.save(onnx.load(DIGITS), model, save_as_external_data=True, location="m.data")
        (tmp_path / "m.data").unlink()
        assert_refused(run("compress", model, "-o", output), "m.data", output)

    def test_external_data_outside_the_folder(self, tmp_path: Path) -> None:
        inner = tmp_path / "inner"
        inner.mkdir()
        model, output = inner / "m.onnx", tmp_path / "o.onnx"
        onnx.save(onnx.load(DIGITS), model, save_as_external_data=True, location="m.data")
        (inner / "m.data").rename(tmp_path / "m.data")
        proto = onnx.load(model, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../m.data"
        model.write_bytes(proto.SerializeToString())
        assert_refused(run("compress", model, "-o", output), "outside the model's folder", output)

    def test_ch_below_one(self, tmp_path: Path) -> None:
        output = tmp_path / "o.onnx"
        assert_refused(run("compress", DIGITS, "-o", output, "--ch", 0), "at least 1", output)

    @pytest.mark.parametrize("option", ["--include", "--exclude"])
    def test_glob_that_matches_nothing(self, tmp_path: Path, option: str) -> None:
        output = tmp_path / "o.onnx"
        result = run("compress", DIGITS, "-o", output, option, "conv_pv_*")
        assert_refused(result, "near matches: conv_pw_", output)

    def test_output_in_a_missing_folder(self, tmp_path: Path) -> None:
        result = run("compress", DIGITS, "-o", tmp_path / "no" / "o.onnx")
        assert_refused(result, "does not exist")

    def test_output_equal_to_input(self, tmp_path: Path) -> None:
        model = tmp_path / "m.onnx"
        model.write_bytes(DIGITS.read_bytes())
        assert_refused(run("compress", model, "-o", model), "is the input itself")
        assert model.read_bytes() == DIGITS.read_bytes()

    def test_report_over_the_input(self, tmp_path: Path) -> None:
        model, output = tmp_path / "m.onnx", tmp_path / "o.onnx"
        model.write_bytes(DIGITS.read_bytes())
        result = run("compress", model, "-o", output, "--report", model)
        assert_refused(result, "is the input itself", output)

    def test_paper_form_cannot_be_fitted(self, tmp_path: Path) -> None:
        output = tmp_path / "o.onnx"
        result = run("compress", DIGITS, "-o", output, "--form", "paper", "--init", "fitted")
        assert_refused(result, "cannot be fitted", output)

    def test_no_output_named(self) -> None:
        assert run("compress", DIGITS).exit_code == 2

    def test_mistyped_command_suggests_the_nearest(self) -> None:
        result = run("compres", DIGITS)
        assert result.exit_code == 2
        assert "Did you mean 'compress'?" in result.stderr


def test_compressed_model_runs_on_any_batch(small: Path) -> None:
    from onnx_igpc.runtime.session import make_session, run_session

    session = make_session(small)
    name = session.get_inputs()[0].name
    for batch in (1, 4):
        outputs = run_session(session, {name: np.zeros((batch, 1, 8, 8), np.float32)})
        assert next(iter(outputs.values())).shape == (batch, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--family", "extended"), "is chosen from by a budget: give --target"),
        (("--sensitivity", "x.json"), "--sensitivity belongs to a budget: give --target"),
        (("--target", "macs=40%", "--ch", 8), "--ch and --target both say how small"),
        (("--target", "macs=40%"), "--target needs data to choose by: give --calibration"),
        (("--scale", 0.5), "preprocessing is for calibration images: give --calibration as well"),
    ],
)
def test_options_of_compress_that_do_not_go_together(
    tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    result = run("compress", DIGITS, "-o", tmp_path / "small.onnx", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "small.onnx").exists()


def test_python_warnings_are_lines_of_this_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def warn(*_: object, **__: object) -> None:
        warnings.warn("something\nis old", UserWarning, stacklevel=1)
        warnings.warn("something\nis old", UserWarning, stacklevel=1)
        np.float32(1e30) * np.float32(1e30)
        raise UsageError("stop")

    monkeypatch.setattr("onnx_igpc.compression.pipeline.inspect", warn)
    result = run("inspect", tmp_path / "m.onnx")
    assert result.stderr.splitlines() == ["warning: something is old", "error: stop"]
