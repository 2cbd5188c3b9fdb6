"""What every command shares: errors as one line and an exit code, output, groups of options."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import reduce, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_igpc.errors import IgpcError, UsageError, did_you_mean, with_flags

if TYPE_CHECKING:
    from rich.console import Console

    from onnx_igpc.data.file_guard import FileGuard

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
# The longest message; a hostile model's names can be of any length.
_MAX_ERROR = 2000


class IgpcGroup(click.Group):
    """A group that turns the user's mistakes into one line on stderr and the right exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _plain_warnings():
                return super().invoke(ctx)
        except IgpcError as error:
            _say_error(str(error))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as stopped:
            _say(str(stopped) or "stopped")
            ctx.exit(128 + signal.SIGINT)
        except (MemoryError, OSError, RuntimeError) as error:
            reason = _lacking(error)
            if reason is None:
                raise
            _say_error(reason)
            ctx.exit(UsageError.exit_code)
        except click.NoSuchOption as error:
            # The nearest one and no others: click lists up to three by the alphabet.
            near = difflib.get_close_matches(error.option_name, error.possibilities or [], n=1)
            raise click.NoSuchOption(error.option_name, None, near, error.ctx) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            hint = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f"No such command {args[0]!r}{hint or '.'}")
        return super().resolve_command(ctx, args)


def _say_error(text: str) -> None:
    """The reason why a command stops, see :func:`_say`; options by the names they have here."""
    _say(f"error: {with_flags(text)}")


def _say(text: str) -> None:
    """One line on stderr, in which nothing steers the terminal."""
    # printable would take rich along, which starting up should not wait for.
    from onnx_igpc.report.console.terminal import printable

    click.echo(printable(" ".join(text.split()))[:_MAX_ERROR], err=True)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Python's warnings as lines of this program, without files and source; none from NumPy's arithmetic.

    Whoever asks Python for warnings (-W, PYTHONWARNINGS) gets them as they are.
    """
    if sys.warnoptions:
        yield
        return
    said: set[str] = set()

    def say(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in said:
            said.add(text)
            _say(f"warning: {with_flags(text)}")

    with warnings.catch_warnings():
        # What overflows is found by its results, and said in words then.
        warnings.simplefilter("ignore", RuntimeWarning)
        # The signature is that of warnings.showwarning, of which only the message is wanted.
        warnings.showwarning = say
        yield


def _lacking(error: BaseException) -> str | None:
    """What the machine lacks, where that is why a command stopped; ``None`` for any other error."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", text, re.I):
        detail = f" ({text})" if text else ""
        return f"not enough memory{detail}: take fewer --samples, smaller batches or smaller inputs"
    if isinstance(error, OSError) and error.errno not in (None, errno.EPIPE):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return None


def console(quiet: bool = False) -> Console:
    """Where reports go: stdout, nothing when quiet; plain when piped, and sentences in one line then."""
    from onnx_igpc.report.console.terminal import SafeConsole

    return SafeConsole(quiet=quiet, highlight=False, soft_wrap=not _is_terminal())


def _is_terminal() -> bool:
    """Whether stdout is one; it is None where the caller has closed it."""
    return sys.stdout is not None and sys.stdout.isatty()


class OutputFile(click.Path):
    """The path of an output; ``-`` and every other name of stdout become ``-``."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from onnx_igpc.files.destinations import is_stdout

        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        return Path("-") if is_stdout(path) else path


OUTPUT = OutputFile()


def goes_to_stdout(*paths: Path | None) -> bool:
    """Whether one of the outputs has stdout for itself, where nothing else must be printed then."""
    return any(path is not None and str(path) == "-" for path in paths)


def output_path(path: Path) -> Path:
    """An output as the library takes it, which knows no ``-``."""
    from onnx_igpc.files.destinations import STDOUT

    return STDOUT if goes_to_stdout(path) else path


def check_files(guard: FileGuard, **outputs: Path | None) -> None:
    """Refuse, before any work, outputs that cannot be written, are read, or are one another.

    ``outputs`` are files by the name of their option: ``json``, ``save_sensitivity``. Models are put into
    the guard by their commands.

    Raises:
        UsageError: in one line, which; or ``report`` has neither the suffix of a page nor that of JSON.
    """
    from onnx_igpc.report.files import is_page

    for name, path in outputs.items():
        if path is not None:
            guard.writes(output_path(path), f"--{name.replace('_', '-')}")
    guard.check()
    if (report := outputs.get("report")) is not None:
        is_page(report)


def guard_model_output(
    guard: FileGuard, output: Path | None, source: Path, *, copied: bool = False
) -> None:
    """Tell the guard the model that ``-o`` names, made of ``source``; ``copied``: it may be its copy.

    Raises:
        UsageError: it cannot be written, or is a terminal.
    """
    if output is None:
        return
    if goes_to_stdout(output) and _is_terminal():
        raise UsageError("cannot write a model to a terminal: name a file with -o, or pipe it")
    guard.writes_model(output_path(output), "-o", source=source, copied=copied)


def write_text(path: Path, text: str) -> None:
    """Write to a file, whole or not at all, or to stdout for ``-``."""
    if goes_to_stdout(path):
        click.echo(text)
        return
    from onnx_igpc.graph.model import write_atomically

    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


def all_options(*options: Decorator) -> Decorator:
    """The options as one decorator, listed by ``--help`` in this order."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


def where_options(command: Command) -> Command:
    """``--provider`` and ``--threads``, for where a model will run that is made for that."""
    provider = click.option(
        "--provider",
        default="cpu",
        show_default=True,
        help="Where the model will run: cpu, cuda, tensorrt, openvino, ...",
    )
    threads = click.option("--threads", type=int, help="Threads of a run [onnxruntime's choice].")
    return provider(threads(command))


def option_group(name: str, kind: Callable[..., object], *options: Decorator) -> Decorator:
    """Give a command the values of the options as one argument ``name``: what ``kind`` makes of them.

    ``kind``: a dataclass or function whose parameters are called as the options are.
    """
    taken, together = tuple(signature(kind).parameters), all_options(*options)

    def decorate(command: Command) -> Command:
        @wraps(command)
        def grouped(**values: Any) -> Any:
            values[name] = kind(**{each: values.pop(each) for each in taken})
            return command(**values)

        return together(grouped)

    return decorate


label_offset_option = click.option(
    "--label-offset",
    type=int,
    help="Added to every label: 1 where the model has a background class in front.",
)
shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME:DIMS",
    help="Size of a dynamic input, as x:1,3,224,224.",
)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read ``name:1,3,224,224``; a name may itself have colons. Raises UsageError."""
    name, colon, dims = text.rpartition(":")
    try:
        shape = tuple(int(dim) for dim in dims.split(","))
    except ValueError:
        shape = ()
    if not colon or not name or not shape or min(shape) < 1:
        raise UsageError(f"--shape {text!r}: write it as name:1,3,224,224")
    return name, shape


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Read several ``name:1,3,224,224``."""
    return dict(parse_shape(text) for text in texts)
