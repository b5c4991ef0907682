"""Golden cases of intermediate layers (4.2); `test_parity` checks them all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.intermediate.afd_attention import Attention, matched_feature_loss
from methods.intermediate.at import AT, at_loss
from methods.intermediate.catkd import CATKD, cat_loss
from methods.intermediate.crd import compared, log_normaliser, nce_loss, on_sphere
from methods.intermediate.fitnet import Regressor, hint_loss
from methods.intermediate.gradient_attention import GradientAttention
from methods.intermediate.irg import edge_loss, edges, transform_loss, transformation, vertex_loss
from methods.intermediate.itrd import ITRD
from methods.intermediate.pkt import PKT
from methods.intermediate.reviewkd import ABF, hcl_loss
from methods.intermediate.semckd import CrossLayer, semckd_loss
from methods.intermediate.simkd import Projector, Reused, SimKD
from methods.intermediate.sp import SP, sp_loss
from methods.intermediate.srrl import SRRL, Connector
from methods.intermediate.vid import VariationalLayer
from parity.arrays import Arrays, golden, terms_of


@golden(
    unused={
        "buffer_regressor.bn.running_mean": "not used in train mode",
        "buffer_regressor.bn.running_var": "not used in train mode",
    }
)
def fitnet(v: Arrays, use_relu: bool = True) -> dict[str, Tensor]:
    s, t = v.leaf("student_feat_0"), v["teacher_feat_0"]
    regressor = Regressor(tuple(s.shape[1:]), tuple(t.shape[1:]), use_relu)
    v.load(
        regressor,
        {
            "0.weight": "regressor.conv.weight",
            "0.bias": "regressor.conv.bias",
            "1.weight": "regressor.bn.weight",
            "1.bias": "regressor.bn.bias",
        },
    )
    guided = regressor.train()(s)
    return {"loss": hint_loss(guided, t), "out_regressed": guided}


@golden()
def fitnet_no_relu(v: Arrays) -> dict[str, Tensor]:
    return fitnet(v, use_relu=False)


@golden()
def at(v: Arrays, p: float = 2.0) -> dict[str, Tensor]:
    s = {name: v.leaf(f"student_{name}") for name in ("feat_0", "feat_1")}
    t = {name: v[f"teacher_{name}"] for name in ("feat_0", "feat_1")}
    method = AT(p=p)
    method.pairs = [("feat_0", "feat_0"), ("feat_1", "feat_1")]
    batch = len(s["feat_0"])
    loss = terms_of(method, {**s, "logits": s["feat_0"].mean((2, 3))}, t, torch.zeros(batch).long())["at"]
    return {"loss": loss, **{f"loss_layer_{i}": at_loss(s[f"feat_{i}"], t[f"feat_{i}"], p) for i in range(2)}}


@golden()
def at_p3(v: Arrays) -> dict[str, Tensor]:
    return at(v, p=3.0)


@golden()
def at_p4(v: Arrays) -> dict[str, Tensor]:
    return at(v, p=4.0)


@golden()
def sp(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_feat_0"), v["teacher_feat_0"]
    method = SP()
    method.own = method.taught = "stage"
    loss = terms_of(method, {"stage": s, "logits": s.mean((2, 3))}, {"stage": t}, torch.zeros(8).long())["sp"]
    return {"loss": loss, "loss_layer_0": sp_loss(s, t)}


@golden()
def pkt(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_embed")
    return {
        "loss": terms_of(PKT(), {"embed": s, "logits": s}, {"embed": v["teacher_embed"]}, torch.zeros(8).long())["pkt"]
    }


def vid_layer(v: Arrays, i: int, middle: int | None = None) -> Tensor:
    s, t = v.leaf(f"student_feat_{i}"), v[f"teacher_feat_{i}"]
    layer = VariationalLayer(s.shape[1], t.shape[1], variance=5.0, middle=middle)
    names = {f"mean.{k}.weight": f"vid_{i}.regressor.{k}.weight" for k in (0, 2, 4)}
    v.load(layer, {**names, "rho": f"vid_{i}.log_scale"})
    loss: Tensor = layer(s, t)
    return loss


@golden()
def vid_middle(v: Arrays) -> dict[str, Tensor]:
    return {"loss": vid_layer(v, 0, middle=9)}


@golden()
def vid(v: Arrays) -> dict[str, Tensor]:
    layers = [vid_layer(v, i) for i in range(2)]
    return {"loss": layers[0] + layers[1], "loss_layer_0": layers[0], "loss_layer_1": layers[1]}


@golden()
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


def statistics(*norms: str) -> dict[str, str]:
    """The running statistics of these batch norms are not used."""
    return {f"buffer_{norm}.running_{what}": "not used in train mode" for norm in norms for what in ("mean", "var")}


@golden()
def reviewkd_hcl(v: Arrays) -> dict[str, Tensor]:
    levels = [hcl_loss(v.leaf(f"student_feat_{i}"), v[f"teacher_feat_{i}"]) for i in range(3)]
    return {"loss": torch.stack(levels).sum(), **{f"loss_level_{i}": level for i, level in enumerate(levels)}}


@golden(unused=statistics("abf.conv1.1", "abf.conv2.1"))
def reviewkd_abf(v: Arrays) -> dict[str, Tensor]:
    s, t, deeper = v.leaf("student_feat_0"), v["teacher_feat_0"], v.leaf("residual_feat")
    fusion = ABF(s.shape[1], deeper.shape[1], t.shape[1], fuses=True)
    names = {"reduce": "conv1", "expand": "conv2"}
    parts = ("0.weight", "1.weight", "1.bias")
    v.load(
        fusion,
        {
            **{f"{ours}.{part}": f"abf.{theirs}.{part}" for ours, theirs in names.items() for part in parts},
            **{f"attention.{part}": f"abf.att_conv.0.{part}" for part in ("weight", "bias")},
        },
    )
    compared, fused = fusion(s, deeper, t.shape[2:])
    return {
        "loss": hcl_loss(compared, t),
        "loss_residual": (fused - v["residual_target"]).square().mean(),
        "out_output": compared,
        "out_residual": fused,
    }


def teachers_classifier(v: Arrays) -> nn.Linear:
    weight, bias = v["param_teacher_classifier.weight"], v["param_teacher_classifier.bias"]
    head = nn.Linear(*reversed(weight.shape), dtype=weight.dtype)
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.requires_grad_(False)


@golden(unused=statistics("simkd.transfer.1", "simkd.transfer.4", "simkd.transfer.7"))
def simkd(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_feat_0"), v["teacher_feat_0"]
    projector = Projector(s.shape[1], t.shape[1], factor=2)
    v.load(projector, {name: f"simkd.transfer.{name}" for name, _ in projector.named_parameters()})
    method = SimKD()
    method.own = method.taught = "stage"
    method.net = Reused(nn.Identity(), "stage", projector, t.shape[2:], teachers_classifier(v))
    projected = method.net.project(s)
    return {
        "loss": terms_of(method, {"stage": s}, {"stage": t}, torch.zeros(8).long())["feature"],
        "out_projected": projected,
        "out_target": t,
        "out_student_logits": method.net.classify(projected),
    }


@golden(
    unused=statistics(*(f"selfa.regressor{ij}.regressor.{norm}" for ij in ("00", "01", "10", "11") for norm in (1, 4)))
)
def semckd(v: Arrays) -> dict[str, Tensor]:
    s, t = ([v.leaf(n) if n[0] == "s" else v[n] for n in v.layers(side)] for side in ("student", "teacher"))
    layers = CrossLayer([x.shape[1] for x in s], [x.shape[1] for x in t], batch=8, factor=4)
    embeddings = {
        f"{ours}.{i}.{k}.{part}": f"selfa.{theirs}_weight{i}.linear{n}.{part}"
        for ours, theirs in {"queries": "query", "keys": "key"}.items()
        for i in range(2)
        for k, n in {0: 1, 2: 2}.items()
        for part in ("weight", "bias")
    }
    projections = [name for name, _ in layers.named_parameters() if name.startswith("projections")]

    def theirs(name: str) -> str:
        _, i, j, rest = name.split(".", 3)
        return f"selfa.regressor{i}{j}.regressor.{rest}"

    v.load(layers, {**embeddings, **{name: theirs(name) for name in projections}})
    weights, distances = layers(s, t)
    return {"loss": semckd_loss(weights, distances), "out_attention": weights}


@golden(unused=statistics("srrl.transfer.1"))
def srrl_pooled(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_embed"), v["teacher_embed"]
    method = SRRL(of="pooled")
    method.own = "embed"
    method.connector, method.head = Connector(s.shape[1], t.shape[1]), (teachers_classifier(v),)
    v.load(method.connector, {name: f"srrl.transfer.{name}" for name, _ in method.connector.named_parameters()})
    z = v["teacher_logits"]
    terms = terms_of(method, {"embed": s, "logits": z}, {"embed": t, "logits": z}, torch.zeros(8).long())
    return {
        "loss": terms["feature"] + terms["regression"],
        "loss_feature": terms["feature"],
        "loss_regression": terms["regression"],
        "out_student_logits_via_teacher": method.head[0](method.connector(s)),
    }


@golden(unused={"teacher_logits": "of no influence where all classes are transferred"})
def catkd(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_feat_0"), v["teacher_feat_0"]
    method = CATKD(size=2, normalize=True)
    method.own = method.taught = "stage"
    maps_are_cams = nn.Linear(s.shape[1], s.shape[1])
    maps_are_cams.weight = nn.Parameter(torch.eye(s.shape[1], dtype=s.dtype), requires_grad=False)
    method.heads = (maps_are_cams, maps_are_cams)
    terms = terms_of(method, {"stage": s, "logits": v["student_logits"]}, {"stage": t}, v["target"])
    return {"loss": cat_loss(s, t, 2, normalize=True), "loss_weighted": 400 * terms["cat"], "loss_ce": terms["ce"]}


@golden()
def itrd(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_embed"), v["teacher_embed"]
    method = ITRD(alpha=1.01)
    method.embed = nn.Linear(s.shape[1], t.shape[1])
    v.load(method.embed, {part: f"itrd.embed.linear.{part}" for part in ("weight", "bias")})
    terms = terms_of(method, {"embed": s, "logits": s}, {"embed": t}, torch.zeros(8).long())
    return {
        "loss": terms["correlation"] + terms["mutual"],
        "loss_correlation": terms["correlation"],
        "loss_mutual": terms["mutual"],
    }


@golden()
def lwm_attention_zoo(v: Arrays) -> dict[str, Tensor]:
    def network(side: str, maps: Tensor) -> Tensor:
        own = {  # no gradient reaches the last bias
            name: v.leaf(f"param_{name}") if side == "student" and name != "student.l2.bias" else v[f"param_{name}"]
            for name in (f"{side}.l{i}.{part}" for i in (1, 2) for part in ("weight", "bias"))
        }
        hidden = F.linear(maps.flatten(1), own[f"{side}.l1.weight"], own[f"{side}.l1.bias"]).tanh()
        return F.linear(hidden, own[f"{side}.l2.weight"], own[f"{side}.l2.bias"])

    s, t = v.leaf("student_feat_0"), v["teacher_feat_0"].requires_grad_()
    own, taught = network("student", s), network("teacher", t)
    method = GradientAttention(tap="stage", variant="zoo")
    terms = terms_of(method, {"stage": s, "logits": own}, {"stage": t, "logits": taught}, v["target"])
    return {"loss": terms["attention"], "out_student_logits": own, "out_teacher_logits": taught}


def names_of_afd(layers: int, hints: int) -> dict[str, str]:
    """Ours -> the reference's."""
    student, teacher = "afd.attention.linear_trans_s", "afd.attention.linear_trans_t"
    modules = {f"keys.{i}": f"{student}.key_layer.{i}" for i in range(layers)}
    modules |= {f"queries.{i}": f"{teacher}.query_layer.{i}" for i in range(hints)} | {
        "bilinear": f"{student}.bilinear"
    }
    parts = {"0": "linear", "1": "bn"}
    return {"place_s": "afd.attention.p_s", "place_t": "afd.attention.p_t"} | {
        f"{ours}.{k}.{what}": f"{theirs}.{part}.{what}"
        for ours, theirs in modules.items()
        for k, part in parts.items()
        for what in ("weight", "bias")
    }


@golden(
    unused=statistics(*sorted({n.rpartition(".")[0] for n in names_of_afd(3, 2).values() if n.endswith("bn.weight")}))
)
def afd_attention(v: Arrays) -> dict[str, Tensor]:
    s, t = ([v.leaf(n) if n[0] == "s" else v[n] for n in v.layers(side)] for side in ("student", "teacher"))
    attention = Attention([x.shape[1] for x in s], [x.shape[1] for x in t], dim=8)
    v.load(attention, names_of_afd(len(s), len(t)))
    weights = attention(s, t)
    return {"loss": matched_feature_loss(weights, s, t), "out_attention": weights}


@golden()
def irg_zoo(v: Arrays) -> dict[str, Tensor]:
    layers = ("feat_0", "feat_1", "embed")
    s = {name: v.leaf(f"student_{name}") for name in (*layers, "logits")}
    t = {name: v[f"teacher_{name}"] for name in (*layers, "logits")}
    vertex = vertex_loss(s["logits"], t["logits"])
    edge = torch.stack([edge_loss(s[name], t[name]) for name in layers]).mean()
    transform = transform_loss((s["feat_0"], s["feat_1"]), (t["feat_0"], t["feat_1"]))
    loss = 0.1 * vertex + 5 * edge + 5 * transform
    return {"loss": loss, "loss_vertex": vertex, "loss_edge": edge, "loss_transform": transform}


@golden(
    unused={
        "grad_student_embed": "of the authors' hand-written backward pass: half of the next",
        "grad_autodiff_maxconst__student_embed": "takes the largest distance for a constant, ours has its gradient",
        "grad_transform__student_vec_0": "the same",
        "grad_transform__student_vec_1": "the same",
    }
)
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
