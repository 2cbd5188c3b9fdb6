"""The file in which measurements of candidates are kept, so that another budget need not make them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_igpc.errors import UsageError, first_line
from onnx_igpc.graph.model import PathLike, write_atomically
from onnx_igpc.layout.serialization import layout_from_dict, layout_to_dict
from onnx_igpc.planning.site_damages import Fitted, SiteCandidates
from onnx_igpc.sites.find import Rewritable

SENSITIVITY_VERSION = 2


def weight_digest(site: Rewritable) -> str:
    """What tells the weight of a site from others."""
    return hashlib.sha256(np.ascontiguousarray(site.weight_matrix()).tobytes()).hexdigest()[:16]


def save_sensitivity(
    path: PathLike, planned: Sequence[SiteCandidates], measure: str, samples: int
) -> None:
    """Write the candidates of every site, and the damages that were measured."""
    sites = {
        each.name: {
            "weight": weight_digest(each.site),
            "candidates": [
                {"layout": layout_to_dict(fitted.layout), "error": fitted.error}
                for fitted in each.fitted
            ],
            "measured": sorted(each.measured.items()),
        }
        for each in planned
    }
    data = {
        "version": SENSITIVITY_VERSION,
        "measure": measure,
        "samples": samples,
        "sites": sites,
    }
    write_atomically(Path(path), lambda file: file.write(json.dumps(data).encode()))


class Sensitivity:
    """The measurements in a file.

    Raises:
        UsageError: the file cannot be read or is of another kind.
    """

    def __init__(self, path: PathLike) -> None:
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            version = data["version"]
            self._sites: Mapping[str, Any] = data["sites"]
            if not isinstance(self._sites, dict):
                raise TypeError("sites is not an object")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"`sensitivity` {path} cannot be read: {first_line(error)}") from error
        if version != SENSITIVITY_VERSION:
            raise UsageError(f"`sensitivity` {path} is of version {version}: measure again")

    def put_into(self, each: SiteCandidates) -> None:
        """The candidates and measurements of one site.

        Raises:
            UsageError: there are none of it as it is in this model, or what is there is none.
        """
        known = self._sites.get(each.name)
        if not isinstance(known, dict) or known.get("weight") != weight_digest(each.site):
            raise UsageError(
                f"`sensitivity` has no measurement of {each.name!r} as it is in this model: "
                "measure again with `save_sensitivity`"
            )
        try:
            each.fitted = [
                Fitted(layout_from_dict(entry["layout"]), _finite(entry["error"]))
                for entry in known["candidates"]
            ]
            each.measured = {int(index): _finite(damage) for index, damage in known["measured"]}
            shape = each.site.in_channels, each.site.out_channels
            if any((f.layout.in_channels, f.layout.out_channels) != shape for f in each.fitted):
                raise ValueError("a layout is that of another layer")
            if any(not 0 <= index < len(each.fitted) for index in each.measured):
                raise ValueError("a measurement is that of no candidate")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"`sensitivity` holds no candidates and damages for {each.name!r}: measure again"
            ) from error


def _finite(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not np.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} is no error or damage")
    return number
