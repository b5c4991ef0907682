"""Golden cases of data-free distillation (6.1); `test_parity` checks them all."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.losses import cross_entropy, kl
from methods.data_free import deep_inversion as di
from methods.data_free import dfad as adversarial
from methods.data_free import kegnet as keg
from methods.data_free.cmi import Head, contrastive_loss, decision_adversarial_loss
from methods.data_free.dafl import activation_loss, information_entropy_loss, one_hot_loss
from methods.data_free.zskd import class_similarity, concentration, impression_loss
from methods.data_free.zskt import attention_loss, belief_loss
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


@golden()
def dfad(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_logits"), v.leaf("teacher_logits")
    return {
        "loss": adversarial.discrepancy(s, t.detach()),
        "loss_generator": adversarial.adversarial_loss(s, t, "l1"),
        "loss_generator_log": adversarial.adversarial_loss(s, t, "log"),
    }


@golden()
def zskt(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_logits"), v.leaf("teacher_logits")
    attention = attention_loss(
        [v.leaf(f"student_activation_{i}") for i in range(2)], [v[f"teacher_activation_{i}"] for i in range(2)]
    )
    divergence = belief_loss(s, t, temperature=1.0)
    return {"loss": divergence + 250 * attention, "loss_generator": -divergence, "loss_attention": 250 * attention}


@golden()
def kegnet(v: Arrays) -> dict[str, Tensor]:
    z = v["noise"]
    images = v.leaf("generated")
    terms = {
        "loss_classification": keg.classification_loss(v.leaf("classifier_logits"), v["label_distribution"]),
        "loss_decoder": keg.decoder_loss(v.leaf("decoded_noise"), z),
        "loss_diversity": keg.diversity_loss(z, images),
    }
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}


@golden()
def cmi_contrastive(v: Arrays) -> dict[str, Tensor]:
    head = Head(8, 5)
    v.load(head, {f"layers.{i}.{part}": f"head_{i}_{part}" for i in (0, 2) for part in ("weight", "bias")})
    local, whole = v.leaf("local_feature"), v.leaf("global_feature")
    cached_local, cached_whole = v["cached_feature"].chunk(2, dim=1)
    projected = head(torch.cat([local, cached_local])), head(torch.cat([whole, cached_whole]))
    return {"loss": contrastive_loss(*projected, fresh=4, temperature=0.1)}


@golden()
def cmi_decision_adversarial(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_logits"), v.leaf("teacher_logits")
    return {"loss": decision_adversarial_loss(s, t), "loss_js": 1 - di.competition_loss(s, t, temperature=3.0)}
