"""Moments of the sites' inputs in the original, collected once for each part of the data.

Fits to all parts but one, again and again, would otherwise run the model over the same samples again.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx_igpc.calibration.collect import collect_moments, untapped_reason
from onnx_igpc.calibration.held_samples import Part
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.fitting.moments import Moments
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.sites.find import Rewritable


class KnownMoments:
    """Moments by tap, of any samples of some data.

    Args:
        model: the model, which must not be edited as long as moments are asked for.
        sites: whose inputs are meant; those that cannot be observed are left out.
        parts: of the data, without common samples: what is kept.
    """

    def __init__(
        self, model: OpenModel, sites: Sequence[Rewritable], parts: Sequence[Part]
    ) -> None:
        self._model = model
        self._taps = [Tap.of(site) for site in sites if untapped_reason(site) is None]
        self._parts = parts
        self._collected: dict[int, dict[Tap, Moments]] = {}

    def of_part(self, number: int) -> dict[Tap, Moments]:
        """Of one of the parts; a tap that read nothing there is missing.

        Raises:
            DataError: a tensor is NaN or infinite somewhere.
            ModelError: the model cannot run on the data.
        """
        if number not in self._collected:
            part = self._parts[number]
            self._collected[number] = collect_moments(self._model, self._taps, part)
        return self._collected[number]

    def of(self, data: Part) -> dict[Tap, Moments]:
        """Of some samples, of which those that no whole part holds are run now; raises as :meth:`of_part`."""
        found, rest = [], data
        wanted = set(data.numbers)
        for number, part in enumerate(self._parts):
            if wanted.issuperset(part.numbers):
                found.append(self.of_part(number))
                rest = rest.without(part)
        if rest.numbers or not found:
            found.append(collect_moments(self._model, self._taps, rest))
        seen = {tap for each in found for tap in each}
        return {
            tap: Moments.joined([each[tap] for each in found if tap in each])
            for tap in dict.fromkeys(self._taps)
            if tap in seen
        }
