"""Golden cases of new learning schemes (9); `test_parity` checks them all."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses import cross_entropy, kl
from kdbench.tasks.robust import ascend
from methods.learning.actor_mimic import feature_loss, mimic_loss
from methods.learning.bic import bias_loss, corrected
from methods.learning.bss import base_samples, boundary_samples, soft_cross_entropy, target_classes
from methods.learning.compress import anchored_loss
from methods.learning.consistency import masked_ce
from methods.learning.dual_student import learns_from, stability
from methods.learning.eeil import heads_loss
from methods.learning.gaussian_policy_distillation import gaussian_kl_loss, root_distance_loss
from methods.learning.gkd import adjacency, gkd_loss
from methods.learning.icarl import icarl_loss
from methods.learning.linear_probe import Queue
from methods.learning.lucir import CosineHead, less_forget_loss, margin_ranking_loss
from methods.learning.lwf import new_classes_loss, old_classes_loss
from methods.learning.lwm import attention_loss
from methods.learning.mean_teacher import consistency_loss, decay_at, follow
from methods.learning.pi_model import two_pass_loss
from methods.learning.podnet import Pooling, nca_loss, nca_rows, pod_loss
from methods.learning.policy_distillation import policy_loss
from methods.learning.seed_distillation import seed_loss
from methods.learning.sntg import between_pairs
from methods.learning.sskd import selected, selected_kl, similarity, sources, split
from methods.learning.temporal_ensembling import Ensemble, ensemble_target_loss
from methods.learning.vat import Form, adversarial_perturbation
from parity.arrays import Arrays, golden


@golden(unused={"target": "no edge is left out by class in this case"})
def gkd(v: Arrays) -> dict[str, Tensor]:
    t = [v[f"teacher_feat_{i}"] for i in range(3)]
    stages = [gkd_loss(v.leaf(f"student_feat_{i}"), t[i]) for i in range(3)]
    loss = torch.stack(stages).sum()
    found = {"loss": loss, "loss_over_3": loss / 3, "loss_last_layer": stages[2]}
    return found | {f"out_teacher_adjacency_{i}": adjacency(t[i]) for i in range(3)}


@golden()
def mean_teacher(v: Arrays) -> dict[str, Tensor]:
    s, y = v.leaf("student_logits"), v["target"]
    labelled = y >= 0
    label = cross_entropy(s[labelled], y[labelled], reduction="sum") / len(y)
    consistency = 16.529888822158657 * consistency_loss(s, v["teacher_logits"])  # its weight in epoch 2 of 5
    return {"loss": label + consistency, "loss_class": label, "loss_consistency": consistency}


@golden()
def mean_teacher_ema(v: Arrays) -> dict[str, Tensor]:
    average, student = (nn.ParameterList([v[f"param_{name}"]]).requires_grad_(False) for name in ("teacher", "student"))
    follow(average, student, decay_at(torch.tensor(10.0, dtype=v.dtype), decay=0.97))
    return {"out_param_teacher": average[0], "loss": average[0].square().sum()}


def labelled_first(v: Arrays, *names: str) -> tuple[Tensor, list[Tensor]]:
    """Labels of the labelled samples, and these leaves in an order that begins with them."""
    labelled = v["label_mask"] > 0
    order = torch.cat([labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]])
    return v["target"][labelled], [v.leaf(name)[order] for name in names]


@golden()
def pi_model(v: Arrays) -> dict[str, Tensor]:
    y, (a, b) = labelled_first(v, "student_logits", "student_logits_b")
    return {"loss": masked_ce(a, y) + 1.1346412726987403 * two_pass_loss(a, b)}  # of epoch 30, with 8 % labelled


@golden()
def temporal_ensembling(v: Arrays) -> dict[str, Tensor]:
    past = v["epoch_predictions"]
    everyone = torch.arange(past.shape[1])
    ensemble = Ensemble(*past.shape[1:], decay=0.6).to(v.dtype)
    for epoch, predictions in enumerate(past):
        ensemble.remember(everyone, predictions, epoch)
    target, known = ensemble.recall(everyone, len(past))
    y, (first,) = labelled_first(v, "student_logits")
    ramp = torch.tensor(-5 * (1 - 30 / 80) ** 2, dtype=v.dtype).exp()  # theirs; 8 % of the images have a label
    loss = masked_ce(first, y) + 100 * 0.08 * ramp * ensemble_target_loss(v.leaf("student_logits"), target, known)
    return {"loss": loss, "out_targets": target, "out_ramp": ramp}


@golden()
def sntg(v: Arrays) -> dict[str, Tensor]:
    s, target = v.leaf("student_logits"), v["teacher_probabilities"]
    label = torch.where(v["label_mask"] > 0, v["target"], target.argmax(1))
    everyone = torch.arange(len(s))
    neighbours = between_pairs(v.leaf("embedding"), label, everyone >= 0, everyone, margin=1.0)
    y, (first,) = labelled_first(v, "student_logits")
    loss = masked_ce(first, y) + 3.0 * ensemble_target_loss(s, target) + 3.0 * 0.4 * neighbours
    same = (label[:4] == label[4:]).to(v.dtype)
    return {"loss": loss, "loss_sntg": neighbours, "out_neighbour": same}


def vat(v: Arrays, form: Form) -> tuple[Tensor, Tensor]:
    w1, b1, w2, b2 = (v.leaf(f"param_{name}") for name in ("w1", "b1", "w2", "b2"))

    def net(x: Tensor) -> Tensor:
        return (x @ w1 + b1).tanh() @ w2 + b2

    x = v["x"]
    logits = net(x).detach()
    r = adversarial_perturbation(net, x, logits, v["direction"], xi=0.01, eps=1.5, iterations=1, form=form)
    return kl(net(x + r), logits), r


@golden()
def vat_author(v: Arrays) -> dict[str, Tensor]:
    loss, r = vat(v, "author")
    return {"loss": loss, "out_r_adv": r}


@golden()
def vat_pytorch(v: Arrays) -> dict[str, Tensor]:
    return {"loss": vat(v, "pytorch")[0]}


@golden()
def dual_student(v: Arrays) -> dict[str, Tensor]:
    ramp = torch.tensor(-5 * (1 - 3 / 5) ** 2, dtype=v.dtype).exp()  # theirs, in epoch 3
    y, unlabelled = v["target"], v["target"] < 0
    said = [v.leaf(f"{side}_logits") for side in ("left", "right")]
    again = [v[f"{side}_logits_other_view"] for side in ("left", "right")]
    known = [stability(a, b, threshold=0.6) for a, b in zip(said, again, strict=True)]
    found = {}
    for i, side in enumerate(("left", "right")):
        ce = cross_entropy(said[i][~unlabelled], y[~unlabelled], reduction="sum") / len(y)
        consistency = 10 * ramp * consistency_loss(said[i], again[i])
        learned = unlabelled & learns_from(known[i], known[1 - i])
        found[f"loss_{side}_stabilisation"] = 100 * ramp * consistency_loss(said[i], said[1 - i], learned)
        found[f"loss_{side}"] = ce + consistency + found[f"loss_{side}_stabilisation"]
    return {"loss": found["loss_left"] + found["loss_right"], **found}


@golden()
def seed(v: Arrays) -> dict[str, Tensor]:
    return {"loss": seed_loss(v.leaf("student_embedding"), v["teacher_embedding"], v["queue"].T, 0.2, 0.05)}


@golden()
def compress_1q(v: Arrays) -> dict[str, Tensor]:
    anchors = v["queue_teacher"]
    return {"loss": anchored_loss(v.leaf("student_feature"), v["teacher_feature"], anchors, anchors, 0.04)}


@golden()
def compress_2q(v: Arrays) -> dict[str, Tensor]:
    s, anchors = v.leaf("student_feature"), v["queue_student"]
    queue = Queue(*anchors.shape).to(v.dtype)
    queue.rows.copy_(anchors)
    queue.enter(F.normalize(s.detach(), dim=1))
    loss = anchored_loss(s, v["teacher_feature"], anchors, v["queue_teacher"], 0.04)
    return {"loss": loss, "out_queue_student": queue.rows}


@golden()
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


@golden()
def pgd_attack(v: Arrays) -> dict[str, Tensor]:
    x, y = v["x"], v["target"]

    def net(z: Tensor) -> Tensor:
        return (z @ v["param_w1"] + v["param_b1"]).tanh() @ v["param_w2"] + v["param_b2"]

    step, low, high = x.new_tensor(2 / 255), (x - 8 / 255).clamp(min=0), (x + 8 / 255).clamp(max=1)
    found = ascend(net, x + v["start_noise"], y, step=step, steps=10, low=low, high=high)
    return {"loss": cross_entropy(net(found), y), "out_adversarial": found, "out_logits": net(found)}


@golden()
def ard(v: Arrays) -> dict[str, Tensor]:
    s, clean = v.leaf("student_logits_adversarial"), v.leaf("student_logits_natural")
    kd, ce = kl(s, v["teacher_logits_natural"], 30.0), cross_entropy(clean, v["target"])
    return {"loss": kd / s.shape[1] + 0 * ce}  # alpha is 1; nn.KLDivLoss() divides by the number of classes, too


@golden()
def lwf_pycil(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_logits")
    kd = old_classes_loss(s[:, :5], v["teacher_logits"], temperature=2.0)
    new = new_classes_loss(s, v["target"], old=5)
    return {"loss": 3 * kd + new, "loss_kd": kd, "loss_clf": new}


@golden()
def lwf_facil(v: Arrays) -> dict[str, Tensor]:
    heads = [v.leaf(f"student_logits_task{k}") for k in range(3)]
    past = torch.cat([v[f"teacher_logits_task{k}"] for k in range(2)], 1)
    s = torch.cat(heads, 1)
    kd = old_classes_loss(s[:, : past.shape[1]], past, temperature=2.0)
    return {"loss": 3 * kd + new_classes_loss(s, v["target"], old=past.shape[1])}


@golden()
def icarl(v: Arrays) -> dict[str, Tensor]:
    order = v["class_order"]  # classes are numbered in order of arrival with us
    rank = order.argsort()
    s, past = v.leaf("student_logits")[:, order], v["teacher_logits"][:, order]
    return {"loss": icarl_loss(s, past, rank[v["target"]], old=3)}


@golden()
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


@golden()
def lucir_kd_baseline(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_logits")
    kd = 0.25 * kl(s[:, :6], v["teacher_logits"], 2.0)
    return {"loss": kd + cross_entropy(s, v["target"]), "loss_kd": kd}


@golden()
def bic(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_logits")
    kd, ce = old_classes_loss(s[:, :3], v["teacher_logits"], temperature=2.0), cross_entropy(s, v["target"])
    return {"loss": 0.5 * kd + 0.5 * ce, "loss_distill": kd, "loss_ce": ce}  # 3 of 6 classes are old


@golden()
def bic_bias_correction(v: Arrays) -> dict[str, Tensor]:
    shift = v.leaf("param_gamma")
    logits = corrected(v["student_logits"], v.leaf("param_beta"), shift, old=3, seen=6)
    return {"loss": bias_loss(logits, v["target"], shift), "loss_ce": cross_entropy(logits, v["target"])}


@golden()
def policy_distillation_kl(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_q")
    mean = policy_loss(s, v["teacher_q"], temperature=0.01)
    return {"loss": len(s) * mean, "loss_mean": mean}


@golden()
def bss(v: Arrays) -> dict[str, Tensor]:
    def net(side: str, x: Tensor, get: Callable[[str], Tensor]) -> Tensor:
        w1, b1, w2, b2 = (get(f"param_{side}.{name}") for name in ("l1.weight", "l1.bias", "l2.weight", "l2.bias"))
        return (x.flatten(1) @ w1.T + b1).tanh() @ w2.T + b2

    def teacher(x: Tensor) -> Tensor:
        return net("teacher", x, v.__getitem__)

    def student(x: Tensor) -> Tensor:
        return net("student", x, v.leaf)

    x, y, temperature = v["image"], v["target"], 3.0
    s, t = student(x), teacher(x)
    rows, base = base_samples(s, t, y, size=64)
    target = target_classes(t[rows], v["uniform"])
    moved = boundary_samples(teacher, x[rows], target, step=0.3, steps=10, limit=2.5)
    moved_s, moved_t = student(moved), teacher(moved)
    terms = {
        "loss_ce": cross_entropy(s, y),
        "loss_kd": soft_cross_entropy(s, t, temperature),
        "loss_bss": soft_cross_entropy(moved_s, moved_t, temperature, base),
    }
    return {
        "loss": terms["loss_ce"] + 3 * terms["loss_kd"] + 2 * terms["loss_bss"],
        **terms,
        "loss_bss_kl": kl(moved_s[base], moved_t[base], temperature) / temperature**2,
        "out_attack_index": rows[base],
        "out_attack_class": target[base],
        "out_attacked_image": moved[base],
        "out_predicted_after_attack": moved_t[base].argmax(1),
    }


@golden()
def eeil_facil(v: Arrays) -> dict[str, Tensor]:
    """In the first stage of the third experience, where the newest of two old heads is left out."""
    heads = [v.leaf(f"student_logits_task{k}") for k in range(3)]
    s, past = torch.cat(heads, 1), torch.cat([v[f"teacher_logits_task{k}"] for k in range(2)], 1)
    kd = heads_loss(s, past, ends=(4,), temperature=2.0, form="facil")
    return {"loss": cross_entropy(s, v["target"]) + kd}


@golden()
def lwm(v: Arrays) -> dict[str, Tensor]:
    s = torch.cat([v.leaf(f"student_logits_task{k}") for k in range(2)], 1)
    kd = old_classes_loss(s[:, :5], v["teacher_logits_task0"], temperature=2.0)
    attention = attention_loss(v.leaf("attention_map"), v["attention_map_old"], normalised=False)
    return {"loss": new_classes_loss(s, v["target"], old=5) + kd + attention, "loss_attention": attention}


@golden()
def podnet(v: Arrays) -> dict[str, Tensor]:
    s, past = [v.leaf(f"map_{k}") for k in range(2)], [v[f"map_old_{k}"] for k in range(2)]
    kinds: tuple[Pooling, ...] = ("spatial", "channels", "width", "height", "gap")
    found = {f"loss_{kind}": pod_loss(s, past, kind) for kind in kinds}
    flat = less_forget_loss(v.leaf("feature"), v["feature_old"])
    return {"loss": 6**0.5 * (3 * found["loss_spatial"] + flat), "loss_flat": flat, **found}  # 60 classes, 10 new


@golden()
def podnet_nca(v: Arrays) -> dict[str, Tensor]:
    s, y = v.leaf("similarities"), v["target"]
    loss = nca_loss(s, y, scale=3.0, margin=0.6, form="authors")
    return {
        "loss": loss,
        "loss_pycil": loss,
        "loss_hinge": nca_rows(s, y, scale=3.0, margin=0.6, form="authors").clamp(min=0).mean(),
        "loss_including_positive": cross_entropy(3.0 * (s - 0.6), y),
    }


@golden()
def actor_mimic(v: Arrays) -> dict[str, Tensor]:
    s, h = v.leaf("student_q"), v.leaf("student_feature")
    policy = mimic_loss(s, v["teacher_q"], temperature=0.1, form="both")
    return {"loss": len(s) * policy + feature_loss(h, v["teacher_feature"]) / h.shape[1]}


@golden()
def policy_distillation_gaussian(v: Arrays) -> dict[str, Tensor]:
    policies = v.leaf("student_mean"), v.leaf("student_std"), v["teacher_mean"], v["teacher_std"]
    return {"loss": gaussian_kl_loss(*policies), "loss_wasserstein": root_distance_loss(*policies)}
