"""Golden cases of several teachers (5); `test_parity` checks them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdbench.losses import kl
from methods.multi_teacher.average import average_loss, members_loss
from methods.multi_teacher.cfl import CommonSpace, mmd_loss, reconstruction_loss
from methods.multi_teacher.uhc import uhc_loss
from parity.arrays import Arrays, golden


def teachers(v: Arrays, what: str = "logits", n: int = 3) -> list[Tensor]:
    return [v[f"teacher_{what}_{i}"] for i in range(n)]


@golden()
def multi_teacher_average_loss(v: Arrays) -> dict[str, Tensor]:
    s, pool = v.leaf("student_logits"), teachers(v)
    single = {f"loss_teacher_{i}": kl(s, t, 4.0) for i, t in enumerate(pool)}
    return {"loss": members_loss(s, pool, 4.0), **single}


@golden()
def multi_teacher_average_prob(v: Arrays) -> dict[str, Tensor]:
    return {"loss": average_loss(v.leaf("student_logits"), teachers(v), 4.0)}


@golden()
def uhc_subset_kl(v: Arrays) -> dict[str, Tensor]:
    classes = [range(3), range(3, 7)]
    return {"loss": uhc_loss(v.leaf("student_logits"), teachers(v, n=2), classes, temperature=5.0)}


def common_space(
    v: Arrays, channels: int, align: Sequence[str], extractor: Sequence[str], decode: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """(the student's code, MMD of codes, error of reconstruction) by our module with the reference's parameters."""
    s, pool = v.leaf("student_feature"), teachers(v, "feature", 2)
    space = CommonSpace(tuple(s.shape[1:]), [tuple(t.shape[1:]) for t in pool], channels)
    names = {f"align_s.{key}": f"align_s.{key}" for key in align}
    names |= {f"extractor.{key}": f"extractor.{key}" for key in extractor}
    for i in range(2):
        names |= {f"align_t.{i}.{key}": f"align_t.{i}.{key}" for key in align}
        names |= {f"decoders.{i}.{key}": f"dec_t.{i}.{key}" for key in decode}
    v.load(space, {ours: theirs.replace(".", "_") for ours, theirs in names.items()})
    code, codes, decoded = space.train()(s, pool)
    amalgamated = torch.stack([mmd_loss(code, other) for other in codes]).sum()
    reconstructed = torch.stack([reconstruction_loss(d, t) for d, t in zip(decoded, pool, strict=True)]).sum()
    return code, amalgamated, reconstructed


def layers(*numbers: int) -> list[str]:
    return [f"{n}.{kind}" for n in numbers for kind in ("weight", "bias")]


@golden()
def cfl_fc(v: Arrays) -> dict[str, Tensor]:
    code, amalgamated, reconstructed = common_space(v, 4, layers(0), layers(0, 2), layers(0, 2))
    soft = kl(v.leaf("student_logits"), torch.cat(teachers(v, n=2), dim=1))
    loss = soft + amalgamated + reconstructed
    return {"loss": loss, "loss_kd": soft, "loss_amal": amalgamated, "loss_recons": reconstructed, "out_hs": code}


@golden()
def cfl_conv(v: Arrays) -> dict[str, Tensor]:
    blocks = [f"{i}.conv{k}.weight" for i in range(2) for k in (1, 2)]
    blocks += [f"{i}.bn{k}.{kind}" for i in range(2) for k in (1, 2) for kind in ("weight", "bias")]
    _, amalgamated, reconstructed = common_space(v, 3, layers(0, 1), blocks, layers(0, 1, 3))
    return {"loss": amalgamated + reconstructed, "loss_amal": amalgamated, "loss_recons": reconstructed}
