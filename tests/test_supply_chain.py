"""What the package depends on, that it never talks to a network, and that its wheel is reproducible."""

from __future__ import annotations

import ast
import configparser
import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "sample_models" / "digits_net.onnx"
CALIBRATION = ROOT / "sample_models" / "digits_calibration.npz"
SOURCES = [*(ROOT / "onnx_igpc").rglob("*.py"), *(ROOT / "passes").glob("*.py")]
NETWORK = frozenset(
    [
        "aiohttp",
        "asyncio",
        "boto3",
        "ftplib",
        "http",
        "httpx",
        "huggingface_hub",
        "imaplib",
        "nntplib",
        "poplib",
        "requests",
        "smtplib",
        "socket",
        "socketserver",
        "ssl",
        "telnetlib",
        "urllib",
        "urllib3",
        "webbrowser",
        "websockets",
        "xmlrpc",
    ]
)

# Runs the command line with every network event of the interpreter turned into an error.
NO_SOCKETS = """
import sys
def refuse(event, arguments):
    if event.split(".")[0] in ("socket", "urllib", "http", "ftplib", "smtplib"):
        raise AssertionError(f"the network was used: {event} {arguments}")
sys.addaudithook(refuse)
from onnx_igpc.cli import main
main()
"""


def requirements() -> dict[str, list[str]]:
    """The requirement lines of setup.cfg by extra; those of the package itself under ''."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: [line for line in text.splitlines() if line and not line.startswith("#")]
        for extra, text in lists.items()
    }


def name_and_bounds(requirement: str) -> tuple[str, str | None, str | None]:
    """The name of a requirement, its lower bound and its upper bound."""
    match = re.fullmatch(
        r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:>=([0-9.]+))?(?:,<([0-9.]+))?", requirement
    )
    assert match is not None, f"not 'name >=lower,<upper': {requirement}"
    return match[1].lower(), match[2], match[3]


def run_cli(*arguments: object) -> None:
    """Run the command line without a network and with every warning an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_SOCKETS, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"


def test_the_package_needs_few_others() -> None:
    assert len(requirements()[""]) <= 8


@pytest.mark.parametrize("extra", ["", "cpu", "gpu", "images", "torch"])
def test_what_users_install_is_bounded_on_both_sides(extra: str) -> None:
    for requirement in requirements()[extra]:
        _, lower, upper = name_and_bounds(requirement)
        assert lower, requirement
        assert upper, requirement


def test_every_requirement_has_a_lower_bound() -> None:
    for extra, lines in requirements().items():
        for requirement in lines:
            assert name_and_bounds(requirement)[1], f"{extra}: {requirement}"


def test_oldest_constraints_are_the_lower_bounds() -> None:
    """The job that installs the oldest versions installs those that setup.cfg names."""
    wanted = {}
    for extra in ("", "cpu", "images", "torch"):
        for requirement in requirements()[extra]:
            name, lower, _ = name_and_bounds(requirement)
            wanted[name] = lower
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert found.keys() == wanted.keys()
    for name, version in found.items():
        assert version == wanted[name] or version.startswith(f"{wanted[name]}."), name


def imports_of(source: Path) -> set[str]:
    """The first part of the name of every module that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value).split(".")[0])
    return found


def test_no_module_imports_the_network() -> None:
    assert SOURCES
    used = {source.name: imports_of(source) & NETWORK for source in SOURCES}
    assert not {name: modules for name, modules in used.items() if modules}


def test_everything_imported_is_declared() -> None:
    declared = {name_and_bounds(line)[0] for lines in requirements().values() for line in lines}
    # protobuf comes with onnx, whose messages are its classes.
    declared |= {"onnx-igpc", "protobuf"}
    providers = packages_distributions()
    for source in SOURCES:
        for module in imports_of(source) - sys.stdlib_module_names:
            names = {name.lower().replace("_", "-") for name in providers.get(module, [module])}
            assert names & declared, f"{source.name} imports {module}"


def test_commands_use_no_network_and_warn_of_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    run_cli("inspect", DIGITS)
    run_cli("compress", DIGITS, "-o", small, "--ch", 32, "--calibration", CALIBRATION)
    run_cli("report", small)
    run_cli("verify", DIGITS, small, "--data", CALIBRATION)
    run_cli("benchmark", DIGITS, small, "--rounds", 3)


def test_training_uses_no_network_and_warns_of_nothing(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    small, tuned = tmp_path / "small.onnx", tmp_path / "tuned.onnx"
    run_cli("compress", DIGITS, "-o", small, "--ch", 32)
    data = ("--data", CALIBRATION)
    run_cli("finetune", small, "--teacher", DIGITS, *data, "-o", tuned, "--epochs", 1)
    run_cli("to-torch", tuned, "-o", tmp_path / "state")
    weights = next((tmp_path / "state").glob("*.safetensors"))
    run_cli("from-torch", tuned, weights, "-o", tmp_path / "back.onnx")


def test_the_network_would_be_noticed() -> None:
    """The hook of the tests above does refuse a socket."""
    code = NO_SOCKETS.split("from onnx_igpc")[0] + "import socket; socket.socket()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the network was used" in done.stderr


def build_wheel(folder: Path) -> Path:
    """A wheel built from a copy of the sources in ``folder``."""
    source = folder / "source"
    for name in ("onnx_igpc", "passes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for file in source.rglob("*"):
        os.utime(file)  # a checkout has the times at which it was made
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(
        [*map(str, command), str(source)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_wheels_are_reproducible(tmp_path: Path) -> None:
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="77")
    digests = set()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        digests.add(hashlib.sha256(build_wheel(tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
