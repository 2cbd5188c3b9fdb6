"""The printed flops of the baselines: they also count activations, gates, biases and pooling."""

from __future__ import annotations

import pytest

from benchmarks.tensorflow_flops import tensorflow_flops
from sample_models import build
from tests.sample_models.counting import count


@pytest.mark.parametrize(
    ("name", "classes", "size", "flops"),
    [
        ("efficientnet_b0", 10, 224, 389_969_098),
        ("efficientnet_b0", 2, 224, 389_958_834),
        ("mobilenet_v1", 10, 224, 567_751_710),
        ("mobilenet_v3_large", 100, 224, 217_575_460),
        ("densenet_bc_l100", 10, 32, 288_027_450),
        ("inception_v3", 10, 224, 2_842_007_118),
    ],
)
def test_printed_flops_of_the_baselines(name: str, classes: int, size: int, flops: int) -> None:
    """Tables of Schwarz Schuler et al. 2022 (Mendel; Entropy)."""
    model = build(name, classes=classes, size=size)
    assert tensorflow_flops(model, count(model).macs) == flops
