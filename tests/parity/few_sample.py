"""Golden cases of few samples (6.2); `test_parity` checks them all."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.few_sample.cross_distillation import cross_distillation_loss
from methods.few_sample.fskd import least_squares
from parity.arrays import Arrays, golden


@golden()
def fskd_lstsq(v: Arrays) -> dict[str, Tensor]:
    s, t = v["student_feature"], v["teacher_feature"][:, v["kept_channels"]]
    q = least_squares(s, t)
    squares = (torch.einsum("ij,bjhw->bihw", q, s) - t).square()
    return {"out_conv_weight": q, "loss": squares.sum(), "loss_mean": squares.mean()}


@golden()
def cross_distillation(v: Arrays) -> dict[str, Tensor]:
    weights = v.leaf("param_weight"), v["teacher_weight"]
    return {"loss": cross_distillation_loss(*weights, v["student_input"], v["teacher_input"], mu=0.6)}
