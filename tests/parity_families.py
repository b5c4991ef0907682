"""The golden cases of families beyond the classifier with one teacher: for `test_parity`, which checks them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdbench.losses import kl
from methods.applications import self_ensembling
from methods.applications.cwd import cwd_loss
from methods.applications.pixel_wise import pixel_wise_loss
from methods.data_free import deep_inversion as di
from methods.data_free.zskd import class_similarity, concentration, impression_loss
from methods.few_sample.fskd import least_squares
from methods.learning.bic import bias_loss, corrected
from methods.learning.icarl import icarl_loss
from methods.learning.lucir import CosineHead, less_forget_loss, margin_ranking_loss
from methods.learning.lwf import new_classes_loss, old_classes_loss
from methods.learning.mean_teacher import consistency_loss, decay_at, follow
from methods.learning.policy_distillation import policy_loss
from methods.learning.sskd import selected, selected_kl, similarity, sources, split

if TYPE_CHECKING:
    from test_parity import Arrays


def zskd(v: Arrays) -> dict[str, Tensor]:
    cosines = class_similarity(v["classifier_weight"].T)
    return {
        "loss": impression_loss(v.leaf("student_logits"), v["dirichlet_sample"], temperature=20.0),
        "out_cosine_similarity": cosines,
        "out_class_similarity": (cosines - cosines.min()) / (cosines.max() - cosines.min()),
        "out_concentration": concentration(cosines, beta=1.0),
    }


def deep_inversion(v: Arrays) -> dict[str, Tensor]:
    x, t = v.leaf("image"), v.leaf("teacher_logits")
    layers = [
        di.statistics_loss(v.leaf(f"bn_input_{i}"), v[f"bn_running_mean_{i}"], v[f"bn_running_var_{i}"])
        for i in range(2)
    ]
    terms = {
        "loss_tv_l1": di.absolute_variation(x),
        "loss_tv_l2": di.total_variation(x),
        "loss_r_feature": 10 * layers[0] + layers[1],
        "loss_l2": di.image_norm(x),
        "loss_adi": di.competition_loss(v.leaf("student_logits"), t),
    }
    priors = 1e-4 * terms["loss_tv_l2"] + 0.05 * terms["loss_r_feature"] + 1e-5 * terms["loss_l2"]
    loss = cross_entropy(t, v["target"]) + priors + 0.2 * terms["loss_adi"]
    return {"loss": loss, **terms, "loss_r_feature_0": layers[0], "loss_r_feature_1": layers[1]}


def fskd_lstsq(v: Arrays) -> dict[str, Tensor]:
    s, t = v["student_feature"], v["teacher_feature"][:, v["kept_channels"]]
    q = least_squares(s, t)
    squares = (torch.einsum("ij,bjhw->bihw", q, s) - t).square()
    return {"out_conv_weight": q, "loss": squares.sum(), "loss_mean": squares.mean()}


def mean_teacher(v: Arrays) -> dict[str, Tensor]:
    s, y = v.leaf("student_logits"), v["target"]
    labelled = y >= 0
    label = cross_entropy(s[labelled], y[labelled], reduction="sum") / len(y)
    consistency = 16.529888822158657 * consistency_loss(s, v["teacher_logits"])  # its weight in epoch 2 of 5
    return {"loss": label + consistency, "loss_class": label, "loss_consistency": consistency}


def mean_teacher_ema(v: Arrays) -> dict[str, Tensor]:
    average, student = (nn.ParameterList([v[f"param_{name}"]]).requires_grad_(False) for name in ("teacher", "student"))
    follow(average, student, decay_at(torch.tensor(10.0, dtype=v.dtype), decay=0.97))
    return {"out_param_teacher": average[0], "loss": average[0].square().sum()}


def da_self_ensembling(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_logits"), v["teacher_logits"]
    ce = cross_entropy(v.leaf("source_logits"), v["target"])
    mask = self_ensembling.confident(t, threshold=0.6)
    unsupervised = consistency_loss(s, t, mask) + 0.005 * self_ensembling.class_balance_loss(s, mask)
    return {"loss": ce + 3 * unsupervised, "loss_cls": ce, "loss_unsup": unsupervised, "out_mask": mask}


def sskd(v: Arrays) -> dict[str, Tensor]:
    s, t, y = v.leaf("student_logits"), v["teacher_logits"], v["target"]
    (plain, turned), (t_plain, t_turned) = split(s), split(t)
    a, b = similarity(v.leaf("student_proj")), similarity(v["teacher_proj"])
    rows_tf = selected(t_turned, y.repeat_interleave(3), ratio=1.0)
    rows_ss = selected(b, sources(len(y)), ratio=0.75)
    terms = {
        "loss_ce": cross_entropy(plain, y),
        "loss_kd": kl(plain, t_plain, 4.0),
        "loss_tf": selected_kl(turned, t_turned, rows_tf, 4.0),
        "loss_ss": selected_kl(a, b, rows_ss, 0.5),
    }
    weights = {"loss_ce": 0.1, "loss_kd": 0.9, "loss_tf": 2.7, "loss_ss": 10.0}
    return {
        "loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum(),
        **terms,
        "out_index_tf": rows_tf.nonzero().squeeze(1),
        "out_index_ss": rows_ss.nonzero().squeeze(1),
        "out_student_similarity": a,
        "out_teacher_similarity": b,
    }


def lwf_pycil(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_logits")
    kd = old_classes_loss(s[:, :5], v["teacher_logits"], temperature=2.0)
    new = new_classes_loss(s, v["target"], old=5)
    return {"loss": 3 * kd + new, "loss_kd": kd, "loss_clf": new}


def lwf_facil(v: Arrays) -> dict[str, Tensor]:
    heads = [v.leaf(f"student_logits_task{k}") for k in range(3)]
    past = torch.cat([v[f"teacher_logits_task{k}"] for k in range(2)], 1)
    s = torch.cat(heads, 1)
    kd = old_classes_loss(s[:, : past.shape[1]], past, temperature=2.0)
    return {"loss": 3 * kd + new_classes_loss(s, v["target"], old=past.shape[1])}


def icarl(v: Arrays) -> dict[str, Tensor]:
    order = v["class_order"]  # classes are numbered in order of arrival with us
    rank = order.argsort()
    s, past = v.leaf("student_logits")[:, order], v["teacher_logits"][:, order]
    return {"loss": icarl_loss(s, past, rank[v["target"]], old=3)}


def lucir(v: Arrays) -> dict[str, Tensor]:
    head = CosineHead(6, 10).to(v.dtype)
    fc1, fc2, scale = (v.leaf(f"param_{name}") for name in ("fc1_weight", "fc2_weight", "sigma"))
    weights = {"weight": torch.cat([fc1, fc2]), "scale": scale}
    f, y = v.leaf("feature"), v["target"]
    cosines = torch.func.functional_call(head, weights, (f,))
    forget = (5 * 1.5**0.5) * less_forget_loss(f, v["feature_old"])  # 6 old classes, 4 new ones
    ce = cross_entropy(scale * cosines, y)
    margin = margin_ranking_loss(cosines, y, old=6, hardest=2, margin=0.5)
    return {"loss": forget + ce + margin, "loss_less_forget": forget, "loss_ce": ce, "loss_margin": margin}


def lucir_kd_baseline(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_logits")
    kd = 0.25 * kl(s[:, :6], v["teacher_logits"], 2.0)
    return {"loss": kd + cross_entropy(s, v["target"]), "loss_kd": kd}


def bic(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_logits")
    kd, ce = old_classes_loss(s[:, :3], v["teacher_logits"], temperature=2.0), cross_entropy(s, v["target"])
    return {"loss": 0.5 * kd + 0.5 * ce, "loss_distill": kd, "loss_ce": ce}  # 3 of 6 classes are old


def bic_bias_correction(v: Arrays) -> dict[str, Tensor]:
    shift = v.leaf("param_gamma")
    logits = corrected(v["student_logits"], v.leaf("param_beta"), shift, old=3, seen=6)
    return {"loss": bias_loss(logits, v["target"], shift), "loss_ce": cross_entropy(logits, v["target"])}


def policy_distillation_kl(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_q")
    mean = policy_loss(s, v["teacher_q"], temperature=0.01)
    return {"loss": len(s) * mean, "loss_mean": mean}


def skd_pixel_wise(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_logits")
    return {"loss": len(s) * pixel_wise_loss(s, v["teacher_logits"])}


def cwd(v: Arrays) -> dict[str, Tensor]:
    loss = cwd_loss(v.leaf("student_logits"), v["teacher_logits"], temperature=1.0)
    return {"loss": 5 * loss, "loss_cirkd": loss}


FAMILIES: dict[str, Callable[[Arrays], dict[str, Tensor]]] = {
    f.__name__: f
    for f in (
        *(zskd, deep_inversion, fskd_lstsq, mean_teacher, mean_teacher_ema, da_self_ensembling, sskd),
        *(lwf_pycil, lwf_facil, icarl, lucir, lucir_kd_baseline, bic, bic_bias_correction),
        *(policy_distillation_kl, skd_pixel_wise, cwd),
    )
}
