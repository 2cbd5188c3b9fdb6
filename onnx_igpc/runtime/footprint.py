"""What loading a model costs: time and peak memory, each model in a process of its own.

A process that has run one model cannot tell how much memory the next one needs, so
:func:`measure` starts ``python -m onnx_igpc.runtime.footprint`` and reads one line of JSON from it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from onnx_igpc.errors import ModelError

_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Footprint:
    """load_seconds: making the session. peak_bytes: peak resident memory of a process that loads the
    model and runs it once, loaded_bytes of it there before the model (Python, onnxruntime); None where
    the system does not tell. GPU memory is not in it.
    """

    load_seconds: float
    peak_bytes: int | None
    loaded_bytes: int | None


@dataclass(frozen=True)
class _Request:
    """What the process is to load."""

    path: str
    provider: str
    threads: int | None
    shapes: Mapping[str, Sequence[int]]


def measure(
    path: str | os.PathLike[str],
    *,
    provider: str = "cpu",
    threads: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Footprint:
    """Load a model and run it once on random inputs, in a new process.

    shapes: input shapes by name, dynamic dimensions included. Raises ModelError where that fails.
    """
    request = _Request(os.fspath(path), provider, threads, shapes or {})
    # The child must find this package also where the parent found it on its own path.
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    result = subprocess.run(
        [sys.executable, "-m", "onnx_igpc.runtime.footprint"],
        input=json.dumps(asdict(request)),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        env=os.environ | {"PYTHONPATH": search},
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise ModelError(f"{path}: measuring its memory failed: {lines[-1]}")
    return Footprint(**json.loads(result.stdout.splitlines()[-1]))


def _run(request: _Request) -> Footprint:
    from onnx_igpc.data.random_inputs import random_inputs
    from onnx_igpc.runtime.session import (
        import_onnxruntime,
        make_session,
        run_session,
        session_inputs,
    )

    import_onnxruntime()
    before = peak_memory()
    start = time.perf_counter()
    session = make_session(request.path, request.provider, threads=request.threads)
    load_seconds = time.perf_counter() - start
    run_session(session, random_inputs(session_inputs(session), shapes=request.shapes))
    return Footprint(load_seconds, peak_memory(), before)


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count what the parent held before this program was started.
        lines = status.read_text(encoding="utf-8").splitlines()
        kilobytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(kilobytes[0]) * 1024 if kilobytes else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    from onnx_igpc.errors import IgpcError

    try:
        print(json.dumps(asdict(_run(_Request(**json.load(sys.stdin))))))
    except IgpcError as failure:
        sys.exit(str(failure))
