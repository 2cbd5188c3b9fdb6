"""Which integers suit the place where a model will run."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from onnx_igpc.lowering.quantization.options import AUTO, Quantization
from onnx_igpc.runtime.session import PROVIDERS, provider_label, provider_name
from onnx_igpc.runtime.setting import Setting

# With these instructions, products of two bytes are added up in 32 bits; without, in 16, which overflow.
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8")
_X86 = ("x86_64", "amd64", "i386", "i686")
# These take no zero point but 0.
_SYMMETRIC = ("tensorrt", "cuda", "migraphx", "xnnpack")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Target:
    """The integers to use; ``reason`` says why weights have seven bits or eight."""

    activations: str
    symmetric: bool
    reduce_range: bool
    reason: str

    @classmethod
    def of(cls, options: Quantization, setting: Setting) -> Target:
        """What the options ask for, and what suits the provider where they leave it open."""
        label = provider_label(provider_name(setting.provider))
        symmetric = label in _SYMMETRIC
        suits = "int8" if symmetric or (label == "cpu" and not _is_x86()) else "uint8"
        chosen = suits if options.activations == AUTO else options.activations
        if options.reduce_range is not None:
            reduced, reason = options.reduce_range, "as asked for"
        else:
            reduced, reason = _reduced_range(label)
        return cls(chosen, symmetric and chosen == "int8", reduced, reason)


def _reduced_range(label: str) -> tuple[bool, str]:
    """Whether 8-bit weights would saturate on the provider, and why."""
    if PROVIDERS.get(label) != PROVIDERS["cpu"]:
        return False, f"{label} adds up in 32 bits"
    if not _is_x86():
        return False, f"{platform.machine()} adds up in 32 bits"
    flags = _cpu_flags()
    if flags is None:
        return True, "it is not known whether this processor has VNNI"
    found = next((each for each in _DOT_PRODUCTS if each in flags), None)
    if found is not None:
        return False, f"this processor has {found}"
    return True, "this processor has no VNNI, and its sums of 8-bit products could overflow"


def _is_x86() -> bool:
    return platform.machine().lower() in _X86


def _cpu_flags() -> frozenset[str] | None:
    """The instruction sets of the first processor as Linux lists them; ``None`` elsewhere."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    listed = next((line for line in lines if line.startswith("flags")), None)
    return None if listed is None else frozenset(listed.partition(":")[2].split())
