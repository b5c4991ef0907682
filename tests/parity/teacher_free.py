"""Golden cases of distillation without a teacher (7.2); `test_parity` checks them all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from kdbench.losses import cross_entropy, kl
from methods.teacher_free.bake import BAKE, ensembled
from methods.teacher_free.byot import BYOT
from methods.teacher_free.byot_final import BYOTFinal
from methods.teacher_free.cs_kd import CSKD
from methods.teacher_free.ddgsd import mean_feature_loss, posterior_loss
from methods.teacher_free.dks import DKS
from methods.teacher_free.dlb import DLB
from methods.teacher_free.frskd import FRSKD
from methods.teacher_free.ps_kd import PSKD
from methods.teacher_free.sad import SAD
from methods.teacher_free.sla_sd import SLASD, aggregated
from parity.arrays import Arrays, Given, golden, terms_of


class Told(nn.Module):
    """The same of an exit that has logits alone."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


@golden()
def byot(v: Arrays) -> dict[str, Tensor]:
    method = BYOT(temperature=3.0)
    method.inner = ["stage1", "stage2", "stage3"]
    method.exits = nn.ModuleList(Given(v.leaf(f"middle{i}_feature"), v.leaf(f"middle{i}_logits")) for i in (1, 2, 3))
    final = {"logits": v.leaf("final_logits"), "embed": v.leaf("final_feature")}
    s = {**final, **{name: torch.zeros(5, 1) for name in method.inner}}
    terms = terms_of(method, s, {}, v["target"])
    loss = 0.9 * terms["ce"] + 0.1 * terms["kd"] + 1e-6 * terms["feature"]
    return {"loss": loss, "loss_kd": terms["kd"], "loss_feature": terms["feature"]}


@golden()
def ddgsd(v: Arrays) -> dict[str, Tensor]:
    logits, features = ([v.leaf(f"{what}_view{i}") for i in range(2)] for what in ("logits", "feature"))
    ce = torch.stack([cross_entropy(z, v["target"]) for z in logits]).mean() / 2
    # the reference's one number per view: as if all numbers were samples of one feature
    means = mean_feature_loss(*(feature.reshape(-1, 1) for feature in features))
    div = posterior_loss(*logits, 3.0) + 5e-4 * means
    return {"loss": ce + div, "loss_cls": ce, "loss_div": div}


@golden()
def ban(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_logits")
    kd = kl(s, v["teacher_logits"], 20.0)
    # nocotan/born_again_neuralnet has no T^2, and divides by the number of classes
    return {"loss": 0.2 * kd / 20**2 / s.shape[1] + 0.8 * cross_entropy(s, v["target"])}


@golden()
def sla_sd(v: Arrays) -> dict[str, Tensor]:
    method = SLASD(temperature=1.0)
    method.joint = nn.Identity()
    joint = v.leaf("joint_logits")
    s = {"logits": v.leaf("single_logits"), "embed": joint}
    terms = terms_of(method, s, {}, v["target"])
    return {
        "loss": terms["joint"] + terms["ce"] + terms["kd"],
        "loss_joint": terms["joint"],
        "loss_single": terms["ce"],
        "loss_distillation": terms["kd"],
        "out_aggregated_logits": aggregated(joint),
    }


@golden()
def cs_kd(v: Arrays) -> dict[str, Tensor]:
    s, t = {"logits": v.leaf("student_logits")}, {"logits": v["pair_logits"]}
    terms = terms_of(CSKD(temperature=4.0), s, t, v["target"])
    return {"loss": terms["ce"] + 1.0 * terms["kd"], "loss_cls": terms["ce"], "loss_kd": terms["kd"]}


@golden()
def ps_kd(v: Arrays) -> dict[str, Tensor]:
    s, t = {"logits": v.leaf("student_logits")}, {"past": v["previous_probabilities"]}
    terms = terms_of(PSKD(), s, t, v["target"])
    alpha = 0.8 * (149 + 1) / 300
    soft = (1 - alpha) * one_hot(v["target"], 9).to(t["past"]) + alpha * t["past"]  # of which our terms are the parts
    return {"loss": (1 - alpha) * terms["ce"] + alpha * terms["past"], "out_soft_targets": soft}


@golden()
def bake(v: Arrays) -> dict[str, Tensor]:
    s = {"logits": v.leaf("student_logits"), "embed": v["feature"]}
    terms = terms_of(BAKE(temperature=4.0, omega=0.5), s, {}, v["target"])
    targets = ensembled(s["embed"], s["logits"], 4.0, 0.5)
    loss = terms["ce"] + 1.0 * terms["kd"]
    return {"loss": loss, "loss_cls": terms["ce"], "loss_kd": terms["kd"], "out_targets": targets}


@golden()
def dlb(v: Arrays) -> dict[str, Tensor]:
    s = {"logits": torch.cat([v.leaf("previous_batch_logits"), v.leaf("student_logits")])}
    t = {"logits": v["previous_batch_logits_old"]}
    terms = terms_of(DLB(temperature=3.0), s, t, torch.cat([v["previous_target"], v["target"]]))
    return {"loss": terms["ce"] + 1.0 * terms["kd"], "loss_ce": terms["ce"], "loss_kd": terms["kd"]}


@golden()
def dks(v: Arrays) -> dict[str, Tensor]:
    method = DKS(temperature=3.0)
    method.inner = ("stage1", "stage2")
    method.branches = nn.ModuleList(Told(v.leaf(f"exit_logits_{i}")) for i in (1, 2))
    s = {"logits": v.leaf("exit_logits_0"), **{tap: torch.zeros(4, 1) for tap in method.inner}}
    terms = terms_of(method, s, {}, v["target"])
    return {"loss": terms["ce"] + terms["synergy"], "loss_cls": terms["ce"], "loss_div": terms["synergy"]}


@golden()
def self_attention_distillation(v: Arrays) -> dict[str, Tensor]:
    method = SAD(variant="features")
    method.maps = ("stage1", "stage2", "stage3")
    s = {tap: v.leaf(f"feature_{i}") for i, tap in enumerate(method.maps)}
    terms = terms_of(method, {**s, "logits": torch.zeros(3, 2)}, {}, torch.zeros(3).long())
    return {"loss": 1000 * terms["attention"]}


@golden()
def frskd(v: Arrays) -> dict[str, Tensor]:
    method = FRSKD(temperature=4.0, target="learning")
    method.maps = ("stage1", "stage2", "stage3")
    refined = [v.leaf(f"auxiliary_feature_{i}") for i in range(3)]
    method.self_teacher = Given(refined, v.leaf("auxiliary_logits"))
    s = {"logits": v.leaf("student_logits"), **{tap: v.leaf(f"feature_{i}") for i, tap in enumerate(method.maps)}}
    terms = terms_of(method, s, {}, v["target"])
    cls, div = terms["ce"] + terms["self_teacher"], 2 * terms["kd"] + 100 * terms["attention"]
    return {"loss": cls + div, "loss_cls": cls, "loss_div": div}


@golden()
def byot_author_final(v: Arrays) -> dict[str, Tensor]:
    method = BYOTFinal(temperature=3.0)
    method.inner = ["stage1", "stage2", "stage3"]
    # theirs are numbered from the last exit on
    method.exits = nn.ModuleList(Given(v.leaf(f"feature_{i}"), v.leaf(f"logits_{i}")) for i in (3, 2, 1))
    adapters = [nn.Linear(width, 8) for width in (8, 7, 5)]
    for i, adapter in enumerate(adapters):  # of the first theirs makes no use either
        v.load(adapter, {"weight": f"adapt_{i}_weight", "bias": f"adapt_{i}_bias"})
    method.adapters = nn.ModuleList(adapters[:0:-1])
    s = {"logits": v.leaf("logits_0"), "embed": v.leaf("feature_0"), **{tap: torch.zeros(4, 1) for tap in method.inner}}
    terms = terms_of(method, s, {}, v["target"])
    return {"loss": terms["ce"] + 0.7 * terms["exits"] + 0.3 * terms["kd"] + 0.03 * terms["feature"]}
