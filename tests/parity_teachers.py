"""Golden cases of relations, pools of teachers, peers, self-distillation and robustness, which `test_parity` checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.losses import cross_entropy, kl
from kdbench.tasks.robust import ascend
from methods.intermediate.crd import compared, log_normaliser, nce_loss, on_sphere
from methods.intermediate.irg import edge_loss, edges, transform_loss, transformation, vertex_loss
from methods.learning.gkd import adjacency, gkd_loss
from methods.logits.endd import dirichlet_loss
from methods.multi_teacher.average import average_loss, members_loss
from methods.multi_teacher.cfl import CommonSpace, mmd_loss, reconstruction_loss
from methods.multi_teacher.uhc import uhc_loss
from methods.online.okddip import Attention, attended, group_loss
from methods.online.one import Gate, gated, native_ensemble_loss
from methods.teacher_free.ddgsd import mean_feature_loss, posterior_loss

if TYPE_CHECKING:
    from test_parity import Arrays


# ---- relations ----------------------------------------------------------------------------------------------------


def crd(v: Arrays) -> dict[str, Tensor]:
    samples, temperature, momentum, keys, index = 64, 0.07, 0.5, v["contrast_index"], v["index"]
    embedded, banks = [], [v["memory_v1"], v["memory_v2"]]
    for side, name in (("s", "student_embed"), ("t", "teacher_embed")):
        linear = nn.Linear(v[name].shape[1], banks[0].shape[1])
        v.load(linear, {key: f"embed_{side}.linear.{key}" for key in ("weight", "bias")})
        # the teacher's feature is a constant, its embedding is not
        embedded.append(on_sphere(linear(v.leaf(name) if side == "s" else v[name])))
    scores = [compared(x, bank, keys, temperature) for x, bank in zip(embedded, reversed(banks), strict=True)]
    first = [log_normaliser(score, samples) for score in scores]
    sides = [nce_loss(score, v[f"Z_v{i}"].log(), samples) for i, score in enumerate(scores, 1)]
    after = [on_sphere(momentum * bank[index] + (1 - momentum) * x) for bank, x in zip(banks, embedded, strict=True)]
    return {
        "loss": sides[0] + sides[1],
        "loss_student_side": sides[0],
        "loss_teacher_side": sides[1],
        "loss_Z_from_first_batch": sum(nce_loss(s, z, samples) for s, z in zip(scores, first, strict=True)),
        "out_Z_v1_init": first[0].exp(),
        "out_Z_v2_init": first[1].exp(),
        "out_embed_s": embedded[0],
        "out_embed_t": embedded[1],
        "out_memory_v1_after": after[0],
        "out_memory_v2_after": after[1],
    }


def irg_zoo(v: Arrays) -> dict[str, Tensor]:
    layers = ("feat_0", "feat_1", "embed")
    s = {name: v.leaf(f"student_{name}") for name in (*layers, "logits")}
    t = {name: v[f"teacher_{name}"] for name in (*layers, "logits")}
    vertex = vertex_loss(s["logits"], t["logits"])
    edge = torch.stack([edge_loss(s[name], t[name]) for name in layers]).mean()
    transform = transform_loss((s["feat_0"], s["feat_1"]), (t["feat_0"], t["feat_1"]))
    loss = 0.1 * vertex + 5 * edge + 5 * transform
    return {"loss": loss, "loss_vertex": vertex, "loss_edge": edge, "loss_transform": transform}


def irg_caffe(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_embed"), v["teacher_embed"]
    ways = [(v[f"{side}_vec_0"], v[f"{side}_vec_1"]) for side in ("student", "teacher")]
    return {
        "loss": len(s) / 2 * edge_loss(s, t),
        "loss_transform": len(s) / 2 * transform_loss(*ways),
        "out_student_edges": edges(s),
        "out_teacher_edges": edges(t),
        "out_student_transform": transformation(*ways[0]),
        "out_teacher_transform": transformation(*ways[1]),
    }


def gkd(v: Arrays) -> dict[str, Tensor]:
    t = [v[f"teacher_feat_{i}"] for i in range(3)]
    stages = [gkd_loss(v.leaf(f"student_feat_{i}"), t[i]) for i in range(3)]
    loss = torch.stack(stages).sum()
    found = {"loss": loss, "loss_over_3": loss / 3, "loss_last_layer": stages[2]}
    return found | {f"out_teacher_adjacency_{i}": adjacency(t[i]) for i in range(3)}


# ---- pools of teachers --------------------------------------------------------------------------------------------


def teachers(v: Arrays, what: str = "logits", n: int = 3) -> list[Tensor]:
    return [v[f"teacher_{what}_{i}"] for i in range(n)]


def multi_teacher_average_loss(v: Arrays) -> dict[str, Tensor]:
    s, pool = v.leaf("student_logits"), teachers(v)
    single = {f"loss_teacher_{i}": kl(s, t, 4.0) for i, t in enumerate(pool)}
    return {"loss": members_loss(s, pool, 4.0), **single}


def multi_teacher_average_prob(v: Arrays) -> dict[str, Tensor]:
    return {"loss": average_loss(v.leaf("student_logits"), teachers(v), 4.0)}


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


def cfl_fc(v: Arrays) -> dict[str, Tensor]:
    code, amalgamated, reconstructed = common_space(v, 4, layers(0), layers(0, 2), layers(0, 2))
    soft = kl(v.leaf("student_logits"), torch.cat(teachers(v, n=2), dim=1))
    loss = soft + amalgamated + reconstructed
    return {"loss": loss, "loss_kd": soft, "loss_amal": amalgamated, "loss_recons": reconstructed, "out_hs": code}


def cfl_conv(v: Arrays) -> dict[str, Tensor]:
    blocks = [f"{i}.conv{k}.weight" for i in range(2) for k in (1, 2)]
    blocks += [f"{i}.bn{k}.{kind}" for i in range(2) for k in (1, 2) for kind in ("weight", "bias")]
    _, amalgamated, reconstructed = common_space(v, 3, layers(0, 1), blocks, layers(0, 1, 3))
    return {"loss": amalgamated + reconstructed, "loss_amal": amalgamated, "loss_recons": reconstructed}


def endd_dirichlet(v: Arrays) -> dict[str, Tensor]:
    members = v["ensemble_logits"].unbind(1)
    return {"loss": 2.5**2 * dirichlet_loss(v.leaf("student_logits"), members, 2.5, smoothing=1e-3)}


def endd_dirichlet_plain(v: Arrays) -> dict[str, Tensor]:
    return {"loss": dirichlet_loss(v.leaf("student_logits"), v["ensemble_logits"].unbind(1), 2.5, smoothing=1e-4)}


# ---- peers and selves ---------------------------------------------------------------------------------------------


def one(v: Arrays) -> dict[str, Tensor]:
    branches, y = [v.leaf(f"peer_logits_{i}") for i in range(3)], v["target"]
    gate = Gate(v["gate_feature"].shape[1], len(branches))
    names = {f"linear.{kind}": f"control_v1_{kind}" for kind in ("weight", "bias")}
    v.load(gate, names | {f"norm.{kind}": f"bn_v1_{kind}" for kind in ("weight", "bias")})
    weights = gate.train()(v.leaf("gate_feature"))
    ensemble = gated(weights, branches)
    ce = torch.stack([cross_entropy(z, y) for z in (*branches, ensemble)]).sum()
    kd = native_ensemble_loss(branches, ensemble, 3.0)
    loss = ce + 0.060054667895307945 * kd  # the ramp's weight in epoch 20 of 80
    return {
        "loss": loss,
        "loss_cross": ce,
        "loss_kl": 0.060054667895307945 * kd,
        "out_gate": weights,
        "out_ensemble_logits": ensemble,
    }


def okddip(v: Arrays) -> dict[str, Tensor]:
    y, leader = v["target"], v.leaf("leader_logits")
    peers, features = v.leaf("branch_logits").unbind(2), v.leaf("branch_feature").unbind(1)
    attention = Attention(features[0].shape[1], 4)
    v.load(attention, {"query.weight": "query_weight", "key.weight": "key_weight"})
    weights = attention(features)
    targets = attended(weights, peers)
    true = torch.stack([cross_entropy(z, y) for z in peers]).sum()
    group = group_loss(peers, targets, 3.0)
    follows = cross_entropy(leader, y) + 0.3 * kl(leader, torch.stack(peers).mean(0), 3.0)
    return {
        "loss": true + 0.3 * group + follows,
        "loss_true": true,
        "loss_group": group,
        "out_attention": weights,
        "out_targets": torch.stack(targets, dim=2),
    }


def ddgsd(v: Arrays) -> dict[str, Tensor]:
    logits, features = ([v.leaf(f"{what}_view{i}") for i in range(2)] for what in ("logits", "feature"))
    ce = torch.stack([cross_entropy(z, v["target"]) for z in logits]).mean() / 2
    # the reference's one number per view: as if all numbers were samples of one feature
    means = mean_feature_loss(*(feature.reshape(-1, 1) for feature in features))
    div = posterior_loss(*logits, 3.0) + 5e-4 * means
    return {"loss": ce + div, "loss_cls": ce, "loss_div": div}


# ---- robustness ---------------------------------------------------------------------------------------------------


def pgd_attack(v: Arrays) -> dict[str, Tensor]:
    x, y = v["x"], v["target"]

    def net(z: Tensor) -> Tensor:
        return (z @ v["param_w1"] + v["param_b1"]).tanh() @ v["param_w2"] + v["param_b2"]

    step, low, high = x.new_tensor(2 / 255), (x - 8 / 255).clamp(min=0), (x + 8 / 255).clamp(max=1)
    found = ascend(net, x + v["start_noise"], y, step=step, steps=10, low=low, high=high)
    return {"loss": cross_entropy(net(found), y), "out_adversarial": found, "out_logits": net(found)}


def ard(v: Arrays) -> dict[str, Tensor]:
    s, clean = v.leaf("student_logits_adversarial"), v.leaf("student_logits_natural")
    kd, ce = kl(s, v["teacher_logits_natural"], 30.0), cross_entropy(clean, v["target"])
    return {"loss": kd / s.shape[1] + 0 * ce}  # alpha is 1; nn.KLDivLoss() divides by the number of classes, too


def ban(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_logits")
    kd = kl(s, v["teacher_logits"], 20.0)
    # nocotan/born_again_neuralnet has no T^2, and divides by the number of classes
    return {"loss": 0.2 * kd / 20**2 / s.shape[1] + 0.8 * cross_entropy(s, v["target"])}


TEACHERS: dict[str, Callable[[Arrays], dict[str, Tensor]]] = {
    f.__name__: f
    for f in (
        *(crd, irg_zoo, irg_caffe, gkd),
        *(multi_teacher_average_loss, multi_teacher_average_prob, uhc_subset_kl),
        *(cfl_fc, cfl_conv, endd_dirichlet, endd_dirichlet_plain),
        *(one, okddip, ddgsd, ban, pgd_attack, ard),
    )
}
