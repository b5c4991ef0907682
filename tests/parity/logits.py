"""Golden cases of knowledge from logits (4.1); `test_parity` checks them all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdbench.losses import cross_entropy, kl
from methods.logits.cc import NeighboursCC, correlation_loss, correlations
from methods.logits.darkrank import rank_loss
from methods.logits.dist import DIST, dist_terms
from methods.logits.dkd import DKD, dkd_terms
from methods.logits.endd import dirichlet_loss
from methods.logits.kd import KD
from methods.logits.label_smoothing import LabelSmoothing
from methods.logits.logit_std import LogitStd, LogitStdDKD
from methods.logits.logits_mse import LogitsMSE, logits_mse_loss
from methods.logits.mlkd import MLKD, uncertain
from methods.logits.multi_exit import MultiExit, annealed
from methods.logits.noisy_teacher import noisy_logits
from methods.logits.rkd import RKD
from methods.logits.tf_kd_reg import TfKDReg
from methods.logits.tf_kd_self import TfKDSelf
from methods.logits.ttm import TTM
from methods.logits.wsld import WSLD
from parity.arrays import Arrays, Given, golden, terms_of


@golden()
def kd(v: Arrays) -> dict[str, Tensor]:
    terms = terms_of(
        KD(temperature=4.0), {"logits": v.leaf("student_logits")}, {"logits": v["teacher_logits"]}, v["target"]
    )
    return {"loss": terms["kd"], "loss_ce": terms["ce"], "loss_total": 0.1 * terms["ce"] + 0.9 * terms["kd"]}


@golden()
def logits_mse(v: Arrays) -> dict[str, Tensor]:
    s, t = {"logits": v.leaf("student_logits")}, {"logits": v["teacher_logits"]}
    return {"loss": terms_of(LogitsMSE(variant="mean"), s, t, torch.zeros(8).long())["mimic"]}


@golden()
def noisy_teacher(v: Arrays) -> dict[str, Tensor]:
    s, temperature = v.leaf("student_logits"), 20.0
    t, ce = noisy_logits(v["teacher_logits"], v["noise"], variance=0.1), cross_entropy(s, v["target"])
    # the library takes the squared difference of unlike things by default, its mean over classes, too, in both
    odd = ((s / temperature).log_softmax(1) - (t / temperature).softmax(1)).square().mean()
    return {
        "out_noisy_teacher_logits": t,
        "loss": 0.5 * ce + 0.5 * temperature**2 * odd,
        "loss_kl": 0.5 * ce + 0.5 * kl(s, t, temperature) / s.shape[1],
        "loss_mimic": logits_mse_loss(s, t, "mean"),
    }


@golden()
def label_smoothing(v: Arrays) -> dict[str, Tensor]:
    method = LabelSmoothing(epsilon=0.1, variant="wrong_classes")
    return {"loss": terms_of(method, {"logits": v.leaf("student_logits")}, {}, v["target"])["ce"]}


@golden()
def label_smoothing_uniform(v: Arrays) -> dict[str, Tensor]:
    method = LabelSmoothing(epsilon=0.1, variant="uniform")
    return {"loss": terms_of(method, {"logits": v.leaf("student_logits")}, {}, v["target"])["ce"]}


@golden()
def dkd(v: Arrays) -> dict[str, Tensor]:
    s, t, y = v.leaf("student_logits"), v["teacher_logits"], v["target"]
    tckd, nckd = dkd_terms(s, t, y, temperature=4.0)
    method = DKD(alpha=1.0, beta=8.0, temperature=4.0)
    loss = terms_of(method, {"logits": s}, {"logits": t}, y)["dkd"]
    return {"loss": loss, "loss_tckd": tckd, "loss_nckd": nckd}


@golden()
def rkd(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_embed")
    terms = terms_of(RKD(), {"embed": s, "logits": s}, {"embed": v["teacher_embed"]}, torch.zeros(8).long())
    distance, angle = terms["distance"], terms["angle"]
    return {"loss": 25 * distance + 50 * angle, "loss_distance": distance, "loss_angle": angle}


@golden()
def cc_taylor(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_embed"), v["teacher_embed"]
    return {
        "loss": correlation_loss(s, t, gamma=0.4, order=2),
        "out_corr_s": correlations(s, 0.4, 2),
        "out_corr_t": correlations(t, 0.4, 2),
    }


@golden()
def cc_repdistiller(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_embed"), v["teacher_embed"]
    method = NeighboursCC(dim=12)
    method.embed_s, method.embed_t = nn.Linear(16, 12), nn.Linear(24, 12)
    for side in ("embed_s", "embed_t"):
        names = {name: f"{side}.linear.{name}" for name in ("weight", "bias")}
        v.load(getattr(method, side), names)
    return {"loss": terms_of(method, {"embed": s, "logits": s}, {"embed": t}, torch.zeros(8).long())["cc"]}


@golden()
def darkrank(v: Arrays) -> dict[str, Tensor]:
    return {"loss": rank_loss(v.leaf("student_embed"), v["teacher_embed"], alpha=3.0, beta=3.0, length=4)}


@golden()
def endd_dirichlet(v: Arrays) -> dict[str, Tensor]:
    members = v["ensemble_logits"].unbind(1)
    return {"loss": 2.5**2 * dirichlet_loss(v.leaf("student_logits"), members, 2.5, smoothing=1e-3)}


@golden()
def endd_dirichlet_plain(v: Arrays) -> dict[str, Tensor]:
    return {"loss": dirichlet_loss(v.leaf("student_logits"), v["ensemble_logits"].unbind(1), 2.5, smoothing=1e-4)}


def self_taught(v: Arrays, temperature: float) -> dict[str, Tensor]:
    s, t = {"logits": v.leaf("student_logits")}, {"logits": v["teacher_logits"]}
    return terms_of(TfKDSelf(temperature=temperature), s, t, v["target"])


# the reference's mean over samples and classes is ours divided by their number, 10


@golden()
def tfkd_self(v: Arrays) -> dict[str, Tensor]:
    terms = self_taught(v, 20.0)
    loss = 0.05 * terms["ce"] + 0.95 * 1.0 / 10 * terms["kd"]
    return {"loss": loss, "loss_no_multiplier": loss}


@golden()
def tf_kd_self(v: Arrays) -> dict[str, Tensor]:
    terms = self_taught(v, 20.0)
    return {"loss": 0.9 * terms["ce"] + 0.1 * 100.0 / 10 * terms["kd"]}


@golden()
def tfkd_reg(v: Arrays, multiplier: float = 1.0) -> dict[str, Tensor]:
    s, alpha = v.leaf("student_logits"), 0.1
    terms = terms_of(TfKDReg(temperature=20.0, correct=0.99, variant="authors"), {"logits": s}, {}, v["target"])
    return {"loss": (1 - alpha) * terms["ce"] + alpha * multiplier * terms["kd"] / s.shape[1]}


@golden()
def tf_kd_reg(v: Arrays) -> dict[str, Tensor]:
    return tfkd_reg(v, multiplier=100.0)


@golden()
def dist(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_logits"), v["teacher_logits"]
    terms = terms_of(DIST(temperature=1.0), {"logits": s}, {"logits": t}, torch.zeros(len(s)).long())
    without = dist_terms(s, t, temperature=1.0)
    return {
        "loss": terms["inter"] + terms["intra"],
        "loss_inter": terms["inter"],
        "loss_intra": terms["intra"],
        "loss_notau": without[0] + without[1],
    }


@golden()
def logit_std(v: Arrays) -> dict[str, Tensor]:
    s, t, y = {"logits": v.leaf("student_logits")}, {"logits": v["teacher_logits"]}, v["target"]
    return {
        "loss": terms_of(LogitStd(temperature=2.0), s, t, y)["kd"],
        "loss_dkd": terms_of(LogitStdDKD(alpha=1.0, beta=8.0, temperature=2.0), s, t, y)["dkd"],
    }


@golden()
def ttm(v: Arrays) -> dict[str, Tensor]:
    s, t = {"logits": v.leaf("student_logits")}, {"logits": v["teacher_logits"]}
    names = {"loss": False, "loss_wttm": True}
    y = torch.zeros(len(s["logits"])).long()
    return {name: terms_of(TTM(exponent=0.25, weighted=weighted), s, t, y)["ttm"] for name, weighted in names.items()}


@golden()
def wsld(v: Arrays) -> dict[str, Tensor]:
    s, t = {"logits": v.leaf("student_logits")}, {"logits": v["teacher_logits"]}
    terms = terms_of(WSLD(temperature=2.0), s, t, v["target"])
    return {"loss": terms["ce"] + 2.5 * terms["soft"], "loss_ce": terms["ce"], "loss_soft": terms["soft"]}


@golden()
def mlkd(v: Arrays) -> dict[str, Tensor]:
    s = [v.leaf(f"student_logits_{view}") for view in ("weak", "strong")]
    t = [v[f"teacher_logits_{view}"] for view in ("weak", "strong")]
    terms = MLKD(temperatures=(4.0, 3.0, 5.0)).two_view_terms(s, t, v["target"])
    samples, classes = uncertain(t[0])
    losses = {
        "loss_ce": 0.1 * terms["ce"],
        "loss_kd": 9 * terms["kd"],
        "loss_cc": 9 * terms["classes"],
        "loss_bc": 9 * terms["batch"],
    }
    total = torch.stack(list(losses.values())).sum()
    return {**losses, "loss": total, "out_instance_mask": samples, "out_class_mask": classes}


@golden()
def multi_exit(v: Arrays) -> dict[str, Tensor]:
    method = MultiExit(temperature=2.0, confidence=0.0)
    method.inner = ["stage1", "stage2"]
    method.exits = nn.ModuleList(Given(torch.zeros(5, 1), v.leaf(f"exit_logits_{i}")) for i in range(2))
    method.register_buffer("heat", torch.tensor(2.0, dtype=v.dtype))
    last = v.leaf("exit_logits_2")
    terms = terms_of(method, {"logits": last, "stage1": last, "stage2": last}, {}, v["target"])
    return {
        "loss": 0.5 * terms["ce"] + 0.5 * terms["kd"],
        "out_temperature_after": annealed(method.heat, last, confidence=0.0, factor=1.05),
    }
