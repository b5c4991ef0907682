"""Golden cases of intermediate layers (4.2); `test_parity` checks them all."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.taps import Out
from methods.intermediate.ab import ab_loss, connector
from methods.intermediate.afd_attention import Attention, matched_feature_loss
from methods.intermediate.at import AT, at_loss
from methods.intermediate.catkd import CATKD, cat_loss
from methods.intermediate.crd import compared, log_normaliser, nce_loss, on_sphere
from methods.intermediate.fitnet import Regressor, hint_loss
from methods.intermediate.fsp import flow, fsp_loss
from methods.intermediate.ft import Paraphraser, attention_factor_loss, factor_loss, paraphrase_loss, translator
from methods.intermediate.gradient_attention import GradientAttention
from methods.intermediate.irg import edge_loss, edges, transform_loss, transformation, vertex_loss
from methods.intermediate.irg_forms import IRGChanges, change_loss, graph_loss
from methods.intermediate.itrd import ITRD
from methods.intermediate.jacobian import JacobianMatching, input_gradient
from methods.intermediate.kdpp import norm_direction_loss
from methods.intermediate.kdsvd import Matrix, as_matrices, decomposed, kdsvd_loss
from methods.intermediate.meal import Discriminator, similarity_loss, told_apart
from methods.intermediate.nst import NST, nst_loss
from methods.intermediate.ofd import connector as ofd_connector
from methods.intermediate.ofd import margin, ofd_loss, partial_l2
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
def irg(v: Arrays) -> dict[str, Tensor]:
    names = ("embed", "feat_0", "feat_1")
    s, t = {name: v.leaf(f"student_{name}") for name in names}, {name: v[f"teacher_{name}"] for name in names}
    method = IRGChanges()
    method.ways = [(("feat_0", "feat_0"), ("feat_1", "feat_1"))]
    logits = {"logits": torch.zeros(8, 2, dtype=v.dtype)}
    terms = terms_of(method, s | logits, t | logits, torch.zeros(8).long())
    return {
        "loss": terms["graph"] + terms["transform"],
        "loss_graph": graph_loss(s["embed"], t["embed"]),
        "loss_transform": change_loss((s["feat_0"], s["feat_1"]), (t["feat_0"], t["feat_1"])),
    }


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


@golden()
def kdpp(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_embed"), v["teacher_embed"]
    return {"loss": norm_direction_loss(s, t, v["class_centers"], v["target"])}


@golden()
def sobolev(v: Arrays) -> dict[str, Tensor]:
    batch = Batch.of([v["image"], v["target"]])
    x = batch.x.requires_grad_()

    def logits(read: Callable[[str], Tensor], side: str) -> Tensor:
        hidden = F.linear(x.flatten(1), read(f"param_{side}.l1.weight"), read(f"param_{side}.l1.bias")).tanh()
        return F.linear(hidden, read(f"param_{side}.l2.weight"), v[f"param_{side}.l2.bias"])

    s, t = logits(v.leaf, "student"), logits(v.__getitem__, "teacher")
    own, taught = (input_gradient(z.gather(1, batch.y[:, None]), x, differentiable=True) for z in (s, t))
    method = JacobianMatching(variant="zoo")
    return {
        "loss": method.losses(Out({"logits": s}), Out({"logits": t}), batch)["jacobian"],
        "out_student_logits": s,
        "out_teacher_logits": t,
        "out_student_input_grad": own.view_as(x),
        "out_teacher_input_grad": taught.view_as(x),
    }


@golden()
def fsp(v: Arrays) -> dict[str, Tensor]:
    s, t = [v.leaf(name) for name in v.layers("student")], [v[name] for name in v.layers("teacher")]
    pairs = [fsp_loss(flow(s[i], s[i + 1]), flow(t[i], t[i + 1])) for i in range(2)]
    return {"loss": pairs[0] + pairs[1], "loss_pair_0": pairs[0], "loss_pair_1": pairs[1]}


@golden()
def nst(v: Arrays) -> dict[str, Tensor]:
    s, t = (
        {name: v.leaf(f"student_{name}") for name in ("feat_0", "feat_1")},
        {name: v[f"teacher_{name}"] for name in ("feat_0", "feat_1")},
    )
    method = NST()
    method.pairs = [("feat_0", "feat_0"), ("feat_1", "feat_1")]
    loss = terms_of(method, {**s, "logits": s["feat_0"].mean((2, 3))}, t, torch.zeros(8).long())["nst"]
    return {"loss": loss, **{f"loss_layer_{i}": nst_loss(s[f"feat_{i}"], t[f"feat_{i}"]) for i in range(2)}}


def factors(v: Arrays, coders: dict[str, list[str]], norm: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The student's factor, the teacher's, and what the paraphraser tells of it; `coders`: the reference's layers."""
    s, t = v.leaf("student_feat_0"), v["teacher_feat_0"]
    paraphraser, translate = Paraphraser(t.shape[1], 8), translator(s.shape[1], 8, norm)
    for module, name in ((paraphraser, "paraphraser"), (translate, "translator")):
        theirs = [f"{name}.{layer}.{kind}" for layer in coders[name] for kind in ("weight", "bias")]
        v.load(module, dict(zip(dict(module.named_parameters()), theirs, strict=True)))
    return translate(s), paraphraser.encoder(t), paraphraser(t)


@golden()
def ft(v: Arrays) -> dict[str, Tensor]:
    encoder = ["conv0", "conv1", "conv2"]
    coders = {"paraphraser": [*encoder, "deconv0", "deconv1", "deconv2"], "translator": encoder}
    s, t, told = factors(v, coders, norm=False)
    return {
        "loss": factor_loss(s, t.detach()),
        "loss_reconstruction": paraphrase_loss(told, v["teacher_feat_0"]),
        "out_factor_s": s,
        "out_factor_t": t,
    }


@golden(
    unused={
        f"buffer_translator.encoder.{i}.running_{of}": "not used in train mode"
        for i in (1, 4, 7)
        for of in ("mean", "var")
    }
)
def ft_repdistiller(v: Arrays) -> dict[str, Tensor]:
    coders = {
        "paraphraser": [f"{coder}.{i}" for coder in ("encoder", "decoder") for i in (0, 3, 6)],
        "translator": [f"encoder.{i}" for i in (0, 1, 3, 4, 6, 7)],
    }
    s, t, told = factors(v, coders, norm=True)
    return {
        "loss": attention_factor_loss(s, t.detach()),
        "loss_reconstruction": paraphrase_loss(told, v["teacher_feat_0"], "repdistiller"),
        "out_factor_s": s,
        "out_factor_t": t,
    }


@golden(
    unused={
        f"buffer_connector.connectors.{i}.bn.running_{of}": "not used in train mode"
        for i in (1, 2)
        for of in ("mean", "var")
    }
)
def ab(v: Arrays) -> dict[str, Tensor]:
    s, t = [v.leaf(name) for name in v.layers("student")], [v[name] for name in v.layers("teacher")]
    connectors = [connector(tuple(a.shape[1:]), tuple(b.shape[1:])) for a, b in zip(s, t, strict=True)]
    for i, module in enumerate(connectors):
        theirs = [f"connector.connectors.{i}.{part}.{kind}" for part in ("conv", "bn") for kind in ("weight", "bias")]
        v.load(module, dict(zip(dict(module.named_parameters()), theirs, strict=False)))
    connected = [module(a) for module, a in zip(connectors, s, strict=True)]
    layers = [3 / 1000 * ab_loss([a], [b]) * 2.0 ** (i - 2) for i, (a, b) in enumerate(zip(connected, t, strict=True))]
    apart = [((a > 0) ^ (b > 0)).double().mean() for a, b in zip(connected, t, strict=True)]
    return {
        "loss": 3 / 1000 * ab_loss(connected, t),
        "loss_zoo_mean": ab_loss(connected, t, variant="zoo"),
        **{f"loss_layer_{i}": layer for i, layer in enumerate(layers)},
        **{f"out_connected_{i}": a for i, a in enumerate(connected)},
        **{f"out_disagreement_{i}": share for i, share in enumerate(apart)},
    }


@golden()
def kdsvd(v: Arrays, matrix: Matrix = "channels") -> dict[str, Tensor]:
    def signed(feature: Tensor, k: int, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """With the signs of the reference, which are free."""
        vectors, values = decomposed(as_matrices(feature, matrix), k)
        return vectors * (vectors.detach() * theirs).sum(1, keepdim=True).sign(), values

    students = [signed(v.leaf(name), 4, v[f"out_student_v_{name[-1]}"])[0] for name in v.layers("student")]
    told = [signed(v[name], 1, v[f"out_teacher_v_{name[-1]}"]) for name in v.layers("teacher")]
    teachers, values = [t for t, _ in told], [s for _, s in told]
    pairs = [slice(i, i + 2) for i in range(2)]
    return {
        "loss": kdsvd_loss(students, teachers, values),
        **{f"loss_pair_{i}": kdsvd_loss(students[p], teachers[p], values[p]) for i, p in enumerate(pairs)},
        **{f"out_student_v_{i}": s for i, s in enumerate(students)},
        **{
            f"out_student_singular_values_{i}": decomposed(as_matrices(v[f"student_feat_{i}"]), s.shape[1])[1]
            for i, s in enumerate(students)
        },
        **{f"out_teacher_v_{i}": t for i, t in enumerate(teachers)},
        **{f"out_teacher_s_{i}": F.normalize(s, dim=1) for i, s in enumerate(values)},
    }


@golden()
def kdsvd_mdistiller(v: Arrays) -> dict[str, Tensor]:
    found = kdsvd(v, "columns")
    return {name: value for name, value in found.items() if not name.startswith(("loss_", "out_student_singular"))}


@golden(
    unused={
        f"buffer_connectors.{i}.1.running_{of}": "not used in train mode" for i in range(3) for of in ("mean", "var")
    }
)
def ofd(v: Arrays) -> dict[str, Tensor]:
    s, t = [v.leaf(name) for name in v.layers("student")], [v[name] for name in v.layers("teacher")]
    connected, margins = [], []
    for i, (a, b) in enumerate(zip(s, t, strict=True)):
        connect = ofd_connector(a.shape[1], b.shape[1])
        v.load(connect, {name: f"connectors.{i}.{name}" for name in dict(connect.named_parameters())})
        connected.append(connect(a))
        # the reference rounds them so
        margins.append(margin(v[f"teacher_bn_weight_{i}"], v[f"teacher_bn_bias_{i}"]).float().to(a.dtype))
    total = ofd_loss(connected, t, margins)
    layers = [partial_l2(a, b, m) * len(a) for a, b, m in zip(connected, t, margins, strict=True)]
    return {
        "loss": total / 1000,
        "loss_sum": total * len(s[0]),
        "loss_mdistiller": total,
        **{f"loss_layer_{i}": layer for i, layer in enumerate(layers)},
        **{f"out_margin_{i}": m for i, m in enumerate(margins)},
        **{f"out_connected_{i}": c for i, c in enumerate(connected)},
    }


@golden()
def meal(v: Arrays) -> dict[str, Tensor]:
    similar, apart = [], []
    for i in range(2):
        s, t = v.leaf(f"student_output_{i}"), v[f"teacher_output_{i}"]
        judge = Discriminator(s.shape[1], rectified=True)
        theirs = [f"{i}_conv{k}_{kind}" for k in (1, 2, 3) for kind in ("weight", "bias")]
        v.load(judge, dict(zip(dict(judge.named_parameters()), theirs, strict=True)))
        similar.append(similarity_loss(s, t))
        apart.append(told_apart(judge(s), judge(t)))
    return {
        "loss": sum(similar) + sum(apart),
        "loss_similarity": sum(similar),
        "loss_discriminator": sum(apart),
    }
