"""Golden cases of applications (10); `test_parity` checks them all."""

from __future__ import annotations

from torch import Tensor

from kdbench.losses import cross_entropy
from methods.applications import self_ensembling
from methods.applications.cwd import cwd_loss
from methods.applications.pixel_wise import pixel_wise_loss
from methods.learning.mean_teacher import consistency_loss
from parity.arrays import Arrays, golden


@golden()
def da_self_ensembling(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_logits"), v["teacher_logits"]
    ce = cross_entropy(v.leaf("source_logits"), v["target"])
    mask = self_ensembling.confident(t, threshold=0.6)
    unsupervised = consistency_loss(s, t, mask) + 0.005 * self_ensembling.class_balance_loss(s, mask)
    return {"loss": ce + 3 * unsupervised, "loss_cls": ce, "loss_unsup": unsupervised, "out_mask": mask}


@golden()
def skd_pixel_wise(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_logits")
    return {"loss": len(s) * pixel_wise_loss(s, v["teacher_logits"])}


@golden()
def cwd(v: Arrays) -> dict[str, Tensor]:
    loss = cwd_loss(v.leaf("student_logits"), v["teacher_logits"], temperature=1.0)
    return {"loss": 5 * loss, "loss_cirkd": loss}
