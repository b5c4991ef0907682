"""Plain chains of convolutions and max pooling: the small networks of published results, as their code builds them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from kdbench.errors import UserError
from kdbench.models.base import Builder, Shape, StagedNet, Start, start


@dataclass(frozen=True)
class Plan:
    """What a chain is made of.

    Attributes:
        convs: the widths of the convolutions in front of each pooling.
        hidden: of the linear layers in front of the classifier.
        kernel: of the convolutions.
        padded: "same" padding; else none.
        pool: size, stride and padding of the max pooling.
        norm: batch normalisation behind each convolution, and behind each hidden linear layer.
        dropout: what is dropped between poolings, of what the linear layers read, and behind each hidden one.
        noise: standard deviation of Gaussian noise that is added to the input in training.
        weight_norm: of the convolutions (Salimans and Kingma, NeurIPS 2016).
        init: how its weights begin.
    """

    convs: tuple[tuple[int, ...], ...]
    hidden: tuple[int, ...] = ()
    kernel: int = 3
    padded: bool = True
    pool: tuple[int, int, int] = (2, 2, 0)
    norm: tuple[bool, bool] = (False, False)
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise: float = 0.0
    weight_norm: bool = False
    init: Start = "torch"


class Noise(nn.Module):
    """x + ξ, ξ of standard deviation `std`, in training."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x) if self.training else x


def cnn(plan: Plan, shape: Shape, num_classes: int) -> StagedNet:
    """``stem`` is the first pooled map, ``stage`` i the one after i more, behind its ReLU; ``embed`` what the
    classifier reads.

    Raises:
        UserError: the images are so small that nothing is left of them.
    """
    between, flat, behind = plan.dropout
    sides = [_left(plan, side) for side in shape[1:]]
    if min(sides) < 1:
        chain = "-".join(str(widths[-1]) for widths in plan.convs)
        raise UserError(f"a chain of {chain} leaves nothing of images of {shape[1]}x{shape[2]}: enlarge them.")
    blocks: list[nn.Module] = []
    c_in = shape[0]
    for depth, widths in enumerate(plan.convs):
        layers: list[nn.Module] = [nn.Dropout(between)] if depth and between else []
        for k, width in enumerate(widths):
            conv = nn.Conv2d(c_in, width, plan.kernel, padding=plan.kernel // 2 if plan.padded else 0)
            layers += [nn.ReLU()] if k else []
            layers += [weight_norm(conv) if plan.weight_norm else conv]
            layers += [nn.BatchNorm2d(width)] if plan.norm[0] else []
            c_in = width
        # pooled in front of the ReLU that closes the block: of maxima the order does not matter
        blocks.append(nn.Sequential(*layers, nn.MaxPool2d(*plan.pool)))
    first, *rest = blocks
    n_in = c_in * sides[0] * sides[1]
    neck: list[nn.Module] = [nn.Flatten(), *([nn.Dropout(flat)] if flat else [])]
    for width in plan.hidden:
        neck += [nn.Linear(n_in, width), *([nn.BatchNorm1d(width)] if plan.norm[1] else []), nn.ReLU()]
        neck += [nn.Dropout(behind)] if behind else []
        n_in = width
    stem = nn.Sequential(*([Noise(plan.noise)] if plan.noise else []), first, nn.ReLU())
    net = StagedNet(stem, [[block] for block in rest], nn.Linear(n_in, num_classes), nn.Sequential(*neck))
    start(net, plan.init)
    return net


def _left(plan: Plan, side: int) -> int:
    """How many of `side` pixels the chain leaves."""
    size, stride, padding = plan.pool
    for widths in plan.convs:
        side -= 0 if plan.padded else len(widths) * (plan.kernel - 1)
        side = (side + 2 * padding - size) // stride + 1
    return side


PLANS = {
    # ferretj/temporal-ensembling, mnist_eval.py: with its defaults, whatever config.py says of widths
    "cnn-16-32-wn": Plan(((16,), (32,)), pool=(3, 2, 1), dropout=(0.0, 0.5, 0.0), noise=0.15, weight_norm=True),
    # a7b23/Distilling-the-knowledge-in-neural-network, distill.py
    "cnn-32-64-128-dropout": Plan(((32,), (64,), (128,)), (625,), dropout=(0.2, 0.2, 0.5), init="glorot"),
    # xiaojiew1/KDGAN, arxiv/slim/nets/lenet.py
    "lenet-32-64": Plan(((32,), (64,)), (1024,), kernel=5, dropout=(0.0, 0.0, 0.5), init="tenth"),
    # peterliht/knowledge-distillation-pytorch, model/net.py, without dropout
    "cnn-32-64-128-bn": Plan(((32,), (64,), (128,)), (128,), norm=(True, True)),
    # passalis/pkth, models/cifar_very_tiny.py (Cifar_Tiny in passalis/probabilistic_kt) and models/cifar_tiny.py
    "cnn-8-16-32-valid": Plan(((8,), (16,), (32,)), (64,), padded=False, norm=(True, False)),
    "cnn-16-32-64-valid": Plan(((16,), (32,), (64,)), (128,), padded=False, norm=(True, False)),
    # HHorimoto/pytorch-dml, src/models/models.py with widen_factor 2
    "cnn-32-64-2048": Plan(((32,), (64,)), (2048, 2048)),
    # imirzadeh/Teacher-Assistant-Knowledge-Distillation, plain_cnn_cifar.py, plane_cifar100_book
    "plane2": Plan(((32,), (32,)), norm=(True, False)),
    "plane4": Plan(((32, 32), (64, 64)), norm=(True, False)),
    "plane10": Plan(((32, 32), (64, 64), (128, 128), (256,) * 4), (512,), norm=(True, False)),
}
NETS: dict[str, Builder] = {name: partial(cnn, plan) for name, plan in PLANS.items()}
