"""The networks: sizes and costs against the reference implementations, taps against their definitions."""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdbench.errors import DoesNotFit, UserError
from kdbench.models import create, names
from kdbench.models.cnn import Noise
from kdbench.models.shufflenet import Shuffle
from kdbench.taps import probe

CIFAR = (3, 32, 32)

# name: (parameters, multiply-accumulates of one image), 100 classes, 3x32x32. Counted on the model files of
# HobbitLong/RepDistiller at commit b84f547 (parameters: numel; MACs: half of torch's FlopCounterMode).
REPDISTILLER = {
    "resnet8": (83_892, 12_507_392),
    "resnet14": (181_108, 26_663_168),
    "resnet20": (278_324, 40_818_944),
    "resnet32": (472_756, 69_130_496),
    "resnet44": (667_188, 97_442_048),
    "resnet56": (861_620, 125_753_600),
    "resnet110": (1_736_564, 253_155_584),
    "resnet8x4": (1_233_540, 177_071_104),
    "resnet32x4": (7_433_860, 1_083_040_768),
    "resnet50-cifar": (23_705_252, 1_298_014_208),
    "wrn-16-1": (180_916, 26_663_168),
    "wrn-16-2": (703_284, 101_118_464),
    "wrn-40-1": (569_780, 83_286_272),
    "wrn-40-2": (2_255_156, 327_610_880),
    "vgg8": (3_965_028, 96_192_512),
    "vgg11": (9_277_284, 209_438_720),
    "vgg13": (9_462_180, 284_936_192),
    "vgg16": (14_774_436, 398_182_400),
    "vgg19": (20_086_692, 511_428_608),
    "mobilenetv2-0.5": (812_836, 6_523_648),
    "shufflenetv1": (949_258, 38_691_456),
    "shufflenetv2": (1_355_528, 44_504_448),
}
# At 1000 classes, 3x224x224, by sums over the layers of Howard et al. 2017, table 1. 4.23 M parameters are printed in
# ImageNet/README.md of clovaai/overhaul-distillation, 4.2 M and 569 M multiply-accumulates in the paper's table 8.
MOBILENETV1 = {"mobilenetv1": (4_231_976, 568_740_352)}
# Parameters at 10 classes, 1x32x32, counted on DAFL/lenet.py of huawei-noah/Data-Efficient-Model-Compression, 5e8f4e4.
DAFL = {"lenet5": 61_706, "lenet5-half": 15_738}
# The same of models/wide_resnet.py of BayesWatch/pytorch-moonshine at commit aea69b7 with its blocks DConvA2, DConvA4,
# DConvA8, DConv, ConvB2, A8B2 and DConvB4, at 100 classes, 3x32x32.
MOONSHINE = {
    "wrn-16-2-g2": (417_236, 59_044_352),
    "wrn-16-2-g4": (259_988, 36_041_216),
    "wrn-16-2-g8": (181_364, 24_539_648),
    "wrn-16-2-gn": (109_796, 14_844_416),
    "wrn-16-2-b2": (301_876, 43_708_928),
    "wrn-16-2-b2g8": (132_532, 18_936_320),
    "wrn-16-2-b4gn": (69_140, 9_228_800),
    "wrn-40-2-g2": (1_370_580, 197_456_384),
    "wrn-40-2-g4": (826_260, 117_830_144),
    "wrn-40-2-g8": (554_100, 78_017_024),
    "wrn-40-2-gn": (305_124, 44_139_008),
    "wrn-40-2-b2": (868_148, 125_497_856),
    "wrn-40-2-b2g8": (360_116, 51_180_032),
    "wrn-40-2-b4gn": (164_564, 22_843_904),
}
# From the definitions of the blocks, by sums that give those above to the unit.
MOONSHINE |= {
    "wrn-16-2-g16": (142_052, 18_788_864),
    "wrn-16-2-b4": (115_508, 15_790_592),
    "wrn-16-2-b2gn": (112_372, 16_429_568),
    "wrn-40-2-g16": (418_020, 58_110_464),
    "wrn-40-2-b4": (303_668, 42_529_280),
    "wrn-40-2-b2gn": (299_636, 43_659_776),
}
# Numbers in the state dict at 10 classes, that is with the running statistics, which their authors print in
# wideresnets.md of BayesWatch/deficient-efficient.
WITH_STATISTICS = {"wrn-40-2": 2_248_954, "wrn-40-2-gn": 304_074}
# Our own, no reference: 3x3 convolutions, 1x1 projections, batch norms (2 per channel), a linear layer.
WIDTHS = {"resnet8x0.25": (4, 4, 8, 16), "resnet8x0.5": (8, 8, 16, 32)}
# Widths of all convolutions in turn.
NARROW_VGG = {
    "vgg8x0.25": (16, 32, 64, 128, 128),
    "vgg8x0.5": (32, 64, 128, 256, 256),
    "vgg16x0.5": (32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 256, 256, 256),
}
CONV4 = {"conv4": (64, 64, 64, 64)}
# Of 1x28x28 and 10 classes, by model.summary() of the networks of keras-io's knowledge_distillation.py: convolutions
# 160 + 4,640, linear 15,690; 2,560 + 1,180,160, linear 250,890.
KERAS = {"cnn-16-32": 20_490, "cnn-256-512": 1_433_610}
# Parameters at 10 classes, 1x28x28: printed in logs.rst of SforAiDl/KD_Lib; ZSKD's and Lopes et al.'s half LeNet-5 and
# kuangliu/pytorch-cifar's ResNet18 (of 3x32x32), counted on their layers.
PRINTED = {
    "resnet18-mini": 213_178,
    "resnet34-mini": 403_194,
    "resnet50-mini": 454_010,
    "resnet18-micro": 4_254,
    "resnet50-micro": 10_182,
    "lenet5-half-maps": 35_820,
    "lenet5-half-maps-tenth": 35_820,
    "lenet5-tenth": 61_706,
    "resnet18-cifar": 11_173_962,
}
# Units of the layers of a perceptron on 1x28x28, in turn, as its source has them.
PERCEPTRONS = {
    "linear": (784, 10),
    "fc-20-20": (784, 20, 20, 10),
    "fc-20-20-at7": (49, 20, 20, 10),
    "fc-20-20-at7-antialias": (49, 20, 20, 10),
    "fc-200-tanh": (784, 200, 10),
    "fc-256": (784, 256, 10),
    "fc-400-400": (784, 400, 400, 10),
    "fc-800-800": (784, 800, 800, 10),
    "fc-800-800-dropout": (784, 800, 800, 10),
    "fc-800-800-unit": (784, 800, 800, 10),
    "fc-1000-sigmoid": (784, 1000, 10),
    "fc-1200-1200-bn": (784, 1200, 1200, 10),
    "fc-1200-1200-dropout": (784, 1200, 1200, 10),
    "fc-1200-1200-dropout-unit": (784, 1200, 1200, 10),
    "fc-1200-600-300-150-bn": (784, 1200, 600, 300, 150, 10),
}
# Kernel, channels of the convolutions in turn, units of the linear layers in turn, and numbers beside weights and
# biases, for each convolution's channel and for each hidden unit: 2 of batch norm, 1 of weight norm.
CHAINS = {
    "cnn-16-32-wn": (3, (1, 16, 32), (1568, 10), (1, 0)),
    "cnn-32-64-128-dropout": (3, (1, 32, 64, 128), (1152, 625, 10), (0, 0)),
    "lenet-32-64": (5, (1, 32, 64), (3136, 1024, 10), (0, 0)),
    "cnn-32-64-128-bn": (3, (3, 32, 64, 128), (2048, 128, 10), (2, 2)),
    "cnn-8-16-32-valid": (3, (3, 8, 16, 32), (128, 64, 10), (2, 0)),
    "cnn-16-32-64-valid": (3, (3, 16, 32, 64), (256, 128, 10), (2, 0)),
    "cnn-32-64-2048": (3, (3, 32, 64), (4096, 2048, 2048, 10), (0, 0)),
    "plane2": (3, (3, 32, 32), (2048, 10), (2, 0)),
    "plane4": (3, (3, 32, 32, 64, 64), (4096, 10), (2, 0)),
    "plane10": (3, (3, 32, 32, 64, 64, 128, 128, 256, 256, 256, 256), (1024, 512, 10), (2, 0)),
}

# Millions of multiply-accumulates at 3x32x32, from the definitions in the papers.
PUBLISHED_MACS = {
    "resnet20": 40.8,
    "resnet56": 125.8,
    "resnet110": 253.2,
    "resnet8x4": 177.1,
    "resnet32x4": 1083,
    "wrn-16-2": 101.1,
    "wrn-40-1": 83.3,
    "wrn-40-2": 327.6,
}
# Millions of parameters at 10 classes: He et al. 2016, table 6; Zagoruyko & Komodakis 2016, table 4.
PUBLISHED_PARAMETERS = {
    "resnet20": 0.27,
    "resnet32": 0.46,
    "resnet44": 0.66,
    "resnet56": 0.85,
    "resnet110": 1.7,
    "wrn-40-1": 0.6,
    "wrn-40-2": 2.2,
}


def on_meta(name: str, shape: tuple[int, int, int] = CIFAR, num_classes: int = 100) -> nn.Module:
    with torch.device("meta"):
        return create(name, shape, num_classes)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def macs(net: nn.Module, shape: tuple[int, int, int] = CIFAR) -> int:
    with FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, *shape, device="meta"))
    return counter.get_total_flops() // 2


def size(name: str) -> tuple[int, int, int]:
    """The smallest images of a zoo network."""
    side = {"conv4": 16, "plane10": 16}.get(name, 28 if name.startswith("lenet5") or name.endswith("-valid") else 8)
    return 3, side, side


def norms(net: nn.Module) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


@lru_cache(maxsize=1)
def small(name: str) -> Any:
    """A zoo network for its smallest images, in train mode, with batch norms that are not the identity."""
    torch.manual_seed(0)
    net = create(name, size(name), 10)
    for module in norms(net):
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, std=0.3)
    for module in net.modules():
        if isinstance(module, (nn.Dropout, Noise)):
            module.eval()
    return net


def images(shape: tuple[int, int, int], n: int = 4) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


# --- size and cost -------------------------------------------------------------------------------------------------


def test_every_network_of_the_zoo_has_a_reference_count() -> None:
    counted = [REPDISTILLER, DAFL, MOONSHINE, WIDTHS, NARROW_VGG, CONV4, KERAS, PRINTED, PERCEPTRONS, CHAINS]
    counted.append(MOBILENETV1)
    assert sorted(names()) == sorted(name for table in counted for name in table)


@pytest.mark.parametrize("name", [*REPDISTILLER, *MOONSHINE])
def test_parameters_and_macs_are_those_of_the_authors(name: str) -> None:
    net = on_meta(name)
    cost = macs(net)
    assert (parameters(net), cost) == (REPDISTILLER | MOONSHINE)[name]
    if name in PUBLISHED_MACS:
        assert cost / 1e6 == pytest.approx(PUBLISHED_MACS[name], rel=0.01)


def test_mobilenet_is_as_large_as_published() -> None:
    shape = 3, 224, 224
    net = on_meta("mobilenetv1", shape, 1000)
    assert (parameters(net), macs(net, shape)) == MOBILENETV1["mobilenetv1"]
    taps = net.tap(torch.zeros(1, *shape, device="meta"))  # type: ignore[operator]
    sizes = [(128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7)]
    assert [tuple(taps[f"stage{i}"].shape[1:]) for i in range(1, 5)] == sizes


@pytest.mark.parametrize("name", DAFL)
def test_lenet_has_the_parameters_of_dafl(name: str) -> None:
    assert parameters(on_meta(name, (1, 32, 32), 10)) == DAFL[name]


@pytest.mark.parametrize("name", KERAS)
def test_networks_of_keras_example_have_the_parameters_of_their_layers(name: str) -> None:
    assert parameters(on_meta(name, (1, 28, 28), 10)) == KERAS[name]


def test_padding_of_the_strided_networks_is_tensorflows() -> None:
    """ "Same" with a stride of 2 begins at the first pixel of an even size, and one before that of an odd one."""
    for size in (10, 9):
        net: Any = create("cnn-16-32", (1, size, size), 10)
        conv = net.stem[1]
        nn.init.zeros_(conv.bias)
        nn.init.zeros_(conv.weight)
        conv.weight.data[:, :, 0, 0] = 1.0  # shows the pixel above and to the left of where the kernel lies
        x = torch.arange(1.0, 1 + size * size).reshape(1, 1, size, size)
        shown = F.max_pool2d(F.pad(x[:, :, ::2, ::2] if size == 10 else F.pad(x, (1, 0, 1, 0))[:, :, ::2, ::2],
                                   (0, 1, 0, 1), value=-9.0), 2, 1)  # fmt: skip
        assert torch.equal(net.tap(x)["stem"][:, :1], shown)


@pytest.mark.parametrize("name", PRINTED)
def test_networks_of_published_results_have_their_parameters(name: str) -> None:
    assert parameters(on_meta(name, (3, 32, 32) if name.endswith("cifar") else (1, 28, 28), 10)) == PRINTED[name]


@pytest.mark.parametrize("name", PERCEPTRONS)
def test_perceptrons_have_the_parameters_of_their_layers(name: str) -> None:
    units = PERCEPTRONS[name]
    normalised = 2 * sum(units[1:-1]) if name.endswith("bn") else 0
    assert parameters(on_meta(name, (1, 28, 28), 10)) == sum((a + 1) * b for a, b in pairwise(units)) + normalised


@pytest.mark.parametrize("name", CHAINS)
def test_chains_have_the_parameters_of_their_layers(name: str) -> None:
    kernel, channels, units, (beside_conv, beside_unit) = CHAINS[name]
    convs = sum((kernel**2 * a + 1 + beside_conv) * b for a, b in pairwise(channels))
    linear = sum((a + 1) * b for a, b in pairwise(units)) + beside_unit * sum(units[1:-1])
    shape = (channels[0], 28, 28) if channels[0] == 1 else CIFAR
    assert parameters(on_meta(name, shape, 10)) == convs + linear


def test_a_perceptron_at_7x7_sees_the_middle_of_each_4x4_pixels() -> None:
    x = images((1, 28, 28), 2)
    middles = x.view(2, 7, 4, 7, 4)[:, :, 1:3, :, 1:3].mean((2, 4)).flatten(1)
    torch.testing.assert_close(create("fc-20-20-at7", (1, 28, 28), 10).tap(x)["stem"], middles)  # type: ignore[operator]
    antialiased: Any = create("fc-20-20-at7-antialias", (1, 28, 28), 10)
    pillows = [np.asarray(Image.fromarray(image[0].numpy()).resize((7, 7), Image.Resampling.BILINEAR)) for image in x]
    torch.testing.assert_close(antialiased.tap(x)["stem"], torch.tensor(np.stack(pillows)).flatten(1))


def test_a_bound_on_weights_holds_behind_each_pass_of_training_and_leaves_the_smaller_alone() -> None:
    net: Any = create("fc-1200-1200-dropout", (1, 8, 8), 10)
    layers = [block[0][-1] for block in net.stages]
    for layer in layers:
        nn.init.normal_(layer.weight)
        layer.weight.data[0] = 0.01
    before = [layer.weight.detach().clone() for layer in layers]
    net.eval()(images((1, 8, 8)))
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))
    net.train()
    (net(images((1, 8, 8))).sum() + net(images((1, 8, 8))).sum()).backward()  # the second pass spoils nothing
    for layer, weight in zip(layers, before, strict=True):
        torch.testing.assert_close(
            layer.weight, weight * (math.sqrt(15) / weight.norm(dim=1, keepdim=True)).clamp(max=1)
        )


@pytest.mark.parametrize(
    ("name", "std", "bias"),
    [
        ("fc-1000-sigmoid", (2 / 1784) ** 0.5, 0.0),
        ("fc-800-800-unit", 0.8796, 0.1),
        ("lenet5-tenth", 0.08796, 0.0),
    ],
)
def test_weights_start_as_in_the_source(name: str, std: float, bias: float) -> None:
    """Normal numbers that are drawn again beyond two standard deviations have a standard deviation of .8796."""
    torch.manual_seed(0)
    layers = [m for m in create(name, (1, 28, 28), 10).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    largest = max(layers, key=lambda layer: layer.weight.numel())
    assert largest.weight.std().item() == pytest.approx(std, rel=0.01)
    assert all((layer.bias == bias).all() for layer in layers)


@pytest.mark.parametrize("name", WIDTHS)
def test_narrow_resnets_have_the_parameters_of_their_widths(name: str) -> None:
    w0, w1, w2, w3 = WIDTHS[name]
    convs = 9 * (1 * w0 + w0 * w1 + w1 * w1 + w1 * w2 + w2 * w2 + w2 * w3 + w3 * w3) + w1 * w2 + w2 * w3
    norms = 2 * (w0 + 2 * w1 + 3 * w2 + 3 * w3)
    assert parameters(on_meta(name, (1, 8, 8), 10)) == convs + norms + 10 * w3 + 10


@pytest.mark.parametrize("name", [*NARROW_VGG, *CONV4])
def test_chains_of_convolutions_have_the_parameters_of_their_widths(name: str) -> None:
    """Each convolution 3x3 with bias and batch norm; conv4 flattens 2x2 pixels of images of 32x32."""
    widths = (NARROW_VGG | CONV4)[name]
    convs = sum((9 * c_in + 1) * c_out + 2 * c_out for c_in, c_out in zip((3, *widths), widths, strict=False))
    embed = widths[-1] * (4 if name == "conv4" else 1)
    assert parameters(on_meta(name)) == convs + (embed + 1) * 100


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_state_dicts_are_as_large_as_published(name: str) -> None:
    state = on_meta(name, num_classes=10).state_dict()
    assert sum(value.numel() for key, value in state.items() if "num_batches" not in key) == WITH_STATISTICS[name]


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    # He et al. have shortcuts without parameters, RepDistiller projects twice: 1x1 convolution and batch norm.
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64 if name.startswith("resnet") else 0
    digits = len(str(PUBLISHED_PARAMETERS[name])) - 2
    millions = (parameters(on_meta(name, num_classes=10)) - projections) / 1e6
    assert round(millions, digits) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("num_classes", [10, 100])
def test_head_is_the_classifier(name: str, num_classes: int) -> None:
    net: Any = on_meta(name, num_classes=num_classes)
    assert isinstance(net.head, nn.Linear)
    assert net.head.out_features == num_classes
    assert list(net.state_dict())[-1] == "head.bias"


# First three logits of the second image (10 classes, train mode, float64) that the reference implementations above
# compute from the weights of `fill_with_waves` and the images of `waves`.
REFERENCE_LOGITS = {
    "resnet20": (-0.456097, -0.654667, 0.808187),
    "resnet8x4": (0.198313, -0.19332, 0.064181),
    "wrn-16-1": (0.085374, -0.117772, -0.345661),
    "wrn-40-2": (-0.353189, -0.262609, -0.114202),
    "vgg8": (-0.34619, 0.252574, -0.244904),
    "vgg13": (-0.127646, -0.192816, 0.293994),
    "mobilenetv2-0.5": (-0.224967, -0.285049, -0.275888),
    "shufflenetv1": (-0.178781, -0.235705, 0.165678),
    "shufflenetv2": (0.263165, 0.282122, 0.264643),
    "lenet5": (-1.339372, 0.004362, 1.242316),
    "wrn-16-2-g8": (-0.140494, -0.061155, -0.399731),
    "wrn-40-2-gn": (-0.180132, -0.250511, -0.301501),
    "wrn-40-2-b2g8": (0.105969, 0.034301, 0.052553),
    "wrn-16-2-b4gn": (-0.347658, -0.252688, -0.101647),
}


@torch.no_grad()
def fill_with_waves(net: nn.Module) -> None:
    """Weights without a random generator; parameters in the order in which the networks register them."""
    for i, (name, p) in enumerate(net.named_parameters(), start=1):
        wave = torch.cos(torch.arange(p.numel(), dtype=torch.float64) * i * 0.7 + i).reshape(p.shape)
        if p.ndim > 1:
            p.copy_(wave * (2 / p[0].numel()) ** 0.5)
        else:
            p.copy_(0.3 * wave + (1.0 if name.endswith("weight") else 0.0))


def waves(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.sin(torch.arange(2 * math.prod(shape), dtype=torch.float64) * 0.37).reshape(2, *shape)


@pytest.mark.parametrize("name", REFERENCE_LOGITS)
def test_logits_are_those_of_the_reference_implementation(name: str) -> None:
    shape = (1, 32, 32) if name == "lenet5" else CIFAR
    net = create(name, shape, 10).double()
    fill_with_waves(net)
    with torch.no_grad():
        found = net(waves(shape))[1, :3]
    assert found.tolist() == pytest.approx(REFERENCE_LOGITS[name], abs=2e-6)


def test_conv4_is_four_times_convolution_norm_relu_and_pooling() -> None:
    """Pooling stands behind each block in the papers, in front of the next one here."""
    blocks = [
        nn.Sequential(nn.Conv2d(c, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2))
        for c in (1, 64, 64, 64)
    ]
    paper = nn.Sequential(*blocks, nn.Flatten()).double()
    net: Any = create("conv4", (1, 28, 28), 10).double()
    fill_with_waves(paper)
    fill_with_waves(net)
    with torch.no_grad():
        embed = paper(waves((1, 28, 28)))
        assert embed.shape == (2, 64)
        torch.testing.assert_close(net.tap(waves((1, 28, 28)))["embed"], embed)


# --- taps ----------------------------------------------------------------------------------------------------------

# Feature shapes of the papers' tables (and of RepDistiller's is_feat lists) at 3x32x32: stem, stages, embed.
SHAPES = {
    "resnet20": [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)],
    "resnet8x4": [(32, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (256,)],
    "resnet50-cifar": [(64, 32, 32), (256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4), (2048,)],
    "wrn-40-2": [(16, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)],
    "vgg13": [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4), (512,)],
    "mobilenetv2-0.5": [(16, 16, 16), (12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2), (1280,)],
    "shufflenetv1": [(24, 32, 32), (240, 16, 16), (480, 8, 8), (960, 4, 4), (960,)],
    "shufflenetv2": [(24, 32, 32), (116, 16, 16), (232, 8, 8), (464, 4, 4), (1024,)],
    "lenet5": [(6, 28, 28), (16, 10, 10), (120, 1, 1), (84,)],
    "conv4": [(64, 32, 32), (64, 16, 16), (64, 8, 8), (64, 4, 4), (256,)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_tap_names_order_and_shapes(name: str) -> None:
    stem, *stages, embed = SHAPES[name]
    expected = {"stem": stem}
    for i, shape in enumerate(stages, start=1):
        if name != "mobilenetv2-0.5":  # linear bottlenecks: no ReLU, no pre
            expected[f"pre{i}"] = shape
        expected[f"stage{i}"] = shape
    expected |= {"embed": embed, "logits": (100,)}
    with torch.device("meta"):
        found = {tap: tuple(x.shape[1:]) for tap, x in create(name, CIFAR, 100).tap(torch.zeros(2, *CIFAR)).items()}  # type: ignore[operator]
    assert list(found.items()) == list(expected.items())


def test_vgg_pools_once_more_for_images_of_64_pixels() -> None:
    with torch.device("meta"):
        taps = create("vgg8", (3, 64, 64), 10).tap(torch.zeros(2, 3, 64, 64))  # type: ignore[operator]
    assert [taps[f"stage{i}"].shape[-1] for i in range(1, 5)] == [32, 16, 8, 4]
    assert on_meta("vgg8", (3, 64, 64)).state_dict().keys() == on_meta("vgg8").state_dict().keys()


@pytest.mark.parametrize("name", names())
def test_taps_agree_with_each_other_and_with_forward(name: str) -> None:
    net, x = copy.deepcopy(small(name)), images(size(name))
    taps = net.tap(x)
    stages = [tap for tap in taps if tap.startswith("stage")]
    pres = [tap for tap in taps if tap.startswith("pre")]
    assert len(pres) == (len(stages) if getattr(net, "rectified", True) else 0)
    for pre in pres:
        assert taps[pre].min() < 0  # would be lost if a ReLU worked in place
        assert torch.equal(taps[pre.replace("pre", "stage")], F.relu(taps[pre]))
    assert torch.equal(taps["logits"], F.linear(taps["embed"], net.head.weight, net.head.bias))
    assert torch.equal(taps["logits"], net(x))
    assert list(net.tap(x, ["embed"])) == ["embed", "logits"]
    assert list(net.tap(x, [])) == ["logits"]
    # Four passes by now, and none has updated running statistics twice.
    assert all(int(module.num_batches_tracked) == 4 for module in norms(net))
    with pytest.raises(KeyError):
        net.tap(x, ["stage9"])
    # A loss on every tap at once reaches the first layer, and no activation was overwritten on the way.
    sum(value.square().mean() for value in taps.values()).backward()
    grad = next(net.parameters()).grad
    assert grad is not None
    assert grad.isfinite().all()
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("name", names())
def test_a_tail_goes_on_bit_for_bit_where_its_stage_ends(name: str) -> None:
    net, x = copy.deepcopy(small(name)).double().eval(), images(size(name), 2).double()
    taps, own = net.tap(x), {id(p) for p in net.parameters()}
    assert torch.equal(net(x), taps["logits"])
    stages = [tap for tap in taps if tap.startswith("stage")]
    for i, stage in enumerate(stages):
        tail = net.tail(stage)
        found = tail.tap(taps[stage])
        assert list(found) == list(taps)[list(taps).index(stage) + 1 :]
        assert all(torch.equal(value, taps[tap]) for tap, value in found.items())
        assert torch.equal(tail(taps[stage]), taps["logits"])
        assert not tail.training
        assert own >= {id(p) for p in tail.parameters()}
        if stage != stages[-1]:  # a tail has tails too
            assert torch.equal(tail.tail(stages[-1])(taps[stages[-1]]), taps["logits"])
        with pytest.raises(DoesNotFit, match="stage9"):
            tail.tail("stage9")
        if i:
            with pytest.raises(DoesNotFit, match=stages[i - 1]):
                tail.tail(stages[i - 1])


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn-16-1", "mobilenetv2-0.5", "shufflenetv2", "vgg8", "lenet5", "conv4", "fc-1200-1200-bn"]
)
def test_every_parameter_of_a_copied_tail_learns_and_none_of_its_networks(name: str) -> None:
    net, x = copy.deepcopy(small(name)), images(size(name))
    for stage in [tap for tap in net.tap(x) if tap.startswith("stage")]:
        tail = copy.deepcopy(net.tail(stage))
        tail(net.tap(x)[stage].detach()).square().mean().backward()
        assert all(p.grad is not None for p in tail.parameters())
        assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["timm/test_efficientnet", "torchvision/mobilenet_v3_small"])
def test_networks_from_elsewhere_have_no_tail(name: str) -> None:
    net: Any = create(name, CIFAR, 10)
    with pytest.raises(DoesNotFit, match="zoo"):
        net.tail("stage2")


def test_names_in_state_dicts_stay() -> None:
    """Weights that are kept are found again by these."""
    block = ["norm.weight", "norm.bias", "branch.0.weight", "branch.1.weight", "branch.1.bias", "branch.3.weight"]
    cheap = [*block, "branch.4.weight", "branch.4.bias", "branch.6.weight", "branch.7.weight", "branch.7.bias"]
    for name, inner in (("wrn-16-1", block), ("wrn-16-2-g8", [*cheap, "branch.9.weight"])):
        keys = [key for key, _ in on_meta(name).named_parameters()]
        assert keys[0] == "stem.weight"
        assert [key for key in keys if key.startswith("stages.1.1.")] == [f"stages.1.1.{key}" for key in inner]
        assert keys[-4:] == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    keys = [key for key, _ in on_meta("mobilenetv2-0.5").named_parameters()]
    assert [key for key in keys if key.startswith(("stem.0", "stages.0.1.branch.0", "neck.0", "head.w"))] == [
        "stem.0.weight",
        "stages.0.1.branch.0.weight",
        "neck.0.weight",
        "head.weight",
    ]


@pytest.mark.parametrize("name", ["resnet8x0.5", "wrn-16-1", "mobilenetv2-0.5", "shufflenetv2", "vgg8"])
def test_tap_moves_the_running_statistics_as_forward_does(name: str) -> None:
    by_tap, by_forward, before = copy.deepcopy(small(name)), copy.deepcopy(small(name)), small(name).state_dict()
    by_tap.tap(images(size(name)))
    by_forward(images(size(name)))
    moved = by_tap.state_dict()
    for key, value in by_forward.state_dict().items():
        assert torch.equal(moved[key], value)
        if "num_batches_tracked" in key:
            assert value == before[key] + 1


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_pre_of_a_wide_resnet_is_the_normalised_sum_of_its_stage(depth: int) -> None:
    net, x = copy.deepcopy(small("wrn-16-1")).eval(), images((3, 8, 8))
    sums: list[torch.Tensor] = []
    net.stages[depth - 1][-1].register_forward_hook(lambda module, args, output: sums.append(output))
    taps = net.tap(x)
    norm = net.norm if depth == 3 else net.stages[depth][0].norm
    expected = (sums[0] - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(taps[f"pre{depth}"], expected)


@pytest.mark.parametrize("name", [*WIDTHS, *(name for name in REPDISTILLER if name.startswith(("resnet", "wrn")))])
def test_tiny_grey_images(name: str) -> None:
    if name in ("resnet110", "resnet32x4", "resnet50-cifar"):  # same code as their neighbours; shapes suffice
        with torch.device("meta"):
            assert create(name, (1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        return
    net = create(name, (1, 8, 8), 10)
    logits = net(images((1, 8, 8)))
    assert logits.shape == (4, 10)
    assert logits.isfinite().all()


def test_shuffle_is_the_channel_shuffle_of_the_paper() -> None:
    x = torch.arange(6.0)[None, :, None, None]
    assert Shuffle(3)(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert Shuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("name", ["resnet8x4", "wrn-16-2", "vgg8", "mobilenetv2-0.5"])
def test_convolutions_start_from_he_initialisation(name: str) -> None:
    torch.manual_seed(0)
    for module in create(name, CIFAR, 100).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            std = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(std, rel=0.05)
            assert module.bias is None or not module.bias.any()


# --- user errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("wrn_16_2", CIFAR, "wrn-16-2"),
        ("resnet21", CIFAR, "resnet20"),
        ("zzz", CIFAR, "torchvision/NAME or timm/NAME"),
        ("fpn-resnet8", CIFAR, "no network for classification"),
        ("mlp-64", CIFAR, "no network for classification"),
        ("torchvision/fcn_resnet50", CIFAR, "torchvision/resnet50"),
        ("resnet8", (4,), "vectors of 4"),
        ("conv4", (3, 8, 8), "at least 16x16"),
        ("resnet8", (3, 4, 4), "at least 8x8"),
        ("lenet5", (1, 8, 8), "28x28 or 32x32"),
        ("torchvision/resnet81", CIFAR, "torchvision/resnet18"),
        ("torchvision/resnet18", (1, 32, 32), "3 channels"),
        ("torchvision/squeezenet1_1", CIFAR, "linear classifier"),
        ("torchvision/mobilenet_v3_smal", CIFAR, "torchvision/mobilenet_v3_small"),
        ("timm/vit_tinny_patch16_224", CIFAR, "timm/vit_tiny_patch16_224"),
        ("timm/resnet18.a1_in1k", CIFAR, "timm/resnet18"),
        ("timm/vit_tiny_patch16_224", (3, 8, 8), "cannot take images of 3x8x8"),
    ],
)
def test_a_users_mistake_is_one_sentence_with_the_mend(name: str, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        create(name, shape, 10)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


# --- torchvision and timm ------------------------------------------------------------------------------------------

FIVE = ["stem", "stage1", "stage2", "stage3", "stage4", "embed", "logits"]
FOUR = FIVE[1:]
WRAPPED = {
    "torchvision/resnet18": (CIFAR, FIVE),
    "torchvision/mobilenet_v3_small": (CIFAR, FIVE),
    "torchvision/vgg11_bn": (CIFAR, FIVE),
    "torchvision/convnext_tiny": (CIFAR, FOUR),
    "torchvision/efficientnet_b0": (CIFAR, FIVE),
    "timm/resnet18": ((1, 32, 32), FIVE),
    "timm/mobilenetv3_small_100": ((1, 32, 32), FIVE),
    "timm/vit_tiny_patch16_224": ((1, 32, 32), FOUR),
    "timm/convnext_atto": ((1, 32, 32), FOUR),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_networks(name: str) -> None:
    shape, expected = WRAPPED[name]
    state = torch.get_rng_state()
    net: Any = create(name, shape, 7)
    assert net.training
    assert not torch.equal(state, torch.get_rng_state())  # weights come from the global random state
    spec = probe(name, net, shape)
    assert list(spec.shapes) == expected
    sides = [spec.shapes[stage][-1] for stage in spec.all("stage")]
    assert sides == ([2] * 4 if "vit" in name else [16, 8, 4, 2] if "vgg" in name else [8, 4, 2, 1])
    assert not any(getattr(module, "inplace", False) for module in net.modules())

    net.eval()
    x = images(shape, 2)
    taps = net.tap(x, ["stage2", "embed"])
    assert list(taps) == ["stage2", "embed", "logits"]
    assert torch.equal(taps["logits"], net(x))
    torch.testing.assert_close(taps["logits"], taps["embed"] @ net.head.weight.T + net.head.bias)
    taps["stage2"].square().mean().backward()
    assert next(net.parameters()).grad.abs().sum() > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with pytest.raises(KeyError):
        net.tap(x, ["pre1"])


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v3_small", "timm/vit_tiny_patch16_224"])
def test_weights_of_a_wrapped_network_load_into_a_fresh_one(name: str) -> None:
    old, new, x = create(name, CIFAR, 7).eval(), create(name, CIFAR, 7).eval(), images(CIFAR, 2)
    assert not torch.equal(old(x), new(x))
    new.load_state_dict(old.state_dict())
    assert torch.equal(old(x), new(x))
    tensors = [value.data_ptr() for value in old.state_dict().values()]
    assert len(tensors) == len(set(tensors))  # the head is not stored twice


def test_taps_of_a_torchvision_network_are_its_layers() -> None:
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    net: Any = create("torchvision/resnet18", CIFAR, 7).eval()
    plain = get_model("resnet18", weights=None, num_classes=7).eval()
    plain.load_state_dict({key.removeprefix("net."): value for key, value in net.state_dict().items()})
    nodes = {"relu": "stem", "flatten": "embed", "fc": "logits"} | {f"layer{i}": f"stage{i}" for i in range(1, 5)}
    x = images(CIFAR, 2)
    expected, found = create_feature_extractor(plain, nodes)(x), net.tap(x)
    assert expected.keys() == found.keys()
    for tap, value in expected.items():
        torch.testing.assert_close(found[tap], value)


def test_taps_of_a_timm_network_are_its_feature_pyramid() -> None:
    import timm

    net: Any = create("timm/resnet18", CIFAR, 7).eval()
    plain = timm.create_model("resnet18", features_only=True).eval()
    weights = {key.removeprefix("net."): value for key, value in net.state_dict().items() if ".fc." not in key}
    plain.load_state_dict(weights)
    x = images(CIFAR, 2)
    found = net.tap(x)
    for tap, value in zip(["stem", "stage1", "stage2", "stage3", "stage4"], plain(x), strict=True):
        torch.testing.assert_close(found[tap], value)


def test_a_vit_gives_every_third_of_its_twelve_blocks() -> None:
    net: Any = create("timm/vit_tiny_patch16_224", CIFAR, 7).eval()
    tokens: list[torch.Tensor] = []
    for block in net.net.blocks:
        block.register_forward_hook(lambda module, args, output: tokens.append(output))
    taps = net.tap(images(CIFAR, 2))
    for i in range(1, 5):
        expected = tokens[3 * i - 1][:, 1:].transpose(1, 2).reshape(2, 192, 2, 2)  # without the class token
        torch.testing.assert_close(taps[f"stage{i}"], expected)


@pytest.mark.parametrize("name", ["timm/test_efficientnet", "torchvision/mobilenet_v3_small"])
def test_a_wrapped_network_in_train_mode_moves_its_statistics_once(name: str) -> None:
    net: Any = create(name, CIFAR, 7)
    net.tap(images(CIFAR))
    assert all(int(module.num_batches_tracked) == 1 for module in norms(net))


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/mobilenet_v3_small"])
def test_a_copy_of_a_wrapped_network_taps_itself(name: str) -> None:
    net: Any = create(name, CIFAR, 7).eval()
    twin, x = copy.deepcopy(net), images(CIFAR, 2)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert net.tap(x)["stage1"].abs().sum() > 0
    assert twin.tap(x)["stage1"].abs().sum() == 0


def test_building_a_network_twice_from_one_seed_gives_the_same_weights() -> None:
    for name in ("shufflenetv1", "timm/test_vit"):
        torch.manual_seed(3)
        first = create(name, CIFAR, 10).state_dict()
        torch.manual_seed(3)
        second = create(name, CIFAR, 10).state_dict()
        assert all(torch.equal(value, second[key]) for key, value in first.items())
