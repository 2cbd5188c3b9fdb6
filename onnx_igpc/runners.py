"""One run of a session as it is timed: on a GPU inputs and outputs stay there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnx_igpc.runtime import (
    Session,
    import_onnxruntime,
    provider_label,
    provider_name,
    run_session,
)

# Where a provider's tensors live, as onnxruntime calls the device; not listed: in main memory.
_DEVICE = {"cuda": "cuda", "tensorrt": "cuda"}


def timed_run(
    session: Session, feeds: Mapping[str, np.ndarray], provider: str
) -> Callable[[], object]:
    """A function that runs the session once on ``feeds`` (arrays by input name).

    On a GPU inputs are copied there now and outputs are bound to it, so that copies between host and
    device are not in the time, and a run ends when the outputs are there. The session is run once
    here, before anything is timed. Raises ModelError where it cannot run.
    """
    device = _DEVICE.get(provider_label(provider_name(provider)))
    run_session(session, feeds)
    if device is None:
        return lambda: session.run(None, feeds)
    binding = session.io_binding()
    make = import_onnxruntime().OrtValue.ortvalue_from_numpy
    for name, values in feeds.items():
        binding.bind_ortvalue_input(name, make(values, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run
