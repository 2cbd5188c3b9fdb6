"""Is a bridged graph as fast to train as the same network written in PyTorch?

``python -m benchmarks.bridge_step_time [--device cuda] [--batch 32]`` races a training step (forward,
backward, SGD) of MobileNet V1 and EfficientNet-B0 read from ONNX against hand-written modules of the
same layers. Steps alternate within one process; medians and their ratio are printed. The ratio should be
below 1.1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

from onnx_igpc.torch_bridge import to_torch
from sample_models import build


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm, activation.

    The networks come from TensorFlow: a stride of 2 pads the ends of an even image more than its
    fronts, which PyTorch writes as a layer of its own.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        groups: int,
        activation: nn.Module | None,
    ) -> None:
        front = (kernel - 1) // 2 if stride == 1 else (kernel - 2) // 2
        end = kernel - stride - front
        pad = [nn.ZeroPad2d((front, end, front, end))] if front != end else []
        conv = nn.Conv2d(
            inputs, outputs, kernel, stride, 0 if pad else front, groups=groups, bias=False
        )
        after = [activation] if activation is not None else []
        super().__init__(*pad, conv, nn.BatchNorm2d(outputs), *after)


def mobilenet_v1(classes: int = 1000) -> nn.Module:
    """MobileNet V1, width 1."""
    layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2, 1, nn.ReLU6())]
    width = 32
    for filters, stride in (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
        *[(512, 1)] * 5, (1024, 2), (1024, 1),
    ):  # fmt: skip
        layers.append(ConvNorm(width, width, 3, stride, width, nn.ReLU6()))
        layers.append(ConvNorm(width, filters, 1, 1, 1, nn.ReLU6()))
        width = filters
    head = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, classes, 1), nn.Flatten()]
    return nn.Sequential(*layers, *head)


class SqueezeExcite(nn.Module):
    """Channel gates from the mean of the image."""

    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, reduced, 1), nn.Conv2d(reduced, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = functional.silu(self.reduce(functional.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.expand(gate))


class InvertedResidual(nn.Module):
    """MBConv of EfficientNet."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, ratio: int) -> None:
        super().__init__()
        width = inputs * ratio
        expand = [ConvNorm(inputs, width, 1, 1, 1, nn.SiLU())] if ratio > 1 else []
        self.body = nn.Sequential(
            *expand,
            ConvNorm(width, width, kernel, stride, width, nn.SiLU()),
            SqueezeExcite(width, max(1, inputs // 4)),
            ConvNorm(width, outputs, 1, 1, 1, None),
        )
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return x + y if self.skips else y


def efficientnet_b0(classes: int = 1000) -> nn.Module:
    """EfficientNet-B0."""
    layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2, 1, nn.SiLU())]
    width = 32
    for ratio, filters, repeats, stride, kernel in (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
    ):  # fmt: skip
        for number in range(repeats):
            step = stride if number == 0 else 1
            layers.append(InvertedResidual(width, filters, kernel, step, ratio))
            width = filters
    layers.append(ConvNorm(width, 1280, 1, 1, 1, nn.SiLU()))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
    return nn.Sequential(*layers, *head)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v1": mobilenet_v1,
    "efficientnet_b0": efficientnet_b0,
}


def stepper(module: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One training step as a function; it returns when the device is done."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        loss = functional.cross_entropy(module(x), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def race(
    first: Callable[[], None], second: Callable[[], None], rounds: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Median seconds of both, measured A B A B."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 2):
        for step, seconds in zip((first, second), times, strict=True):
            start = clock()
            step()
            if number >= 2:  # the first two rounds warm up
                seconds.append(clock() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def lines(options: argparse.Namespace) -> Iterator[str]:
    """One line of results for each network."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    for name, make in NETWORKS.items():
        x = torch.randn(options.batch, 3, options.size, options.size, device=device)
        labels = torch.randint(0, 1000, (options.batch,), device=device)
        bridged: nn.Module = to_torch(build(name)).to(device)
        plain = make().to(device)
        counts = [sum(p.numel() for p in m.parameters()) for m in (bridged, plain)]
        assert counts[0] == counts[1], f"{name}: not the same network"
        if options.channels_last:
            bridged.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            x = x.to(memory_format=torch.channels_last)
        clock = time.process_time if options.clock == "cpu" else time.perf_counter
        steps = stepper(bridged, x, labels), stepper(plain, x, labels)
        ours, theirs = race(*steps, options.rounds, clock)
        yield (
            f"{name:16s} batch {options.batch} on {device.type}, {options.clock} time: "
            f"bridged {ours * 1e3:.1f} ms, plain {theirs * 1e3:.1f} ms, ratio {ours / theirs:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: where neighbours disturb"
    )
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for line in lines(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
