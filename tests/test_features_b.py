"""Feature methods of the years after the survey: what golden numbers do not cover."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_methods import BATCH, CLASSES, PROTOCOL, SPEC, batches, bind, network
from torch import Tensor

from kdbench import models
from kdbench.engine.seeding import seeded
from kdbench.errors import DoesNotFit, UserError
from kdbench.method import Method
from kdbench.taps import probe
from methods.intermediate.afd_attention import AFDAttention, matched_feature_loss
from methods.intermediate.bounds import gaussian_bound, info_nce_bound, nce_bound
from methods.intermediate.catkd import CATKD, activation_maps, binarized, cat_loss
from methods.intermediate.connector import Norm1d, classifier
from methods.intermediate.crd import nce_loss
from methods.intermediate.crd_infonce import CRDInfoNCE, info_nce_loss, other_images
from methods.intermediate.gradient_attention import GradientAttention, class_attention, class_attention_loss, slope
from methods.intermediate.itrd import itrd_correlation_loss, itrd_mutual_loss
from methods.intermediate.reviewkd import ReviewKD
from methods.intermediate.semckd import Embedding, SemCKD, attention
from methods.intermediate.simkd import SimKD
from methods.intermediate.srrl import SRRL, Connector
from methods.intermediate.vid import EPS, vid_loss
from methods.theory.contrastive import ContrastiveBound
from methods.theory.variational import VariationalBound


def bound(method: Method, student: str = "resnet8x0.25", teacher: str = "resnet8x0.5", size: int = 16) -> Method:
    spec = replace(SPEC, shape=(1, size, size))
    with seeded(0):
        nets = [models.create(name, spec.shape, CLASSES) for name in (student, teacher)]
    return method.bind(*nets, spec)


def outs(method: Method, n: int = BATCH, size: int = 16) -> tuple[Any, Any, Any]:
    (batch,) = batches(1)
    batch = replace(batch, x=torch.randn(n, 1, size, size), y=batch.y[:n], index=batch.index[:n], view=batch.view[:n])
    return method.student_out(batch.x), method.teach(batch), batch


# ---- the classifier behind features -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet8x0.5", "wrn-16-1", "vgg8x0.25", "shufflenetv1"])
def test_the_classifier_is_found_behind_the_pooling(name: str) -> None:
    net = models.create(name, (3, 32, 32), CLASSES)
    spec = probe(name, net, (3, 32, 32))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    deepest = spec.all("stage")[-1]
    assert classifier(spec, (3, 32, 32), deepest) is classifier(spec, (3, 32, 32), "embed") is net.head
    assert net.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["mobilenetv2-0.5", "shufflenetv2"])
def test_a_convolution_behind_the_last_map_is_told(name: str) -> None:
    spec = probe(name, models.create(name, (3, 32, 32), CLASSES), (3, 32, 32))
    assert classifier(spec, (3, 32, 32), "embed").out_features == CLASSES
    with pytest.raises(DoesNotFit, match=f"{name} does not make its logits of 'stage.' by averaging and one linear"):
        classifier(spec, (3, 32, 32), spec.all("stage")[-1])


def test_a_norm_of_one_value_is_that_of_eval_mode() -> None:
    norm = Norm1d(3)
    norm(torch.randn(8, 3) + 1)
    x = torch.randn(1, 3)
    assert torch.equal(norm(x), norm.eval()(x))


# ---- SimKD and SRRL -----------------------------------------------------------------------------------------------


def test_simkd_deploys_the_teachers_classifier() -> None:
    """Whose maps are the teacher's has the teacher's logits."""
    method = bound(SimKD())
    s, t, batch = outs(method)
    net, head = method.deployed(), method.teacher.head  # type: ignore[union-attr]
    assert torch.equal(net.classify(t["stage3"]), head(t["stage3"].mean((2, 3))))  # type: ignore[operator,union-attr]
    assert method(batch.x).shape == (BATCH, CLASSES)
    trained = {name for name, value in method.named_parameters() if value.requires_grad}
    assert not {name for name in trained if name.startswith("net.head")}
    assert method.losses(s, t, batch)["feature"].item() == pytest.approx(
        (net.project(s["stage3"]) - t["stage3"]).square().mean().item()  # type: ignore[operator]
    )


@pytest.mark.parametrize("pair", [("resnet8x0.25", "vgg8x0.25"), ("vgg8x0.25", "resnet8x0.5")])
def test_maps_of_other_sizes_meet_at_the_smaller(pair: tuple[str, str]) -> None:
    method = bound(SimKD(), *pair, size=32)
    s, t, batch = outs(method, size=32)
    assert s[method.own].shape[2] != t[method.taught].shape[2]  # type: ignore[index]
    assert method.losses(s, t, batch)["feature"].isfinite()
    assert method(batch.x).shape == (BATCH, CLASSES)


def test_srrl_averages_behind_the_connector() -> None:
    """A ReLU stands between, so a map is more than its mean."""
    connector = Connector(3, 5)
    maps = torch.randn(4, 3, 2, 2)
    conv, norm, _ = connector
    assert torch.allclose(connector(maps), norm(conv(maps)).relu().mean((2, 3)), atol=1e-6)
    assert not torch.allclose(connector(maps), connector(maps.mean((2, 3))), atol=1e-2)
    assert bound(SRRL()).own == "stage3"  # type: ignore[attr-defined]
    assert bound(SRRL(of="pooled")).own == "embed"  # type: ignore[attr-defined]


# ---- class activation maps ----------------------------------------------------------------------------------------


def test_class_activation_maps_are_logits_by_place() -> None:
    net = network("resnet8x0.5", 0)
    taps = net.tap(torch.randn(4, *SPEC.shape))  # type: ignore[operator]
    cams = activation_maps(taps["stage3"], net.head.weight)  # type: ignore[union-attr,arg-type]
    assert torch.allclose(cams.mean((2, 3)) + net.head.bias, taps["logits"], atol=1e-5)  # type: ignore[union-attr]


def test_cat_loss_by_hand() -> None:
    s = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])  # one class; its mean is 4
    t = torch.tensor([[[[2.0, 2.0], [2.0, 2.0]]]])
    assert cat_loss(s, t, size=1).item() == 4
    assert cat_loss(s, t, size=2).item() == (1 + 1 + 9 + 25) / 4
    assert cat_loss(s, 3 * t, size=1, normalize=True).item() == pytest.approx(0)
    assert binarized(torch.tensor([[[[-3.0, 0.5], [2.5, 2.0]]]])).tolist() == [[[[0, 0], [1, 0]]]]


def test_the_students_classifier_learns_from_its_maps() -> None:
    method = bound(CATKD())
    method.losses(*outs(method))["cat"].backward()
    assert method.student.head.weight.grad.abs().sum() > 0  # type: ignore[union-attr,operator]
    assert method.student.head.bias.grad is None  # type: ignore[union-attr]
    binary = bound(CATKD(binarize=True))
    s, t, batch = outs(binary)
    assert binary.losses(s, t, batch)["cat"] != method.losses(s, t, batch)["cat"]


# ---- attention over layers ----------------------------------------------------------------------------------------


def test_absent_samples_are_like_nobody() -> None:
    embed = Embedding(4, 2)
    similarity = torch.randn(3, 3)
    hidden = (similarity @ embed[0].weight[:, :3].T + embed[0].bias).relu()  # type: ignore[index,union-attr,operator]
    assert torch.allclose(embed(similarity), embed[2](hidden), atol=1e-6)
    with pytest.raises(UserError, match="built for batches of 4 and sees one of 5"):
        embed(torch.randn(5, 5))


def test_semckd_attention_by_hand() -> None:
    q, k = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 2.0], [5.0, 0.0]]])  # at right angles; alike
    e = torch.e
    assert attention(q, k).flatten().tolist() == pytest.approx([1 / (1 + e), e / (1 + e)])


def test_semckd_is_built_for_the_protocols_batch() -> None:
    method = bind(SemCKD(protocol=PROTOCOL))
    assert method.layers.queries[0].batch == PROTOCOL.batch_size  # type: ignore[union-attr,index]


def test_afd_compares_energies_at_the_teachers_size() -> None:
    s = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[3.0, 3.0], [3.0, 3.0]]]])  # everywhere (1 + 9) / 2
    t = torch.tensor([[[[0.0, 3.0]]]])
    far = ((0.5**0.5) ** 2 + (1 - 0.5**0.5) ** 2) / 2
    weights = torch.tensor([[[0.25, 0.75]]])
    assert matched_feature_loss(weights, [s, t], [t]).item() == pytest.approx(0.25 * far)


@pytest.mark.parametrize("cls", [ReviewKD, SemCKD, AFDAttention, GradientAttention])
@pytest.mark.parametrize("pair", [("resnet8x0.25", "vgg8x0.25"), ("vgg8x0.25", "resnet8x0.5")])
def test_other_numbers_and_sizes_of_stages(cls: type[Method], pair: tuple[str, str]) -> None:
    """Three stages of 32, 16 and 8 pixels, and four of 16, 8, 4 and 4."""
    method = bound(cls(), *pair, size=32)
    s, t, batch = outs(method, size=32)
    terms = method.losses(s, t, batch)
    sum(terms.values(), start=torch.zeros(())).backward()
    assert all(value.isfinite() for value in terms.values())


# ---- information --------------------------------------------------------------------------------------------------


def test_features_that_agree_leave_what_the_batch_takes() -> None:
    x = torch.randn(8, 3, dtype=torch.float64)
    assert itrd_correlation_loss(2 * x + 1, x, alpha=1.0).item() == pytest.approx(torch.tensor(3 / 64).log2().item())
    flat = torch.cat([torch.ones(8, 1), x[:, :1]], dim=1)  # the first does not vary, and correlates with nothing
    assert itrd_correlation_loss(flat, flat, alpha=1.0).item() == pytest.approx(torch.tensor(1 + 1 / 64).log2().item())


def test_samples_that_are_alike_to_the_teacher_alone_are_missed() -> None:
    """Two samples: A has 1/2 on the diagonal, and next to it half of their cosine; B half of the product of both's."""
    s, t = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert itrd_mutual_loss(s, s).item() == pytest.approx((0.5 + 0.5 * 0.36) - (0.5 + 0.5 * 0.36**2))
    assert itrd_mutual_loss(s, t).item() == pytest.approx(0.5 * 0.36)
    assert itrd_mutual_loss(t, s).item() == pytest.approx(0)


# ---- attention from gradients -------------------------------------------------------------------------------------


def test_grad_cam_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0]], [[4.0, 1.0]]]], requires_grad=True)  # two channels of 1x2
    weight = torch.tensor([[2.0, -1.0], [0.0, 1.0]])
    logits = maps.mean((2, 3)) @ weight.T
    gradient = slope(logits, maps, torch.tensor([0]))
    assert gradient.flatten().tolist() == [1.0, 1.0, -0.5, -0.5]
    assert class_attention(maps, gradient).flatten().tolist() == [0.0, 1.5]  # 1 - 2 < 0; 2 - 0.5
    assert class_attention(maps, gradient, "zoo").flatten().tolist() == [1.25, 1.25]
    far = class_attention_loss(torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0]]]]))
    assert far.item() == pytest.approx((0.6 + 0.2) / 2)


@pytest.mark.parametrize("variant", ["paper", "zoo"])
def test_whose_attention_is_asked_for(variant: Any) -> None:
    method = bound(GradientAttention(variant=variant))
    s, t, batch = outs(method)
    other = replace(batch, y=(batch.y + 1) % CLASSES)
    same = torch.equal(*(method.losses(s, t, each)["attention"] for each in (batch, other)))
    assert same == (variant == "paper")  # which asks for the teacher's first choice


# ---- bounds on the mutual information -----------------------------------------------------------------------------

CORRELATION = 0.9
INFORMATION = -0.5 * math.log(1 - CORRELATION**2)
"""I(T; S) of two normal variables, in nats: 0.83."""


def normal_pair(n: int) -> tuple[Tensor, Tensor]:
    """(s, t), (n,), of variance one."""
    s, noise = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return s, CORRELATION * s + (1 - CORRELATION**2) ** 0.5 * noise


@pytest.mark.parametrize(
    ("slope_of_mean", "variance"), [(CORRELATION, 1 - CORRELATION**2), (0.6, 0.3), (1.2, 0.5), (0, 1)]
)
def test_the_variational_bound_is_the_information_for_the_posterior_alone(
    slope_of_mean: float, variance: float
) -> None:
    s, t = normal_pair(200_000)
    rho = torch.tensor([math.log(math.expm1(variance - EPS))], dtype=torch.float64)
    nll = vid_loss(slope_of_mean * s.view(-1, 1, 1, 1), t.view(-1, 1, 1, 1), rho).item()
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    # E log q by hand: the error's mean square, 1 - 2 a rho + a^2, beside q's variance
    error = 1 - 2 * slope_of_mean * CORRELATION + slope_of_mean**2
    expected = -0.5 * (error / variance + math.log(2 * math.pi * variance))
    assert gaussian_bound(nll) == pytest.approx(expected, abs=0.01)
    gap = INFORMATION - (entropy + gaussian_bound(nll))
    assert abs(gap) < 0.01 if slope_of_mean == CORRELATION else gap > 0.05


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1.5])
def test_contrastive_bounds_lie_below_the_information(sharpness: float) -> None:
    """With the critic log p(t | s) / p(t), and with one that is too flat or too sharp."""
    n, k = 1500, 1023
    s, t = normal_pair(n)
    keys = torch.randn(n, 1 + k, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    keys[:, 0] = t
    spread = 1 - CORRELATION**2
    ratio = 0.5 * (keys**2 - (keys - CORRELATION * s[:, None]) ** 2 / spread - math.log(spread))
    nce = nce_bound(nce_loss(sharpness * ratio, torch.tensor(float(n)).log(), n).item(), k)
    info = info_nce_bound(info_nce_loss(sharpness * ratio).item(), k)
    assert nce < info < INFORMATION + 0.03
    if sharpness == 1:
        assert info == pytest.approx(INFORMATION, abs=0.05)
        assert nce == pytest.approx(INFORMATION - 1, abs=0.05)  # the one nat that negatives cost
    else:
        assert info < INFORMATION - 0.02
        assert nce < INFORMATION - 1


def test_info_nce_never_exceeds_what_so_many_keys_can_tell() -> None:
    certain = torch.tensor([[50.0, 0.0, 0.0, 0.0]])
    assert info_nce_bound(info_nce_loss(certain).item(), 3) == pytest.approx(math.log(4))
    assert info_nce_bound(info_nce_loss(torch.zeros(2, 4)).item(), 3) == pytest.approx(0, abs=1e-6)


def test_negatives_are_any_other_image() -> None:
    index = torch.tensor([0, 2, 4])
    keys = other_images(index, 5, 4000, torch.Generator().manual_seed(0))
    assert torch.equal(keys[:, 0], index)
    for own, others in zip(index, keys[:, 1:], strict=True):
        counts = torch.bincount(others, minlength=5)
        assert counts[own] == 0
        assert all(850 < n < 1150 for i, n in enumerate(counts.tolist()) if i != own)
    assert other_images(torch.tensor([0]), 1, 2, torch.Generator()).tolist() == [[0, 0, 0]]  # there is no other


@pytest.mark.parametrize("method", [VariationalBound(), ContrastiveBound(negatives=16), CRDInfoNCE(negatives=16)])
def test_bounds_are_curves(method: Method) -> None:
    """Of the means of an epoch's terms; beside them and not among them."""
    bind(method)
    means = {f"loss/{term}": 0.5 for term in method.terms}
    ((name, value),) = method.epoch_bounds(means).items()
    assert name.startswith("bound/")
    by_hand = {
        VariationalBound: -0.5 / 3 - 0.5 * math.log(2 * math.pi),  # of three stages
        ContrastiveBound: math.log(16) - 0.25,
        CRDInfoNCE: math.log(17) - 0.25,
    }
    assert value == pytest.approx(by_hand[type(method)])


def test_the_bench_records_bounds(kd: Any) -> None:
    assert kd.run("method=[vid_bound,vid]").code == 0
    plain, own = (record.curves for record in sorted(kd.records(), key=lambda record: record.cell.method))
    bound = [-(loss / 3) - 0.5 * math.log(2 * math.pi) for loss in own["loss/vid"]]  # of three stages
    assert own["bound/log_likelihood"] == pytest.approx(bound)
    assert own.keys() - plain.keys() == {"bound/log_likelihood"}
