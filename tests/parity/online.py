"""Golden cases of online distillation (7.1); `test_parity` checks them all."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.losses import cross_entropy, kl
from methods.online.cl_ilr import consensus_loss, rescale
from methods.online.dml import mutual_loss
from methods.online.dml_joint import pairwise_loss
from methods.online.ffl import Fusion, fusion_loss
from methods.online.okddip import Attention, attended, group_loss
from methods.online.one import Gate, gated, native_ensemble_loss
from methods.online.peers import means_of_others
from parity.arrays import Arrays, golden


@golden()
def dml(v: Arrays) -> dict[str, Tensor]:
    a, b, y = v.leaf("peer_logits_0"), v.leaf("peer_logits_1"), v["target"]
    ce = cross_entropy(a, y) + cross_entropy(b, y)
    mutual = mutual_loss(a, [b], temperature=3.0) + mutual_loss(b, [a], temperature=3.0)
    return {"loss": ce + mutual, "loss_cls": ce, "loss_div": mutual}


@golden()
def dml_official(v: Arrays) -> dict[str, Tensor]:
    # The authors add 1e-8 to p_0 and inside the logarithm, so a class with probability p moves by 1e-8 / p: with the
    # smallest p of this case, 7e-5, the values agree to about 1e-6 only, whatever the precision.
    a = v.leaf("peer_logits_0")
    ce, mutual = cross_entropy(a, v["target"]), mutual_loss(a, [v["peer_logits_1"]])
    return {"loss": ce + mutual, "loss_cls": ce, "loss_kl": mutual}


@golden()
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


@golden()
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


@golden()
def dml_okddip_pairwise(v: Arrays) -> dict[str, Tensor]:
    peers = [v.leaf(f"peer_logits_{i}") for i in range(2)]
    ce = torch.stack([cross_entropy(z, v["target"]) for z in peers]).sum()
    return {"loss": ce + pairwise_loss(peers, 3.0)}


@golden()
def dml_okddip_ensemble_first(v: Arrays) -> dict[str, Tensor]:
    peers = [v.leaf(f"peer_logits_{i}") for i in range(2)]
    ce = torch.stack([cross_entropy(z, v["target"]) for z in peers]).sum()
    return {"loss": ce + group_loss(peers, means_of_others(peers), 3.0)}


@golden()
def collaborative_learning(v: Arrays) -> dict[str, Tensor]:
    heads = [v.leaf(f"peer_logits_{i}") for i in range(3)]
    ce = torch.stack([cross_entropy(z, v["target"]) for z in heads]).sum()
    consensus = consensus_loss(heads, 3.0)
    return {"loss": 0.5 * (ce + consensus), "loss_cls": 0.5 * ce, "loss_div": 0.5 * consensus}


@golden()
def cl_ilr_rescale(v: Arrays) -> dict[str, Tensor]:
    shared, upstream = v.leaf("shared_feature"), v["upstream"]
    rescale([shared], heads=len(upstream))
    return {"loss": (upstream * shared.square()).sum()}


@golden()
def ffl(v: Arrays) -> dict[str, Tensor]:
    maps, peers = ([v.leaf(f"{name}_{i}") for i in range(2)] for name in ("fmap", "peer_logits"))
    fusion = Fusion(maps[0].shape[1], len(peers), peers[0].shape[1])
    names = {"depthwise": "conv1", "depthwise_norm": "bn1", "pointwise": "conv1_1", "pointwise_norm": "bn1_1"}
    weights = {f"{ours}.weight": f"{theirs}_weight" for ours, theirs in (names | {"head": "fc2"}).items()}
    biases = {"depthwise_norm": "bn1", "pointwise_norm": "bn1_1", "head": "fc2"}
    v.load(fusion, weights | {f"{ours}.bias": f"{theirs}_bias" for ours, theirs in biases.items()})
    fused = fusion.train()(maps)
    ce = torch.stack([cross_entropy(z, v["target"]) for z in (*peers, fused)]).sum()
    kd = fusion_loss(peers, fused, 3.0)
    return {"loss": ce + 0.4 * kd, "loss_cross": ce, "loss_kl": 0.4 * kd, "out_fused_logits": fused}
