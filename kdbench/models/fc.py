"""Multilayer perceptrons on the pixels of images: those of published results, most of them on MNIST."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.base import Builder, Shape, StagedNet, Start, start

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Plan:
    """What a perceptron is made of.

    Attributes:
        widths: of the hidden layers.
        activation: behind each of them.
        norm: batch normalisation in front of each activation.
        dropout: how many outputs of each hidden layer are dropped, and of pixels.
        max_norm: the largest 2-norm of the weights that lead to a hidden unit (Srebro and Shraibman 2005).
        init: how its weights begin.
        side: the image is looked at so coarsely, see `Shrunk`.
        antialias: and every pixel of it counts.
    """

    widths: tuple[int, ...] = ()
    activation: Literal["relu", "sigmoid", "tanh"] = "relu"
    norm: bool = False
    dropout: tuple[float, float] = (0.0, 0.0)
    max_norm: float | None = None
    init: Start = "torch"
    side: int | None = None
    antialias: bool = False


class Shrunk(nn.Module):
    """Images at `side` x `side` pixels, bilinear, as Pillow shrinks them, and with it ``scipy.misc.imresize``.

    Args:
        antialias: with a filter as wide as what is left of the image asks for, as since Pillow 2.7 of January 2015;
            else from the four nearest pixels, as before, so that a quarter of the side has the mean of the middle 2x2
            of each 4x4 pixels.
    """

    def __init__(self, side: int, antialias: bool) -> None:
        super().__init__()
        self.side, self.antialias = side, antialias

    def forward(self, x: Tensor) -> Tensor:
        if self.antialias:  # for which PyTorch has no bfloat16
            return F.interpolate(x.float(), (self.side, self.side), mode="bilinear", antialias=True).to(x)
        return F.interpolate(x, (self.side, self.side), mode="bilinear")


class MaxNorm(nn.Linear):
    """A linear layer whose rows are scaled down to a 2-norm of `limit` before each pass in training, that is after each
    step but the last.
    """

    def __init__(self, n_in: int, n_out: int, limit: float) -> None:
        super().__init__(n_in, n_out)
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            # past autograd, which would take what an earlier pass of the same step remembers for changed: it is not
            self.weight.data.renorm_(2, 0, self.limit)
        return super().forward(x)


def fc(plan: Plan, shape: Shape, num_classes: int) -> StagedNet:
    """``stem`` is the flattened image, (B, pixels); ``stage`` i the i-th hidden layer, (B, width), behind its
    activation and in front of its dropout; ``embed`` what the classifier reads.
    """
    hidden, visible = plan.dropout
    side = (plan.side, plan.side) if plan.side else shape[1:]
    sizes = [shape[0] * side[0] * side[1], *plan.widths]
    stem = nn.Sequential(*([Shrunk(plan.side, plan.antialias)] if plan.side else []), nn.Flatten(), *_dropout(visible))
    stages = []
    for depth, (n_in, n_out) in enumerate(pairwise(sizes)):
        linear = MaxNorm(n_in, n_out, plan.max_norm) if plan.max_norm else nn.Linear(n_in, n_out)
        layers: list[nn.Module] = [*_dropout(hidden if depth else 0.0), linear]
        layers += [nn.BatchNorm1d(n_out)] if plan.norm else []
        layers += [] if plan.activation == "relu" else [ACTIVATIONS[plan.activation]()]  # `StagedNet` has the ReLUs
        stages.append([nn.Sequential(*layers)])
    head = nn.Linear(sizes[-1], num_classes)
    neck = nn.Dropout(hidden) if hidden and plan.widths else nn.Identity()
    net = StagedNet(stem, stages, head, neck, rectified=plan.activation == "relu")
    start(net, plan.init)
    return net


def _dropout(p: float) -> list[nn.Module]:
    return [nn.Dropout(p)] if p else []


HINTON = (0.5, 0.2)
"""Hinton et al. 2012, arXiv:1207.0580: half of the hidden units and a fifth of the pixels."""

PLANS = {
    # lopezpaz/distillation_privileged_information, code/synthetic.py and code/mnist.py
    "linear": Plan(init="glorot"),
    "fc-20-20": Plan((20, 20), init="glorot"),
    "fc-20-20-at7": Plan((20, 20), init="glorot", side=7),
    "fc-20-20-at7-antialias": Plan((20, 20), init="glorot", side=7, antialias=True),
    # ContinualAI/continual-learning-baselines, experiments/split_mnist/lwf.py and experiments/permuted_mnist/lfl.py
    "fc-200-tanh": Plan((200,), "tanh"),
    "fc-256": Plan((256,)),
    # GT-RIPL/Continual-Learning-Benchmark, models/mlp.py, and GMvandeVen/continual-learning
    "fc-400-400": Plan((400, 400)),
    # Hinton et al. 2015, arXiv:1503.02531, section 3; dropout and max-norm as in the paper that it cites for them,
    # whose squared limit of 15 is from memory
    "fc-800-800": Plan((800, 800)),
    "fc-1200-1200-dropout": Plan((1200, 1200), dropout=HINTON, max_norm=math.sqrt(15)),
    # iRapha/replayed_distillation, models/hinton800.py and models/hinton1200.py
    "fc-800-800-unit": Plan((800, 800), init="unit"),
    "fc-1200-1200-dropout-unit": Plan((1200, 1200), dropout=HINTON, init="unit"),
    # xiaojiew1/KDGAN, arxiv/kdgan/utils.py, build_mlp_logits
    "fc-800-800-dropout": Plan((800, 800), dropout=(0.12, 0.0), init="glorot"),
    # a7b23/Distilling-the-knowledge-in-neural-network, student.py
    "fc-1000-sigmoid": Plan((1000,), "sigmoid", init="glorot"),
    # takerum/vat, models/fnn_mnist_semisup.py and README, but for the batch norm that it has in front of the softmax: a
    # classifier is linear here
    "fc-1200-1200-bn": Plan((1200, 1200), norm=True),
    "fc-1200-600-300-150-bn": Plan((1200, 600, 300, 150), norm=True),
}
NETS: dict[str, Builder] = {name: partial(fc, plan) for name, plan in PLANS.items()}
