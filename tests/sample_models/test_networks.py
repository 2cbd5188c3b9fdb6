"""The builders against published sizes, the ONNX checker and onnxruntime."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase

import numpy as np
import onnx
import pytest

import sample_models
from onnx_igpc.errors import UsageError
from sample_models import NETWORKS, Variant, build
from sample_models.efficientnet import SCALINGS
from tests.sample_models.counting import count, fixed_tensors, map_sizes, run

ALL = [(name, variant) for name, network in NETWORKS.items() for variant in network.variants]

# The big ones differ from B0 only in numbers of channels and blocks: too slow to build every time.
SMALL = [(name, variant) for name, variant in ALL if name[-2:] not in SCALINGS or "b0" in name]


def small(name: str, variant: Variant = "plain") -> onnx.ModelProto:
    size = {"inception_v3": 75, "digits_net": 8}.get(name, 32)
    return build(name, variant=variant, size=size, classes=7)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def consumers(model: onnx.ModelProto, tensor: str) -> list[str]:
    return [node.op_type for node in model.graph.node if tensor in node.input]


# ----------------------------------------------------------------------- published sizes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("efficientnet_b0", 5_288_548),
        ("efficientnet_b1", 7_794_184),
        ("efficientnet_b2", 9_109_994),
        ("efficientnet_b3", 12_233_232),
        ("efficientnet_b4", 19_341_616),
        ("mobilenet_v1", 4_231_976),
        ("mobilenet_v2", 3_504_872),
        ("mobilenet_v3_large", 5_483_032),
        ("inception_v3", 23_817_352),
        ("resnet50", 25_557_032),
    ],
)
def test_parameters_of_the_imagenet_models(name: str, parameters: int) -> None:
    assert count(build(name, size=96)).trainable == parameters


@pytest.mark.parametrize(
    ("name", "size", "parameters", "statistics", "macs"),
    [
        ("efficientnet_b0", 224, 4_020_358, 42_016, 384_547_552),
        ("mobilenet_v1", 224, 3_217_226, 21_888, 567_726_592),
        ("mobilenet_v3_large", 224, 4_214_842, 24_400, 215_322_560),
        ("densenet_bc_l100", 32, 769_186, 23_988, 287_929_692),
        ("inception_v3", 224, 21_788_842, 34_432, 2_835_893_600),
    ],
)
def test_baselines_of_the_grouped_pointwise_papers(
    name: str, size: int, parameters: int, statistics: int, macs: int
) -> None:
    """Ten classes, as in the CIFAR-10 tables (Schwarz Schuler et al. 2022, Mendel)."""
    counts = count(build(name, classes=10, size=size))
    assert (counts.trainable, counts.statistics, counts.macs) == (parameters, statistics, macs)


@pytest.mark.parametrize(
    ("name", "macs"), [("mobilenet_v2", 300_774_272), ("resnet50", 4_089_184_256)]
)
def test_macs_of_the_imagenet_models(name: str, macs: int) -> None:
    """As torchvision counts them at 224 pixels: 0.301 and 4.089 G."""
    assert count(build(name)).macs == macs


def test_compound_scaling_of_the_largest() -> None:
    largest = SCALINGS["b7"]
    assert [largest.filters(n) for n in (32, 16, 24, 40, 1280)] == [64, 32, 48, 80, 2560]
    assert [largest.repeats(n) for n in (1, 2, 3, 4)] == [4, 7, 10, 13]


# ------------------------------------------------------------------------- sound and runs


@pytest.mark.parametrize(("name", "variant"), SMALL)
def test_model_is_sound_and_runs_at_any_batch(name: str, variant: Variant) -> None:
    model = small(name, variant)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    tensors = [output for node in graph.node for output in node.output]
    tensors += [tensor.name for tensor in graph.initializer]
    assert len(set(tensors)) == len(tensors)
    assert len({node.name for node in graph.node}) == len(graph.node)

    four, one = run(model, 4), run(model, 1)
    assert four.shape == (4, 7)
    assert one.shape == (1, 7)
    assert np.isfinite(four).all()
    assert four.std() > 0
    np.testing.assert_allclose(one[0], four[0], rtol=1e-3, atol=1e-4 * float(np.abs(four).max()))


def test_seed_decides_the_weights() -> None:
    first, same, other = (build("digits_net", seed=seed) for seed in (1, 1, 2))
    assert first.SerializeToString() == same.SerializeToString()
    assert first.SerializeToString() != other.SerializeToString()


def test_image_may_be_rectangular() -> None:
    model = build("efficientnet_b0", size=(33, 64))
    assert map_sizes(model)["stem_conv"] == (17, 32)
    assert run(model, 1).shape == (1, 1000)


# --------------------------------------------------------------------------- the variants


def test_skip_stride_keeps_the_map_of_small_images() -> None:
    plain = build("efficientnet_b0", size=32)
    model = build("efficientnet_b0", size=32, skip_stride=3)
    maps = map_sizes(model)
    stages = [maps[f"block{number}a_project_conv"] for number in range(1, 8)]
    assert maps["stem_conv"] == (31, 31)
    assert stages == [(side, side) for side in (31, 31, 31, 16, 16, 8, 8)]
    assert count(model).trainable == count(plain).trainable
    assert run(model, 2).shape == (2, 1000)


def test_k_efficientnet_has_a_linear_top() -> None:
    plain, variant = small("efficientnet_b0"), small("efficientnet_b0", "k")
    assert consumers(plain, "top_bn") == ["Sigmoid", "Mul"]
    assert consumers(variant, "top_bn") == ["GlobalAveragePool"]


def test_k_mobilenet_v1_has_swish_after_pointwise_only() -> None:
    plain, variant = small("mobilenet_v1"), small("mobilenet_v1", "k")
    assert operators(plain)["Clip"] == 27
    assert operators(variant)["Clip"] == 14
    assert operators(variant)["Sigmoid"] == 13
    assert consumers(variant, "conv_pw_1_bn") == ["Sigmoid", "Mul"]
    assert consumers(variant, "conv_dw_1_bn") == ["Clip"]


def test_k_mobilenet_v3_differs_in_batch_norm_momentum() -> None:
    def momenta(model: onnx.ModelProto) -> dict[str, float]:
        return {
            node.name: onnx.helper.get_node_attr_value(node, "momentum")
            for node in model.graph.node
            if node.op_type == "BatchNormalization"
        }

    plain = momenta(small("mobilenet_v3_large"))
    variant = momenta(small("mobilenet_v3_large", "k"))
    assert plain["Conv_1/BatchNorm"] == pytest.approx(0.999)
    assert variant["Conv_1/BatchNorm"] == pytest.approx(0.99)
    assert variant["expanded_conv_1/depthwise/BatchNorm"] == pytest.approx(0.999)


def test_k_densenet_puts_activations_after_convolutions() -> None:
    plain, variant = small("densenet_bc_l100"), small("densenet_bc_l100", "k")
    assert count(plain) == count(variant)
    assert consumers(plain, "dn1_b1_conv_a") == ["BatchNormalization"]
    assert consumers(variant, "dn1_b1_conv_a") == ["Sigmoid", "Mul"]
    assert consumers(variant, "dn1_b1_conv_b") == ["Relu"]
    assert operators(plain)["Gather"] == 0
    assert operators(variant)["Gather"] == 2
    indices = next(
        onnx.numpy_helper.to_array(tensor)
        for tensor in variant.graph.initializer
        if tensor.name == "dntransition1_inter/indices"
    )
    assert indices[:20].tolist() == [*range(0, 216, 12), 1, 13]
    assert sorted(indices) == list(range(216))


def test_inception_has_no_trainable_gamma() -> None:
    model = small("inception_v3")
    gammas = {node.input[1] for node in model.graph.node if node.op_type == "BatchNormalization"}
    assert gammas == fixed_tensors(model)
    assert operators(model)["BatchNormalization"] == 94


def test_inception_publishes_what_the_paper_left_dense() -> None:
    weights = {t.name: t for t in small("inception_v3", "k").graph.initializer}
    pointwise = {
        name.removesuffix("/kernel")
        for name, tensor in weights.items()
        if name.endswith("_conv/kernel") and list(tensor.dims[2:]) == [1, 1]
    }
    assert len(pointwise) == 40
    globs = sample_models.paper_excludes("inception_v3")
    kept = {name for name in pointwise if any(fnmatchcase(name, glob) for glob in globs)}
    assert len(kept) == 3


def test_digits_net_is_small() -> None:
    model = build("digits_net")
    pointwise = [
        tensor
        for tensor in model.graph.initializer
        if tensor.name.startswith("conv_pw_") and tensor.name.endswith("/kernel")
    ]
    assert len(pointwise) >= 8
    assert all(64 <= size <= 192 for tensor in pointwise for size in tensor.dims[:2])
    assert model.ByteSize() < 2_500_000
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [0, 1, 8, 8]


def test_cifar_net_has_its_weights_in_pointwise_convolutions() -> None:
    model = build("cifar_net")
    weights = {t.name: list(t.dims) for t in model.graph.initializer if len(t.dims) == 4}
    pointwise = [dims for dims in weights.values() if dims[2:] == [1, 1]]
    total = count(model).trainable
    assert len(pointwise) >= 12
    assert sum(f * c for f, c, _, _ in pointwise) > 0.85 * total
    assert 1_000_000 < total < 1_500_000
    assert map_sizes(model)["conv_pw_12_relu"] == (4, 4)
    # Blocks that keep the number of channels have a shortcut.
    assert operators(model)["Add"] == 10


# ------------------------------------------------------------------------- wrong options


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown network 'resnot'; choose one of efficientnet_b0"):
        build("resnot")
    with pytest.raises(UsageError, match="unknown network"):
        sample_models.paper_excludes("resnot")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits_net", {"variant": "k"}, "digits_net has no variant 'k'"),
        ("digits_net", {"classes": 0}, "at least one class"),
        ("digits_net", {"size": 0}, "no pixels"),
        ("digits_net", {"seed": -1}, "seed must not be negative"),
        ("digits_net", {"alpha": float("nan")}, "--alpha must lie between"),
        ("efficientnet_b0", {"alpha": 0.5}, "no width multiplier"),
        ("efficientnet_b0", {"skip_stride": -1}, "must not be negative"),
        ("mobilenet_v1", {"skip_stride": 3}, "only EfficientNets"),
        ("mobilenet_v1", {"size": 16}, "too small .* 1x1 is left at layer conv_dw_12"),
    ],
)
def test_options_that_make_no_network(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, **options)  # type: ignore[arg-type]
