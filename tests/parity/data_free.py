"""Golden cases of data-free distillation (6.1); `test_parity` checks them all."""

from __future__ import annotations

from torch import Tensor

from kdbench.losses import cross_entropy, kl
from methods.data_free import deep_inversion as di
from methods.data_free.dafl import activation_loss, information_entropy_loss, one_hot_loss
from methods.data_free.zskd import class_similarity, concentration, impression_loss
from parity.arrays import Arrays, golden


@golden()
def dafl(v: Arrays) -> dict[str, Tensor]:
    t = v.leaf("teacher_logits")
    one_hot, entropy = one_hot_loss(t), information_entropy_loss(t, "log10")
    activation = activation_loss(v.leaf("teacher_feature"))
    student = kl(v.leaf("student_logits"), t.detach())
    generator = one_hot + 5 * entropy + 0.1 * activation
    return {
        "loss": generator + student,
        "loss_generator": generator,
        "loss_one_hot": one_hot,
        "loss_information_entropy": entropy,
        "loss_activation": activation,
        "loss_kd": student,
    }


@golden()
def data_free_onehot_balance(v: Arrays) -> dict[str, Tensor]:
    t = v.leaf("teacher_logits")
    one_hot, balance = one_hot_loss(t), information_entropy_loss(t, "ln")
    return {"loss": one_hot + 5 * balance, "loss_onehot": one_hot, "loss_balance": balance}


@golden()
def zskd(v: Arrays) -> dict[str, Tensor]:
    cosines = class_similarity(v["classifier_weight"].T)
    return {
        "loss": impression_loss(v.leaf("student_logits"), v["dirichlet_sample"], temperature=20.0),
        "out_cosine_similarity": cosines,
        "out_class_similarity": (cosines - cosines.min()) / (cosines.max() - cosines.min()),
        "out_concentration": concentration(cosines, beta=1.0),
    }


@golden()
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
