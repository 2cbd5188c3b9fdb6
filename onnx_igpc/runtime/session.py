"""onnxruntime sessions and execution providers: the one place that makes a session.

onnxruntime is imported when a session is asked for, not before. It falls back to the CPU without
an exception when a provider's libraries cannot be loaded; here that is an error, always.
"""

from __future__ import annotations

import os
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from onnx_igpc.errors import (
    CheckFailedError,
    IgpcError,
    MissingExtraError,
    ModelError,
    UsageError,
    did_you_mean,
)
from onnx_igpc.graph.inputs import RUNTIME_TYPES, InputSpec, element_type, input_spec
from onnx_igpc.runtime.session_source import AnyModel, session_source


def session_inputs(session: Session) -> list[InputSpec]:
    """The inputs of a session; initializers that are also listed as inputs are not among them."""
    return [input_spec(arg.name, arg.type, arg.shape) for arg in session.get_inputs()]


def other_outputs(session: Session) -> dict[str, str]:
    """The types of a session's outputs that are no tensors of numbers, by name: strings, sequences, maps."""
    return {
        arg.name: str(arg.type)
        for arg in session.get_outputs()
        if element_type(arg.type) not in RUNTIME_TYPES
    }


def session_outputs(session: Session) -> list[InputSpec]:
    """The outputs of a session that are tensors of numbers or booleans, described as inputs are."""
    return [
        input_spec(arg.name, arg.type, arg.shape)
        for arg in session.get_outputs()
        if element_type(arg.type) in RUNTIME_TYPES
    ]


PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Execution providers by the short name that options take."""

_INSTALL = {
    "cuda": "pip uninstall onnxruntime, then pip install 'onnx-igpc[gpu]'",
    "tensorrt": "pip uninstall onnxruntime, then pip install 'onnx-igpc[gpu]' tensorrt",
    "openvino": "pip uninstall onnxruntime, then pip install onnxruntime-openvino",
    "directml": "pip uninstall onnxruntime, then pip install onnxruntime-directml",
    "migraphx": "pip uninstall onnxruntime, then pip install onnxruntime-migraphx",
    "qnn": "pip uninstall onnxruntime, then pip install onnxruntime-qnn",
}
_OPTIMIZATION = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_ERROR_NAMES = (
    "EPFail",
    "EngineError",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "ModelLoaded",
    "ModelRequiresCompilation",
    "NoModel",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)


class Session(Protocol):
    """What the project uses of ``onnxruntime.InferenceSession``."""

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], /
    ) -> list[Any]: ...
    def get_inputs(self) -> list[Any]: ...
    def get_outputs(self) -> list[Any]: ...
    def get_providers(self) -> list[str]: ...
    def end_profiling(self) -> str: ...
    def io_binding(self) -> Any: ...
    def run_with_iobinding(self, iobinding: Any, /) -> None: ...


def import_onnxruntime(purpose: str = "running a model") -> Any:
    """The onnxruntime module; :class:`MissingExtraError` where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu", purpose) from error
    return onnxruntime


def provider_name(provider: str) -> str:
    """onnxruntime's name of an execution provider given by short or full name.

    Raises :class:`UsageError` for a name that is neither.
    """
    if provider in PROVIDERS.values():
        return provider
    try:
        return PROVIDERS[provider.lower()]
    except KeyError:
        known = ", ".join(PROVIDERS)
        hint = did_you_mean(provider.lower(), PROVIDERS)
        raise UsageError(
            f"unknown execution provider {provider!r}: choose from {known}{hint}"
        ) from None


def provider_label(name: str) -> str:
    """The short name of an execution provider: ``cuda`` for ``CUDAExecutionProvider``."""
    short = {full: label for label, full in PROVIDERS.items()}
    return short.get(name, name.removesuffix("ExecutionProvider").lower())


def make_session(
    model: AnyModel,
    provider: str = "cpu",
    *,
    threads: int | None = None,
    optimization: str = "all",
    profile: str | os.PathLike[str] | None = None,
    extra_outputs: Sequence[str] = (),
    spinning: bool = False,
) -> Session:
    """An ``onnxruntime.InferenceSession`` that runs on the provider asked for.

    model: a path, a ModelProto or an OpenModel, of any size: what does not fit into one protobuf
    message goes through a temporary folder that lives as long as the session. threads: intra-operator
    threads, None for onnxruntime's choice. optimization: none, basic, extended or all. profile: the
    prefix of the profile file, which ``session.end_profiling()`` writes and names. extra_outputs:
    names of inner tensors that become graph outputs after the model's own. spinning: between runs, too,
    threads wait for work without sleeping, as they do between the nodes of one run: for a session
    that has the processors to itself.

    Raises MissingExtraError without onnxruntime, UsageError for a provider that nobody knows,
    ModelError for a model that it cannot load, and CheckFailedError for a provider that the installed
    onnxruntime does not have, and where it fell back to another one than was asked for.
    """
    runtime = import_onnxruntime()
    wanted = provider_name(provider)
    providers = _provider_chain(runtime, wanted)
    options = _session_options(runtime, threads, optimization, profile, spinning)
    label = str(model) if isinstance(model, (str, os.PathLike)) else "the model"
    source = session_source(model, extra_outputs)
    if source.external_dir is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(source.external_dir))
    if wanted == PROVIDERS["cuda"] and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # finds the CUDA libraries that pip installed
    heard: list[str] = []
    try:
        with _native_stderr(heard, active=wanted != PROVIDERS["cpu"]):
            session: Session = runtime.InferenceSession(
                source.model,
                options,
                providers=providers,
                # Without this, onnxruntime answers a failing provider by retrying on the CPU.
                enable_fallback=0,
            )
    except _errors(runtime) as error:
        raise _load_error(label, wanted, error) from error
    check_provider(session, wanted, heard)
    if source.folder is not None:
        weakref.finalize(session, source.folder.cleanup)
    return session


def check_provider(session: Session, provider: str, heard: Sequence[str] = ()) -> None:
    """Raise CheckFailedError where a session does not have the execution provider asked for.

    heard: what onnxruntime wrote to stderr while it made the session; its last error is quoted.
    """
    wanted = provider_name(provider)
    present = session.get_providers()
    if wanted in present:
        return
    reasons = [line for line in heard if "[E:" in line or "rror" in line]
    reason = _one_line(reasons[-1]) if reasons else "it could not load that provider's libraries"
    used = " and ".join(provider_label(name).upper() for name in present)
    raise CheckFailedError(
        f"asked for {provider_label(wanted)} but onnxruntime fell back to {used}: {reason}"
    )


def run_session(
    session: Session, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Run a session once: output arrays by name; ModelError in one line where it fails."""
    runtime = import_onnxruntime()
    names = list(outputs) if outputs else [output.name for output in session.get_outputs()]
    try:
        values = session.run(names, feeds)
    except _errors(runtime) as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        if _lacks_memory(error):
            raise ModelError(
                f"not enough memory to run the model on {shapes}: {_one_line(str(error))[-80:]}"
            ) from error
        raise ModelError(
            f"the model cannot run on {shapes}: {_one_line(str(error))}{_advice(str(error))}"
        ) from error
    return dict(zip(names, values, strict=True))


def _provider_chain(runtime: Any, wanted: str) -> list[str]:
    """The provider asked for and, behind it, those that take the nodes it does not support."""
    available = runtime.get_available_providers()
    label = provider_label(wanted)
    if wanted not in available:
        have = ", ".join(provider_label(name) for name in available)
        how = _INSTALL.get(label, "install an onnxruntime build that has it")
        raise CheckFailedError(
            f"execution provider {label} is not in the installed onnxruntime "
            f"{runtime.__version__}, which has {have}: {how}"
        )
    chain = [wanted, PROVIDERS["cpu"]] if label != "cpu" else [wanted]
    if label == "tensorrt" and PROVIDERS["cuda"] in available:
        chain.insert(1, PROVIDERS["cuda"])
    return chain


def _session_options(
    runtime: Any,
    threads: int | None,
    optimization: str,
    profile: str | os.PathLike[str] | None,
    spinning: bool,
) -> Any:
    options = runtime.SessionOptions()
    # What goes wrong comes as an exception with the same text; the log would only repeat it.
    options.log_severity_level = 4
    # Idle threads of one session would otherwise keep spinning for a while and take the processors
    # from the session whose turn is next: models raced at 2 threads on 2 processors ran at half speed.
    options.add_session_config_entry("session.force_spinning_stop", str(int(not spinning)))
    if optimization not in _OPTIMIZATION:
        raise UsageError(f"optimization {optimization!r}: choose from {', '.join(_OPTIMIZATION)}")
    level = _OPTIMIZATION[optimization]
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
    return options


@contextmanager
def _native_stderr(heard: list[str], *, active: bool) -> Iterator[None]:
    """Collect what native code writes to stderr: the only place where a fallback gives its reason."""
    if not active:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            heard.extend(sink.read().decode(errors="replace").splitlines())


def _errors(runtime: Any) -> tuple[type[Exception], ...]:
    """onnxruntime's exceptions: siblings under Exception with no class of their own in common."""
    state = runtime.capi.onnxruntime_pybind11_state
    named = [getattr(state, name) for name in _ERROR_NAMES if hasattr(state, name)]
    return (*named, RuntimeError, ValueError)


def _lacks_memory(error: Exception) -> bool:
    text = str(error).lower()
    return "allocate memory" in text or "bad_alloc" in text


def _load_error(label: str, wanted: str, error: Exception) -> IgpcError:
    if _lacks_memory(error):
        return ModelError(f"not enough memory to load {label}: {_one_line(str(error))[-80:]}")
    text = _one_line(str(error)) + _advice(str(error))
    if wanted == PROVIDERS["cpu"]:
        return ModelError(f"{label}: onnxruntime cannot load it: {text}")
    return CheckFailedError(
        f"{label}: onnxruntime cannot run it on {provider_label(wanted)}: {text}"
    )


_CHANNELS = "give data, or sizes in `shapes`, with the channels that the model takes"
_ADVICE = {
    "two nodes with same node name": "give every node a name of its own, or none",
    "is not a registered function/op": "only what runs nothing works, as compress without "
    "`calibration`",
    "Input channels C is not equal": _CHANNELS,
    "running ReorderInput node": _CHANNELS,
    "running Reshape node": "if its Reshape takes one batch size only, export the model with a "
    "dynamic batch, or with that batch size in its input's shape",
}


def _advice(text: str) -> str:
    """What to do about an error of onnxruntime that says only what it met; empty if nobody knows."""
    return next((f" ({what})" for reason, what in _ADVICE.items() if reason in text), "")


def _one_line(text: str) -> str:
    """onnxruntime's message without its error code prefix, colours and line breaks."""
    line = " ".join(text.replace("\x1b[m", "").split())
    return line.removeprefix("[ONNXRuntimeError] : ")[:400]
