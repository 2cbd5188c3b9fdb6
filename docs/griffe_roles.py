"""For the page that is made from docstrings: roles as plain names, and passes/ where it is installed."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`(~?)([^`]+)`")


def _shown(found: re.Match[str]) -> str:
    name = found[2].rpartition(".")[2] if found[1] else found[2]
    return f"`{name}`"


class Roles(griffe.Extension):
    """``:func:`~package.name``` is shown as ``name``; ``passes`` is found as ``onnx_igpc.passes``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_shown, obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        if pkg.path == "onnx_igpc" and "passes" not in pkg.members:
            pkg.set_member("passes", loader.load("passes", try_relative_path=False))
