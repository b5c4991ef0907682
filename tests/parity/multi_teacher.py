"""Golden cases of several teachers (5); `test_parity` checks them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.losses import kl
from kdbench.taps import Out
from methods.intermediate.fitnet import Regressor, hint_loss
from methods.multi_teacher.aekd import AEKD, logit_gradients, min_norm_weights
from methods.multi_teacher.average import average_loss, members_loss
from methods.multi_teacher.camkd import camkd_feature_loss, camkd_loss, confidence_weights
from methods.multi_teacher.cfl import CommonSpace, mmd_loss, reconstruction_loss
from methods.multi_teacher.ebkd import EBKD, entropy_weights
from methods.multi_teacher.hints import AEKDHint, FitNetMKD, hint_weights
from methods.multi_teacher.ka import AmalgamationBlock, amalgamation_loss
from methods.multi_teacher.lfme import experts_loss
from methods.multi_teacher.pool import Pool
from methods.multi_teacher.uhc import uhc_loss
from parity.arrays import Arrays, golden


def teachers(v: Arrays, what: str = "logits", n: int = 3) -> list[Tensor]:
    return [v[f"teacher_{what}_{i}"] for i in range(n)]


def terms_of_pool(
    method: Pool, s: Mapping[str, Tensor], pool: Sequence[Mapping[str, Tensor]], y: Tensor | None = None
) -> dict[str, Tensor]:
    """A method's own terms, for given taps of the student and of each teacher."""
    first, *others = map(Out, pool)
    y = torch.zeros(len(s["logits"])).long() if y is None else y
    batch = Batch(x=torch.zeros(len(y), 0), y=y, index=torch.arange(len(y)), view=torch.zeros(len(y), 3).long())
    return method.losses(Out(s), Out(first.taps, tuple(others)), batch)


@golden()
def multi_teacher_average_loss(v: Arrays) -> dict[str, Tensor]:
    s, pool = v.leaf("student_logits"), teachers(v)
    single = {f"loss_teacher_{i}": kl(s, t, 4.0) for i, t in enumerate(pool)}
    return {"loss": members_loss(s, pool, 4.0), **single}


@golden()
def multi_teacher_average_prob(v: Arrays) -> dict[str, Tensor]:
    return {"loss": average_loss(v.leaf("student_logits"), teachers(v), 4.0)}


@golden()
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


@golden()
def cfl_fc(v: Arrays) -> dict[str, Tensor]:
    code, amalgamated, reconstructed = common_space(v, 4, layers(0), layers(0, 2), layers(0, 2))
    soft = kl(v.leaf("student_logits"), torch.cat(teachers(v, n=2), dim=1))
    loss = soft + amalgamated + reconstructed
    return {"loss": loss, "loss_kd": soft, "loss_amal": amalgamated, "loss_recons": reconstructed, "out_hs": code}


@golden()
def cfl_conv(v: Arrays) -> dict[str, Tensor]:
    blocks = [f"{i}.conv{k}.weight" for i in range(2) for k in (1, 2)]
    blocks += [f"{i}.bn{k}.{kind}" for i in range(2) for k in (1, 2) for kind in ("weight", "bias")]
    _, amalgamated, reconstructed = common_space(v, 3, layers(0, 1), blocks, layers(0, 1, 3))
    return {"loss": amalgamated + reconstructed, "loss_amal": amalgamated, "loss_recons": reconstructed}


@golden()
def ka_layerwise(v: Arrays) -> dict[str, Tensor]:
    s, pool = v.leaf("student_feature"), teachers(v, "feature", 2)
    block = AmalgamationBlock(s.shape[1], [t.shape[1] for t in pool])
    names = {"encoder": "enc", "adapter": "fam", "decoder": "dec"}
    v.load(
        block, {f"{ours}.{kind}": f"{theirs}_{kind}" for ours, theirs in names.items() for kind in ("weight", "bias")}
    )
    adapted, code, decoded = block(s, pool)
    amalgamated = amalgamation_loss(adapted, code)
    reconstructed = torch.stack([reconstruction_loss(d, t) for d, t in zip(decoded, pool, strict=True)]).sum()
    return {"loss": amalgamated + reconstructed, "loss_amal": amalgamated, "loss_recons": reconstructed}


@golden()
def ebkd(v: Arrays) -> dict[str, Tensor]:
    pool = teachers(v)
    torch.testing.assert_close(entropy_weights(pool), v["weights"])
    s, y = v.leaf("student_logits"), v["target"]
    return {"loss": terms_of_pool(EBKD(), {"logits": s}, [{"logits": t} for t in pool], y)["kd"]}


@golden()
def camkd_logits(v: Arrays) -> dict[str, Tensor]:
    pool, y = teachers(v), v["target"]
    torch.testing.assert_close(confidence_weights(pool, y), v["weights"])
    return {"loss": camkd_loss(v.leaf("student_logits"), pool, y, 4.0)}


@golden()
def camkd_features(v: Arrays) -> dict[str, Tensor]:
    weights = confidence_weights(teachers(v), v["target"])
    torch.testing.assert_close(weights, v["weights"])
    guided = [v.leaf(f"student_feature_{i}") for i in range(3)]
    return {"loss": camkd_feature_loss(guided, teachers(v, "feature"), weights)}


@golden()
def aekd_logits(v: Arrays) -> dict[str, Tensor]:
    s, pool = v.leaf("student_logits"), teachers(v)
    weights = min_norm_weights(logit_gradients(s, pool, 4.0), 0.6)
    torch.testing.assert_close(weights, v["weights"].double(), rtol=0, atol=1e-6)
    single = {f"loss_teacher_{i}": kl(s, t, 4.0) for i, t in enumerate(pool)}
    return {"loss": terms_of_pool(AEKD(), {"logits": s}, [{"logits": t} for t in pool])["kd"], **single}


def hints_of(v: Arrays, method: FitNetMKD) -> tuple[Tensor, list[Tensor]]:
    """(the method's term of hints, that of each teacher alone), by the reference's regressors."""
    s, pool = v.leaf("feature_s"), teachers(v, "feature")
    method.own, method.theirs = "map", ["map"] * 3
    method.regressors = nn.ModuleList(Regressor(tuple(s.shape[1:]), tuple(t.shape[1:])) for t in pool)
    layer = {"0": "conv", "1": "bn"}
    names = [(k, n, kind) for k in range(3) for n in layer for kind in ("weight", "bias")]
    v.load(method.regressors, {f"{k}.{n}.{kind}": f"{k}_{layer[n]}_{kind}" for k, n, kind in names})
    logits = s.detach().mean((2, 3))
    found = terms_of_pool(method, {"map": s, "logits": logits}, [{"map": t, "logits": logits} for t in pool])
    return found["hint"], [hint_loss(r(s), t) for r, t in zip(method.regressors, pool, strict=True)]


@golden()
def fitnet_mkd(v: Arrays) -> dict[str, Tensor]:
    loss, single = hints_of(v, FitNetMKD())
    return {"loss": loss, **{f"loss_teacher_{i}": value for i, value in enumerate(single)}}


@golden()
def aekd_hint(v: Arrays) -> dict[str, Tensor]:
    loss, single = hints_of(v, AEKDHint())
    weights = hint_weights(torch.stack(single), v.leaf("feature_s"), 0.6)
    torch.testing.assert_close(weights, v["weights"].double(), rtol=0, atol=1e-5)
    return {"loss": loss, **{f"loss_teacher_{i}": value for i, value in enumerate(single)}}


@golden()
def lfme_distill(v: Arrays) -> dict[str, Tensor]:
    s, pool = v.leaf("student_logits"), teachers(v)
    classes = [[0, 2, 5], [1, 3, 4, 6], [7, 8]]
    total = experts_loss(s, pool, classes, torch.tensor([1.0, 1.0, 0.4], dtype=torch.float64), 2.0)
    single = {f"loss_group_{g}": experts_loss(s, pool, classes, torch.eye(3)[g], 2.0) for g in range(3)}
    return {"loss": total, **single}
