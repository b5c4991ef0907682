"""Losses against the formulas of the papers, written out anew; schedules and ramps against PyTorch's."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import DoesNotFit, UserError
from kdbench.losses import kl, to_smaller
from kdbench.method import Ramp
from kdbench.plan import allocate
from kdbench.protocol import Protocol, Schedule
from methods.data_free.dafl import Generator, activation_loss, information_entropy_loss, one_hot_loss
from methods.intermediate.at import at_loss
from methods.intermediate.fitnet import Regressor, hint_loss
from methods.intermediate.pkt import pkt_loss
from methods.intermediate.sp import sp_loss
from methods.intermediate.vid import VariationalLayer, vid_loss
from methods.logits.dkd import dkd_loss, dkd_terms
from methods.logits.label_smoothing import label_smoothing_loss
from methods.logits.logits_mse import logits_mse_loss
from methods.logits.rkd import rkd_terms
from methods.online.dml import mutual_loss
from methods.teacher_free.byot import exit_feature_loss, exit_kd_loss

B, K = 6, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


S, T = 2 * random(B, K, seed=1), 2 * random(B, K, seed=2)
Y = torch.tensor([0, 1, 2, 3, 4, 2])


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def gradient(loss: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, inputs, allow_unused=True)


def rotation(n: int) -> Tensor:
    return torch.linalg.qr(random(n, n, seed=9))[0]


# ---- KL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_is_the_double_sum(temperature: float) -> None:
    p, q = softmax(S.numpy() / temperature), softmax(T.numpy() / temperature)
    total = sum(q[b, k] * (math.log(q[b, k]) - math.log(p[b, k])) for b in range(B) for k in range(K))
    assert kl(S, T, temperature).item() == pytest.approx(temperature**2 * total / B, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_kl_of_maps_is_the_mean_over_their_pixels(temperature: float) -> None:
    s, t = (torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    pixels = [kl(s[:, :, i, j], t[:, :, i, j], temperature) for i in range(3) for j in range(4)]
    torch.testing.assert_close(kl(s, t, temperature), torch.stack(pixels).mean())


def test_kl_does_not_depend_on_shifts_and_vanishes_at_equality() -> None:
    assert kl(S + 7, T - 3, 4.0).item() == pytest.approx(kl(S, T, 4.0).item(), rel=1e-12)
    assert kl(S, S + 1, 4.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [300.0, 3000.0])
def test_gradient_of_kl_keeps_its_scale_when_the_temperature_rises(temperature: float) -> None:
    """Hinton et al., section 2.1: at high T the gradient is that of matching centred logits, (s - t) / K, free of T."""
    s = S.clone().requires_grad_()
    (found,) = gradient(kl(s, T, temperature), s)
    limit = ((S - S.mean(1, keepdim=True)) - (T - T.mean(1, keepdim=True))) / (K * B)
    assert found is not None
    assert torch.allclose(found, limit, atol=10 / temperature * limit.abs().max().item())


def test_the_larger_map_is_pooled() -> None:
    big, small = random(2, 3, 4, 4), random(2, 3, 2, 2, seed=3)
    pooled = torch.stack(
        [big[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for i in range(2) for j in range(2)]
    )
    pooled = pooled.permute(1, 2, 0).view(2, 3, 2, 2)
    for a, b in (to_smaller(big, small), to_smaller(small, big)[::-1], to_smaller(small, small)):
        assert torch.equal(b, small)
        assert a.shape == small.shape
    assert torch.allclose(to_smaller(big, small)[0], pooled)
    assert torch.allclose(to_smaller(small, big)[1], pooled)


# ---- logits -------------------------------------------------------------------------------------------------------


def test_dkd_terms_are_the_papers_sums() -> None:
    temperature = 3.0
    p, q = softmax(S.numpy() / temperature), softmax(T.numpy() / temperature)
    tckd = nckd = 0.0
    for b, y in enumerate(Y.tolist()):
        for own, taught in ((p[b, y], q[b, y]), (1 - p[b, y], 1 - q[b, y])):
            tckd += taught * math.log(taught / own)
        for k in set(range(K)) - {y}:
            own, taught = p[b, k] / (1 - p[b, y]), q[b, k] / (1 - q[b, y])
            nckd += taught * math.log(taught / own)
    found = dkd_terms(S, T, Y, temperature)
    assert found[0].item() == pytest.approx(temperature**2 * tckd / B, rel=1e-12)
    assert found[1].item() == pytest.approx(temperature**2 * nckd / B, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_contains_kd_sample_by_sample(temperature: float) -> None:
    """Equation 6 of the paper: KD = TCKD + (1 - p_t(y)) NCKD."""
    for b in range(B):
        s, t, y = S[b : b + 1], T[b : b + 1], Y[b : b + 1]
        beta = 1 - (t / temperature).softmax(1)[0, y].item()
        assert dkd_loss(s, t, y, 1.0, beta, temperature).item() == pytest.approx(kl(s, t, temperature).item(), rel=1e-9)


def test_dkd_stays_finite_with_a_certain_teacher() -> None:
    teacher = 200.0 * F.one_hot(Y, K).float()
    student = S.float().requires_grad_()
    loss = dkd_loss(student, teacher, Y, temperature=1.0)
    assert torch.isfinite(loss)
    (found,) = gradient(loss, student)
    assert found is not None
    assert torch.isfinite(found).all()


def test_nckd_ignores_the_target_class() -> None:
    s = S.clone().requires_grad_()
    (found,) = gradient(dkd_terms(s, T, Y, 4.0)[1], s)
    assert found is not None
    assert torch.equal(found[torch.arange(B), Y], torch.zeros(B, dtype=torch.float64))
    assert found.abs().sum() > 0


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3])
def test_label_smoothing_is_pytorchs(epsilon: float) -> None:
    expected = F.cross_entropy(S, Y, label_smoothing=epsilon).item()
    assert label_smoothing_loss(S, Y, epsilon).item() == pytest.approx(expected, rel=1e-12)
    # mass epsilon on the wrong classes alone is the same as epsilon K / (K - 1) on all
    expected = F.cross_entropy(S, Y, label_smoothing=epsilon * K / (K - 1)).item()
    assert label_smoothing_loss(S, Y, epsilon, "wrong_classes").item() == pytest.approx(expected, rel=1e-12)


def test_wrong_classes_share_epsilon() -> None:
    log_p = np.log(softmax(S.numpy()))
    total = 0.0
    for b, y in enumerate(Y.tolist()):
        total -= sum((0.8 if k == y else 0.2 / (K - 1)) * log_p[b, k] for k in range(K))
    assert label_smoothing_loss(S, Y, 0.2, "wrong_classes").item() == pytest.approx(total / B, rel=1e-12)


def test_logits_mse_has_the_papers_and_the_zoos_reduction() -> None:
    squares = ((S - T).numpy() ** 2).sum()
    assert logits_mse_loss(S, T).item() == pytest.approx(squares / (2 * B), rel=1e-12)
    assert logits_mse_loss(S, T, "mean").item() == pytest.approx(squares / (B * K), rel=1e-12)


def huber(u: float) -> float:
    return u * u / 2 if abs(u) < 1 else abs(u) - 0.5


def test_rkd_is_the_papers_sums() -> None:
    s, t = random(4, 3, seed=1).numpy(), random(4, 6, seed=2).numpy()
    t[0] += 9  # an outlier, so that some differences lie beyond the knee of the Huber loss

    def distances(x: np.ndarray) -> np.ndarray:
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        return d / (d.sum() / (len(x) * (len(x) - 1)))

    def angle(x: np.ndarray, i: int, j: int, k: int) -> float:
        if i in (j, k):
            return 0.0
        a, b = x[j] - x[i], x[k] - x[i]
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    pairs = [huber(u) for u in (distances(s) - distances(t)).ravel()]
    triplets = [huber(angle(s, *ijk) - angle(t, *ijk)) for ijk in itertools.product(range(4), repeat=3)]
    assert max(pairs) > 0.5
    assert max(triplets) > 0.5
    found = rkd_terms(torch.from_numpy(s), torch.from_numpy(t))
    assert found[0].item() == pytest.approx(np.mean(pairs), rel=1e-9)
    assert found[1].item() == pytest.approx(np.mean(triplets), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 3.7])
def test_rkd_sees_shape_alone(scale: float) -> None:
    s, t = random(B, 4, seed=1), random(B, 7, seed=2)
    before = rkd_terms(s, t)
    moved = scale * (s @ rotation(4) + random(1, 4, seed=5))
    for a, b in zip(rkd_terms(moved, t), before, strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-9)
    for a in rkd_terms(moved, s):
        assert a.item() == pytest.approx(0, abs=1e-12)


def test_rkd_has_a_gradient_where_embeddings_coincide() -> None:
    s = random(B, 4, seed=1)
    s[1] = s[0]
    s.requires_grad_()
    for loss in rkd_terms(s, random(B, 7, seed=2)):
        (found,) = gradient(loss, s)
        assert found is not None
        assert found.isfinite().all()


# ---- features -----------------------------------------------------------------------------------------------------


def test_at_is_the_distance_of_normalised_energy_maps() -> None:
    s, t = random(2, 3, 4, 4, seed=1), random(2, 5, 4, 4, seed=2)
    total = 0.0
    for b in range(2):
        maps = [(x[b].numpy() ** 2).sum(0).ravel() for x in (s, t)]
        maps = [m / math.sqrt((m**2).sum()) for m in maps]
        total += ((maps[0] - maps[1]) ** 2).sum()
    assert at_loss(s, t).item() == pytest.approx(total / (2 * 16), rel=1e-12)


def test_at_ignores_scale_and_order_of_channels() -> None:
    s, t = random(3, 4, 4, 4, seed=1), random(3, 6, 4, 4, seed=2)
    scale = torch.tensor([0.5, 2.0, 10.0]).view(3, 1, 1, 1)
    assert at_loss(scale * s[:, [2, 0, 3, 1]], t).item() == pytest.approx(at_loss(s, t).item(), rel=1e-9)
    assert at_loss(s * scale, s).item() == pytest.approx(0, abs=1e-20)
    assert at_loss(s, t) > 0


def test_sp_is_the_distance_of_row_normalised_grams() -> None:
    s, t = random(4, 3, 2, 2, seed=1), random(4, 5, 4, 4, seed=2)

    def gram(x: Tensor) -> np.ndarray:
        q = x.numpy().reshape(len(x), -1)
        g = np.array([[a @ b for b in q] for a in q])
        return np.array([row / math.sqrt((row**2).sum()) for row in g])

    expected = ((gram(s) - gram(t)) ** 2).sum() / 4**2
    assert sp_loss(s, t).item() == pytest.approx(expected, rel=1e-12)


def test_sp_sees_similarities_alone() -> None:
    s = random(B, 8, seed=1)
    assert sp_loss(2 * s @ rotation(8), s).item() == pytest.approx(0, abs=1e-20)
    assert sp_loss(s, random(B, 8, seed=2)) > 1e-3


def test_pkt_is_the_divergence_of_cosine_affinities() -> None:
    s, t = random(4, 3, seed=1).numpy(), random(4, 6, seed=2).numpy()

    def affinity(x: np.ndarray) -> np.ndarray:
        k = np.array([[(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) + 1) / 2 for b in x] for a in x])
        return k / k.sum(1, keepdims=True)

    p_s, p_t = affinity(s), affinity(t)
    expected = (p_t * np.log(p_t / p_s)).sum() / 16
    # the epsilons of 1e-7 are left out here
    assert pkt_loss(torch.from_numpy(s), torch.from_numpy(t)).item() == pytest.approx(expected, rel=1e-4)


def test_pkt_sees_directions_alone() -> None:
    s = random(B, 8, seed=1)
    lengths = torch.linspace(0.5, 5, B, dtype=torch.float64)[:, None]
    assert pkt_loss(lengths * s @ rotation(8), s).item() == pytest.approx(0, abs=1e-9)
    assert pkt_loss(s, random(B, 8, seed=2)) > 1e-4


def test_vid_is_a_gaussian_likelihood() -> None:
    mean, t, rho = random(2, 3, 4, 4, seed=1), random(2, 3, 4, 4, seed=2), random(3, seed=3)
    std = torch.tensor([math.sqrt(math.log(1 + math.exp(r)) + 1e-5) for r in rho]).view(1, 3, 1, 1).double()
    log_q = torch.distributions.Normal(mean, std).log_prob(t)
    assert vid_loss(mean, t, rho).item() == pytest.approx(
        (-log_q.mean() - 0.5 * math.log(2 * math.pi)).item(), rel=1e-6
    )


def test_vid_starts_at_the_variance_asked_for() -> None:
    layer = VariationalLayer(3, 4, variance=5.0)
    for p in layer.mean.parameters():
        torch.nn.init.zeros_(p)
    zero, one = torch.zeros(2, 3, 2, 2), torch.ones(2, 4, 2, 2)
    assert layer(zero, one).item() == pytest.approx(0.5 * (1 / 5 + math.log(5)), rel=1e-5)


def test_hint_is_the_papers_up_to_its_reduction() -> None:
    r, u = random(2, 3, 4, 4, seed=1), random(2, 3, 4, 4, seed=2)
    paper = 0.5 * ((r - u).numpy() ** 2).sum()
    assert hint_loss(r, u).item() == pytest.approx(2 * paper / r.numel(), rel=1e-12)


@pytest.mark.parametrize(("guided", "hint"), [((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((3, 6, 6), (5, 6, 6))])
def test_regressor_reaches_the_hints_shape(guided: tuple[int, ...], hint: tuple[int, ...]) -> None:
    assert Regressor(guided, hint)(torch.zeros(2, *guided)).shape == (2, *hint)


def test_regressor_of_odd_sizes() -> None:
    regressor = Regressor((3, 7, 7), (5, 5, 5))
    assert regressor[0].weight.shape == (5, 3, 3, 3)
    assert regressor(torch.zeros(2, 3, 7, 7)).shape == (2, 5, 5, 5)
    with pytest.raises(DoesNotFit, match="choose another hint"):
        Regressor((3, 4, 4), (5, 7, 7))


# ---- peers and exits ----------------------------------------------------------------------------------------------


def test_mutual_loss_is_the_mean_over_the_other_peers() -> None:
    others = [random(B, K, seed=seed).requires_grad_() for seed in (5, 6, 7)]
    own = S.clone().requires_grad_()
    loss = mutual_loss(own, others, 3.0)
    assert loss.item() == pytest.approx(np.mean([kl(S, z, 3.0).item() for z in others]), rel=1e-12)
    assert gradient(loss, *others) == (None, None, None)


def test_exit_kd_is_kl_plus_the_final_exits_entropy() -> None:
    p = softmax(T.numpy() / 3)
    entropy = -(p * np.log(p)).sum(1).mean()
    assert exit_kd_loss(S, T, 3.0).item() == pytest.approx(kl(S, T, 3.0).item() + 9 * entropy, rel=1e-12)
    final = T.clone().requires_grad_()
    assert gradient(exit_kd_loss(S.clone().requires_grad_(), final), final) == (None,)


def test_exit_feature_loss_counts_where_either_is_positive() -> None:
    exit_, final = torch.tensor([[1.0, -1.0, -2.0, 3.0]]), torch.tensor([[2.0, -5.0, 1.0, -1.0]])
    assert exit_feature_loss(exit_, final).item() == 1 + 9 + 16  # (-1, -5) does not count
    final.requires_grad_()
    assert gradient(exit_feature_loss(exit_.requires_grad_(), final), final) == (None,)


# ---- generators ---------------------------------------------------------------------------------------------------


def test_information_entropy_is_lowest_for_balanced_classes() -> None:
    certain = torch.full((4 * K, K), -50.0, dtype=torch.float64)
    balanced = certain.clone()
    balanced[torch.arange(4 * K), torch.arange(4 * K) % K] = 50.0
    one_class = certain.clone()
    one_class[:, 0] = 50.0
    assert information_entropy_loss(balanced).item() == pytest.approx(-math.log10(K), rel=1e-9)
    assert information_entropy_loss(balanced, "ln").item() == pytest.approx(-math.log(K), rel=1e-9)
    assert information_entropy_loss(one_class).item() == pytest.approx(0, abs=1e-9)
    # generated images should be sure of their class each, which the mean over the batch must not hide
    assert one_hot_loss(balanced).item() == pytest.approx(0, abs=1e-9)
    assert one_hot_loss(torch.zeros(3, K)).item() == pytest.approx(math.log(K), rel=1e-6)


def test_activation_loss_is_the_mean_magnitude() -> None:
    assert activation_loss(torch.tensor([[1.0, -2.0], [3.0, 0.0]])).item() == -1.5


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 9, 7)])
def test_generated_images_have_the_datas_shape_and_are_normalised(shape: tuple[int, int, int]) -> None:
    images = Generator(10, shape)(torch.randn(16, 10, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (16, *shape)
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-2


# ---- schedules, ramps, stages -------------------------------------------------------------------------------------


def torch_factors(epochs: int, make: str, **settings: object) -> list[float]:
    """Learning rates of a scheduler of PyTorch, one per epoch, for a base value of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(torch.optim.lr_scheduler, make)(optimizer, **settings)
    factors = []
    for _ in range(epochs):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_schedules_are_pytorchs() -> None:
    def ours(schedule: Schedule, epochs: int) -> list[float]:
        return [schedule.factor(epoch, epochs) for epoch in range(epochs)]

    multistep = torch_factors(240, "MultiStepLR", milestones=[150, 180, 210], gamma=0.1)  # RepDistiller
    assert ours(Schedule(), 240) == pytest.approx(multistep, rel=1e-12)
    for epochs in (1, 7, 100):
        cosine = torch_factors(epochs, "CosineAnnealingLR", T_max=epochs)
        assert ours(Schedule(kind="cosine"), epochs) == pytest.approx(cosine, rel=1e-9)
    assert ours(Schedule(kind="constant"), 5) == [1.0] * 5
    warm = torch_factors(10, "LinearLR", start_factor=1 / 4, total_iters=3)
    assert ours(Schedule(kind="constant", warmup=0.3), 10) == pytest.approx(warm, rel=1e-12)


def test_short_runs_keep_the_shape_of_the_schedule() -> None:
    factors = [Schedule().factor(epoch, 12) for epoch in range(12)]  # milestones at 7.5, 9 and 10.5 of 12
    assert factors == pytest.approx([1] * 8 + [0.1] + [0.01] * 2 + [0.001])


def test_learning_rate_follows_the_architecture() -> None:
    protocol = Protocol(lr_for={"mobilenetv2*": 0.01, "shuffle*": 0.02})
    assert [protocol.lr(name) for name in ("mobilenetv2-0.5", "shufflenetv1", "resnet20")] == [0.01, 0.02, 0.05]


def test_a_ramp_is_mdistillers_warm_up() -> None:
    """mdistiller multiplies by min(epoch / 20, 1), epochs counted from 1, in 240 epochs."""
    ramp = Ramp(0.0, 1.0, 20 / 240)
    assert [ramp.at(epoch, 240) for epoch in range(240)] == pytest.approx([min((e + 1) / 20, 1) for e in range(240)])


def test_a_ramp_is_temporal_ensemblings() -> None:
    """ferretj/temporal-ensembling and Laine's own code: nothing but exp(-5 (1 - e / 80)²), epochs counted from 0."""
    ramp = Ramp(0.0, 30.0, 80 / 300, "gaussian")
    found = [ramp.at(epoch, 300) for epoch in (0, 20, 40, 79, 80, 299)]
    assert found == pytest.approx([0.2021, 1.8018, 8.5951, 29.9766, 30.0, 30.0], rel=1e-3)
    assert Ramp(0.0, 1.0, 0.01, "gaussian").at(1, 3) == 1.0


def test_a_ramp_falls_too_and_ends_at_its_end() -> None:
    assert [Ramp(4.0, 1.0).at(epoch, 3) for epoch in range(3)] == pytest.approx([3, 2, 1])
    assert Ramp(0.0, 1.0, 0.01).at(0, 3) == 1.0  # shorter than an epoch


def test_epochs_are_divided_among_stages() -> None:
    assert allocate([30 / 240, 210 / 240], 240) == [(0, 30), (30, 210)]
    assert allocate([0.125, 0.875], 2) == [(0, 1), (1, 1)]
    assert allocate([0.9, 0.1], 3) == [(0, 2), (2, 1)]
    for epochs in range(3, 40):
        spans = allocate([0.1, 0.6, 0.3], epochs)
        assert [epoch for start, length in spans for epoch in range(start, start + length)] == list(range(epochs))
        assert all(length >= 1 for _, length in spans)
    with pytest.raises(UserError, match="3 stages"):
        allocate([0.1, 0.6, 0.3], 2)


def test_the_pixels_of_maps_are_samples() -> None:
    rng = torch.Generator().manual_seed(3)
    s, t = (torch.randn(2, 5, 3, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for b, y, x in itertools.product(range(2), range(3), range(4)):
        q, p = (t[b, :, y, x] / 2).softmax(0), (s[b, :, y, x] / 2).softmax(0)
        total += 4 * float((q * (q / p).log()).sum())
    assert kl(s, t, 2.0).item() == pytest.approx(total / 24, rel=1e-12)
