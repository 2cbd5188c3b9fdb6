"""Which integers suit a provider and a processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_igpc.errors import UsageError
from onnx_igpc.lowering.quantization import target
from onnx_igpc.lowering.quantization.options import Quantization
from onnx_igpc.lowering.quantization.target import Target
from onnx_igpc.runtime.setting import Setting


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An x86 processor, whose instructions the file that is returned lists."""
    monkeypatch.setattr(target.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(target, "_CPUINFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


def on(provider: str = "cpu", **options: object) -> Target:
    return Target.of(Quantization(**options), Setting(provider))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "reduced"),
    [("avx2 avx512_vnni", False), ("avx2 avx_vnni", False), ("avx2 avx512f", True)],
)
def test_weights_have_seven_bits_where_sums_would_overflow(
    processor: Path, flags: str, reduced: bool
) -> None:
    processor.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n")
    found = on()
    assert (found.activations, found.symmetric, found.reduce_range) == ("uint8", False, reduced)
    assert ("no VNNI" in found.reason) is reduced


def test_what_is_not_known_is_said(processor: Path) -> None:
    assert on().reduce_range
    assert "not known" in on().reason


def test_what_is_asked_for_is_taken(processor: Path) -> None:
    processor.write_text("flags : avx2\n")
    found = on(reduce_range=False, activations="int8")
    assert (found.activations, found.reduce_range) == ("int8", False)
    assert found.reason == "as asked for"


def test_other_processors_add_up_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.platform, "machine", lambda: "aarch64")
    assert on() == Target("int8", False, False, "aarch64 adds up in 32 bits")


def test_tensorrt_has_no_zero_points(processor: Path) -> None:
    found = on("tensorrt")
    assert (found.activations, found.symmetric, found.reduce_range) == ("int8", True, False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "minmx"}, "method 'minmx': choose from auto, minmax, .*Did you mean 'minmax'"),
        ({"activations": "int4"}, "activations 'int4': choose from auto, uint8, int8"),
        ({"exclude": 3}, "exclude takes one text or several"),
    ],
)
def test_options_that_do_not_exist(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Quantization(**given)  # type: ignore[arg-type]
