"""Inception V3 (Szegedy et al. 2016, arXiv:1512.00567), as in keras.applications.

No BatchNormalization has a gamma. The plain and the k network (Schwarz Schuler et al. 2022, Mendel)
have the same skeleton; three pointwise convolutions of the published k network stayed dense, see
`KEPT_IN_PAPER`.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from sample_models.geometry import Feature, Padding
from sample_models.graph_builder import BatchNormSettings, GraphBuilder
from sample_models.options import BuildOptions

KEPT_IN_PAPER = ("mixed0_11c_conv", "mixed2_11c_conv", "mixed2_avg11_conv")
"""Node names of the pointwise convolutions that the published builder never replaces."""

_BATCH_NORM = BatchNormSettings(scale=False)


@dataclass(frozen=True)
class Layer:
    """One convolution with BatchNormalization and ReLU; ``suffix`` completes its name."""

    suffix: str
    filters: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    padding: Padding = "same"


def build(options: BuildOptions) -> onnx.ModelProto:
    """Writes Inception V3.

    Args:
        options: see `BuildOptions`.

    Returns:
        Model from ``input`` (batch, 3, *options.size) to ``logits`` (batch, options.classes).

    Raises:
        UsageError: the image is smaller than 75x75.
    """
    graph = GraphBuilder("inception_v3", options.size, seed=options.seed)
    writer = _InceptionWriter(graph)
    x = writer.stem(graph.image)
    for number, pool_filters in enumerate((32, 64, 64)):
        x = writer.module_5x5(x, f"mixed{number}", pool_filters)
    x = writer.reduction_to_17(x, "mixed3")
    for number, width in enumerate((128, 160, 160, 192), start=4):
        x = writer.module_7x7(x, f"mixed{number}", width)
    x = writer.reduction_to_8(x, "mixed8")
    for number in (9, 10):
        x = writer.module_expanded(x, f"mixed{number}")
    pooled = graph.flatten(graph.global_average_pool(x, "avg_pool"), "avg_pool_flatten")
    return graph.finish(graph.dense(pooled, options.classes, "predictions"))


@dataclass(frozen=True)
class _InceptionWriter:
    """Adds Inception modules to ``graph``; the names of the paper's figures are in the comments."""

    graph: GraphBuilder

    def stem(self, x: Feature) -> Feature:
        """The plain convolutions before the first module: 299x299x3 becomes 35x35x192."""
        x = self._chain(
            x,
            "stem",
            Layer("_33a", 32, 3, 2, "valid"),
            Layer("_33b", 32, 3, padding="valid"),
            Layer("_33c", 64, 3),
        )
        x = self.graph.max_pool(x, 3, 2, "stem_max_a")
        x = self._chain(x, "single_path", Layer("", 80))
        x = self._chain(x, "stem", Layer("_33d", 192, 3, padding="valid"))
        return self.graph.max_pool(x, 3, 2, "stem_max_b")

    def module_5x5(self, x: Feature, name: str, pool_filters: int) -> Feature:
        """Modules on the 35x35 map (figure 5 of the paper, with a 5x5 branch)."""
        branches = [
            self._chain(x, name, Layer("_11a", 64)),
            self._chain(x, name, Layer("_11b", 48), Layer("_55b", 64, 5)),
            self._chain(x, name, Layer("_11c", 64), Layer("_33c", 96, 3), Layer("_33cc", 96, 3)),
            self._pool_branch(x, name, pool_filters),
        ]
        return self.graph.concat(branches, name)

    def reduction_to_17(self, x: Feature, name: str) -> Feature:
        """Halves the 35x35 map in three parallel ways (figure 10)."""
        branches = [
            self._chain(x, name, Layer("_33a", 384, 3, 2, "valid")),
            self._chain(
                x,
                name,
                Layer("_11b", 64),
                Layer("_33b", 96, 3),
                Layer("_33bb", 96, 3, 2, "valid"),
            ),
            self.graph.max_pool(x, 3, 2, f"{name}_max"),
        ]
        return self.graph.concat(branches, name)

    def module_7x7(self, x: Feature, name: str, width: int) -> Feature:
        """Modules on the 17x17 map: 7x7 factored into 1x7 and 7x1 (figure 6)."""
        branches = [
            self._chain(x, name, Layer("_11a", 192)),
            self._chain(
                x,
                name,
                Layer("_11b", width),
                Layer("_17b", width, (1, 7)),
                Layer("_71b", 192, (7, 1)),
            ),
            self._chain(
                x,
                name,
                Layer("_11c", width),
                Layer("_71c", width, (7, 1)),
                Layer("_17c", width, (1, 7)),
                Layer("_71cc", width, (7, 1)),
                Layer("_17cc", 192, (1, 7)),
            ),
            self._pool_branch(x, name, 192),
        ]
        return self.graph.concat(branches, name)

    def reduction_to_8(self, x: Feature, name: str) -> Feature:
        """Halves the 17x17 map in three parallel ways."""
        branches = [
            self._chain(x, name, Layer("_11a", 192), Layer("_33a", 320, 3, 2, "valid")),
            self._chain(
                x,
                name,
                Layer("_11b", 192),
                Layer("_17b", 192, (1, 7)),
                Layer("_71b", 192, (7, 1)),
                Layer("_33b", 192, 3, 2, "valid"),
            ),
            self.graph.max_pool(x, 3, 2, f"{name}_max"),
        ]
        return self.graph.concat(branches, name)

    def module_expanded(self, x: Feature, name: str) -> Feature:
        """Modules on the 8x8 map: branches that fork into 1x3 and 3x1 (figure 7)."""
        middle = self._chain(x, name, Layer("_22", 384))
        middle = self._fork(middle, name, "a")
        deep = self._chain(x, name, Layer("_11b", 448), Layer("_33b", 384, 3))
        deep = self._fork(deep, name, "b")
        branches = [
            self._chain(x, name, Layer("_11", 320)),
            middle,
            deep,
            self._pool_branch(x, name, 192),
        ]
        return self.graph.concat(branches, name)

    def _fork(self, x: Feature, name: str, branch: str) -> Feature:
        parts = [
            self._chain(x, name, Layer(f"_13{branch}", 384, (1, 3))),
            self._chain(x, name, Layer(f"_31{branch}", 384, (3, 1))),
        ]
        return self.graph.concat(parts, f"{name}_p{branch}")

    def _pool_branch(self, x: Feature, name: str, filters: int) -> Feature:
        pooled = self.graph.average_pool(x, 3, 1, f"{name}_avg", padding="same")
        return self._chain(pooled, name, Layer("_avg11", filters))

    def _chain(self, x: Feature, name: str, *layers: Layer) -> Feature:
        """Convolution without bias, BatchNormalization without gamma and ReLU, layer by layer."""
        for layer in layers:
            label = f"{name}{layer.suffix}"
            x = self.graph.conv(
                x,
                layer.filters,
                layer.kernel,
                f"{label}_conv",
                stride=layer.stride,
                padding=layer.padding,
            )
            x = self.graph.batch_norm(x, f"{label}_bn", _BATCH_NORM)
            x = self.graph.activation(x, "relu", f"{label}_relu")
        return x
