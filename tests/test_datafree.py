"""Without data (6.1) and from few samples (6.2): who plays on what, what is recorded, and which channels stay."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_methods import PROTOCOL, bind, fit, watch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from worlds import BATCH, CHAIN, CLASSES, Data, batches, network, teachers

from kdbench.method import Method
from methods.data_free.cmi import CMI, contrastive_loss, decision_adversarial_loss
from methods.data_free.deep_inversion import statistics_loss
from methods.data_free.dfad import DFAD, adversarial_loss, discrepancy
from methods.data_free.dfq import DFQ
from methods.data_free.fast_dfkd import FastDFKD, moments, momentum_loss
from methods.data_free.generators import PixelGenerator, PlainGenerator, UnboundedGenerator
from methods.data_free.kegnet import KegNet, diversity_loss
from methods.data_free.knowledge_within import gaussian_divergence
from methods.data_free.replayed import Replayed, replay_loss, square_root
from methods.data_free.views import shifted_crop, zoomed_crop
from methods.data_free.zskd import without_similarity
from methods.data_free.zskt import ZSKT, belief_loss
from methods.few_sample.cross_distillation import CrossDistillation, cross_distillation_loss, proximal
from methods.few_sample.mismatched import Mismatched
from methods.few_sample.pseudo_examples import PseudoExamples

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the game -------------------------------------------------------------------------------------------------------


def test_the_discrepancy_is_a_mean_of_absolute_differences() -> None:
    s, t = torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([[0.0, 0.5], [2.0, -0.5]])
    assert discrepancy(s, t).item() == pytest.approx((1 + 0.5 + 0 + 2.5) / 4)
    assert adversarial_loss(s, t, "log").item() == pytest.approx(-math.log(2))


def test_the_papers_divergence_is_larger_by_the_number_of_classes() -> None:
    s, t = torch.randn(2, 3, 5, generator=draws(), dtype=torch.float64)
    p, q = (s / 2).softmax(1), (t / 2).softmax(1)
    summed = (q * (q / p).log()).sum(1).mean().item()
    assert belief_loss(s, t, 2.0, "paper").item() == pytest.approx(summed)
    assert belief_loss(s, t, 2.0, "code").item() == pytest.approx(summed / 5)


def order_of(method: Method) -> list[str]:
    turns = watch(method)
    fit(method, batches(1), 1)
    return [turn.player for turn in turns]


def test_who_has_how_many_steps() -> None:
    assert order_of(bind(DFAD(student_steps=3, protocol=PROTOCOL))) == ["student"] * 3 + ["generator"]
    assert order_of(bind(ZSKT(student_steps=3, protocol=PROTOCOL))) == ["generator"] + ["student"] * 3
    assert order_of(bind(DFQ(student_steps=3, protocol=PROTOCOL))) == ["generator"] + ["student"] * 3


def images_of(method: Method) -> list[Tensor]:
    """What the student is shown, in order."""
    seen: list[Tensor] = []
    original = method.student_out
    method.student_out = lambda x, *rest: (seen.append(x.detach()), original(x, *rest))[1]  # type: ignore[method-assign]
    fit(method, batches(1), 1)
    return seen


def test_zskt_stays_with_the_noise_of_the_generators_step_and_dfad_does_not() -> None:
    first, *others = images_of(bind(ZSKT(student_steps=3, protocol=PROTOCOL)))
    assert not torch.equal(first, others[0])  # the generator has learned
    assert all(torch.equal(others[0], each) for each in others)
    shown = images_of(bind(DFAD(student_steps=3, protocol=PROTOCOL)))
    assert len({each.sum().item() for each in shown}) == 4


def test_generators_differ_by_how_they_end() -> None:
    z = 100 * torch.randn(16, 5, generator=draws())
    plain, unbounded, pixels = (kind(5, (3, 8, 8))(z) for kind in (PlainGenerator, UnboundedGenerator, PixelGenerator))
    assert plain.mean((0, 2, 3)).abs().max() < 1e-5
    assert unbounded.shape == (16, 3, 8, 8)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert not any(isinstance(module, nn.Tanh) for module in UnboundedGenerator(5, (3, 8, 8)).modules())


# ---- KegNet ---------------------------------------------------------------------------------------------------------


def test_pairs_far_apart_in_noise_should_be_so_in_images() -> None:
    z, x = torch.tensor([[0.0, 0.0], [2.0, 4.0]]), torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 3.0]])
    # both off the diagonal of four pairs: (4 + 16) / 2 times 6 / 4
    assert diversity_loss(z, x.view(2, 1, 2, 2)).item() == pytest.approx(math.exp(-2 * 10 * 1.5 / 4))


def test_generators_are_trained_first_and_never_after() -> None:
    method = bind(KegNet(generators=2, share=0.5, protocol=PROTOCOL))
    assert isinstance(method, KegNet)
    turns = watch(method)
    fit(method, batches(2), 2)
    assert [turn.player for turn in turns] == ["generator0", "generator1"] * 2 + ["student"] * 2
    again = bind(KegNet(generators=3, share=0.5, protocol=PROTOCOL))
    assert isinstance(again, KegNet)
    made = again.made(7)
    assert made.shape[0] == 7
    torch.testing.assert_close(made.mean((2, 3)), torch.zeros(7, 1), atol=1e-5, rtol=0)


# ---- contrastive inversion ------------------------------------------------------------------------------------------


def test_rows_of_before_have_a_mean_of_their_own() -> None:
    directions = torch.eye(3)
    one = math.log(1 + 2 * math.exp(-1 / 0.5))
    assert contrastive_loss(directions, directions, 3, 0.5).item() == pytest.approx(one)
    assert contrastive_loss(directions, directions, 1, 0.5).item() == pytest.approx(2 * one)


def test_only_images_of_whose_class_both_are_sure_compete() -> None:
    s, t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    p, q = s[0].softmax(0), t[0].softmax(0)
    assert decision_adversarial_loss(s, t).item() == pytest.approx(-float((q * (q / p).log()).sum()) / 2, rel=1e-5)


def test_shifts_move_zeros_in_and_zooms_stay_inside() -> None:
    x = torch.rand(64, 1, 8, 8, generator=draws()) + 1
    found = shifted_crop(x, 2, False, draws())
    padded = nn.functional.pad(x, (2, 2, 2, 2))
    windows = [padded[..., i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    matches = torch.stack([(found - window).abs().amax((1, 2, 3)) < 1e-6 for window in windows])
    assert matches.any(0).all()
    assert matches.any(1).sum() > 15
    turned = shifted_crop(x, 0, True, draws())
    same, mirrored = ((turned - y).abs().amax((1, 2, 3)) < 1e-6 for y in (x, x.flip(3)))
    assert (same ^ mirrored).all()
    assert 10 < same.sum() < 54
    torch.testing.assert_close(zoomed_crop(x, 1.0, False, draws()).shape, x.shape)
    zoomed = zoomed_crop(torch.full_like(x, 3.0), 0.25, True, draws())
    torch.testing.assert_close(zoomed, torch.full_like(x, 3.0))


def test_cmi_remembers_the_features_of_what_it_made() -> None:
    method = bind(CMI(images=12, rounds=2, iterations=3, image_batch=6, noise=5, width=4, protocol=PROTOCOL))
    assert isinstance(method, CMI)
    made: list[int] = []
    original = method.image_loss
    method.image_loss = lambda x, y, n, *rest: (made.append(n), original(x, y, n, *rest))[1]  # type: ignore[method-assign]
    fit(method, batches(2), 2)
    assert made == [0] * 3 + [6] * 3
    assert (method.features.abs().sum((1, 2)) > 0).all()
    assert 0 <= method.images.min() <= method.images.max() <= 1


def test_averages_over_batches_stand_in_for_most_of_a_batch() -> None:
    x = torch.randn(6, 3, 4, 4, generator=draws(), dtype=torch.float64)
    mean, var = torch.randn(3, generator=draws(), dtype=torch.float64), torch.rand(3, generator=draws()).double()
    before = torch.rand(2, 3, generator=draws(), dtype=torch.float64)
    layer = moments(x, mean, var)
    batch_mean, batch_var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    expected = (mean - 0.1 * batch_mean - 0.9 * before[0]).norm() + (var - 0.1 * batch_var - 0.9 * before[1]).norm()
    both = momentum_loss([layer, layer], torch.cat([before, before], 1), 0.9)
    assert both.item() == pytest.approx(2 * expected.item(), rel=1e-5)
    assert momentum_loss([layer], None, 0.9).item() == pytest.approx(statistics_loss(x, mean, var).item(), rel=1e-5)


@pytest.mark.parametrize("meta", ["maml", "reptile"])
def test_a_generator_learns_from_what_its_copies_learned(meta: Any) -> None:
    settings = {"images": 12, "rounds": 2, "iterations": 3, "image_batch": 6, "noise": 5, "warm_up": 2}
    method = bind(FastDFKD(**settings, meta=meta, generator_lr=0.01, protocol=PROTOCOL))
    assert isinstance(method, FastDFKD)
    steps: list[tuple[Tensor, Tensor]] = []
    learn = method.learn
    first = parameters_to_vector(method.generator.parameters()).detach()

    def spy(gradient: Tensor) -> None:
        learn(gradient)
        steps.append((gradient, parameters_to_vector(method.generator.parameters()).detach()))

    method.learn = spy  # type: ignore[method-assign]
    fit(method, batches(2), 2)
    assert len(steps) == method.batches == 2 + 2
    reference = nn.Parameter(first.clone())
    adam = torch.optim.Adam([reference], lr=3 * 0.01, betas=(0.5, 0.999))
    for gradient, after in steps:
        reference.grad = gradient
        adam.step()
        torch.testing.assert_close(after, reference.data)
    assert 0 <= method.images.min() <= method.images.max() <= 1


@pytest.mark.parametrize("cls", [CMI, FastDFKD])
def test_what_a_generator_made_is_moved_before_it_is_distilled_on(cls: Any) -> None:
    method = bind(cls(images=8, rounds=1, image_batch=4, noise=5, flip=False, protocol=PROTOCOL))
    x = torch.rand(1, *method.images.shape[1:], generator=draws())
    method.images[:] = x
    padded = method.pixels(nn.functional.pad(x, (4, 4, 4, 4)))
    size = x.shape[-1]
    views = [padded[..., i : i + size, j : j + size] for i in range(9) for j in range(9)]
    method._position = 0
    drawn = method.drawn(64)
    found = [min((seen - view).abs().max() for view in views) for seen in drawn.unsqueeze(1)]
    assert max(found) < 1e-5
    assert len(torch.unique(drawn, dim=0)) > 20


def test_both_networks_are_still_in_the_step_of_dfqs_generator() -> None:
    method = bind(DFQ(noise=5, student_steps=2, protocol=PROTOCOL))
    assert isinstance(method, DFQ)
    modes: list[bool] = []
    original = method.student_out
    method.student_out = lambda *args: (modes.append(method.student.training), original(*args))[1]  # type: ignore[method-assign]
    fit(method, batches(2), 1)
    assert modes == [False, True, True] * 2


# ---- metadata -------------------------------------------------------------------------------------------------------


def test_the_divergence_of_two_gaussians() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]], dtype=torch.float64).view(2, 1, 1, 2)  # mean 4, variance 5
    kept = torch.tensor([1.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    expected = 0.5 * math.log(5 / 2) - 0.5 * (1 - (2 + 9) / 5)
    assert gaussian_divergence(x, *kept, eps=0).item() == pytest.approx(expected)


def test_all_layers_are_weighed_by_their_size() -> None:
    a, b = torch.ones(2, 4), torch.full((2, 2), 3.0)
    targets = [torch.full((2, 4), -1.0), torch.ones(2, 2)]
    assert replay_loss([a, b], targets, "top_layer").item() == pytest.approx(4.0)
    assert replay_loss([a, b], targets, "all_layers").item() == pytest.approx(1 / 4 + 4 / 2)


def test_the_root_of_a_singular_covariance() -> None:
    a = torch.randn(2, 3, 2, generator=draws(), dtype=torch.float64)
    root = square_root(a @ a.mT)
    torch.testing.assert_close(root @ root.mT, a @ a.mT)


def test_records_are_of_each_class_and_of_nothing_else() -> None:
    method = bind(Replayed(record="all_layers", images=6, iterations=1, image_batch=5, protocol=PROTOCOL))
    assert isinstance(method, Replayed)
    data = batches(2)
    fit(method, data, 2)
    x, y = torch.cat([batch.x for batch in data]), torch.cat([batch.y for batch in data])
    taps = method.teacher.tap(x, ("embed", "stage1"))  # type: ignore[operator]
    for k in range(CLASSES):
        mine = taps["embed"][y == k].double()
        if not len(mine):
            continue
        torch.testing.assert_close(method.get_buffer("embed_mean")[k], mine.mean(0).float(), atol=1e-4, rtol=1e-3)
        covariance = torch.cov(mine.T, correction=0).view(mine.shape[1], mine.shape[1]).float()
        torch.testing.assert_close(method.root[k] @ method.root[k].T, covariance, atol=1e-3, rtol=1e-2)
        below = taps["stage1"][y == k]
        torch.testing.assert_close(method.get_buffer("stage1_mean")[k], below.mean(0), atol=1e-4, rtol=1e-3)


def test_the_control_of_zskd_keeps_how_peaked_soft_labels_are() -> None:
    rows = torch.tensor([[1.0, 0.5, 0.0], [0.3, 1.0, 0.2]])
    assert without_similarity(rows).tolist() == [[0.5] * 3, [0.5] * 3]


# ---- few samples ----------------------------------------------------------------------------------------------------


def test_correction_and_imitation() -> None:
    """A 1x1 convolution of one channel: products."""
    one = lambda value: torch.tensor([[[[value]]]])  # noqa: E731
    s, t, x_s, x_t = one(2.0), one(5.0), one(1.0), one(3.0)
    assert cross_distillation_loss(s, t, x_s, x_t, 0.25, padding=0).item() == pytest.approx(0.25 * 81 + 0.75 * 9)
    plain = cross_distillation_loss(s, t, x_s, x_t, variant="plain", padding=0)
    assert plain.item() == pytest.approx((2 - 15) ** 2)


def test_the_strongest_inputs_stay() -> None:
    weight = torch.tensor([[1.0, 2.0, 0.0], [1.0, 0.0, 3.0]]).view(2, 3, 1, 1)
    assert proximal(weight, 2).flatten().tolist() == [0.0, 1.0, 1.0]


def cross_distilled(student: str, iterations: int) -> CrossDistillation:
    method = CrossDistillation(images=16, iterations=iterations, weights={}, protocol=PROTOCOL)
    method.bind(network(student, world=CHAIN), teachers(method.needs, CHAIN), CHAIN.spec)
    method.samples = Data(batches(2, world=CHAIN), None, CHAIN)
    method.prune()
    method.eval()
    return method


def test_at_full_width_cross_distillation_gives_the_teacher() -> None:
    method = cross_distilled("vgg8", iterations=2)
    (batch,) = batches(1, world=CHAIN)
    torch.testing.assert_close(method.student(batch.x), method.teacher(batch.x), rtol=1e-4, atol=1e-3)


def test_training_a_layer_lowers_what_pruning_costs() -> None:
    """Of the last layer, whose inputs are pruned: by the loss itself, with the channels that stay."""
    method = CrossDistillation(iterations=300, weight_lr=5e-3, protocol=PROTOCOL)
    layer = nn.Conv2d(6, 4, 3, padding=1)
    teacher = layer.weight.detach().clone()
    x_s, x_t = (torch.randn(8, 6, 5, 5, generator=draws(k)) for k in range(2))
    mixed = x_t[:, :3].repeat(1, 2, 1, 1) + 0.1 * x_s  # half of the channels say what the others do
    mask = method.fit(layer, mixed, mixed, left=3)
    assert mask.sum() == 3
    assert (layer.weight * (1 - mask)).abs().max() == 0
    trained, cut = (cross_distillation_loss(w.detach(), teacher, mixed, mixed) for w in (layer.weight, teacher * mask))
    assert trained < 0.5 * cut


def test_mismatched_images_need_no_label_and_have_a_weight_of_their_own() -> None:
    method = bind(Mismatched(temperature=2.0, protocol=PROTOCOL))
    (batch,) = batches(1)
    ((_, terms),) = method.turns(batch)
    other = batch["unlabelled"].x
    s, t = method.student(torch.cat([batch.x, other])), method.teacher(torch.cat([batch.x, other]))
    q, p = (t / 2).log_softmax(1), (s / 2).log_softmax(1)
    each = 4 * (q.exp() * (q - p)).sum(1)
    assert terms["kd"].item() == pytest.approx(each[:BATCH].mean().item(), rel=1e-4)
    assert terms["mismatched"].item() == pytest.approx(each[BATCH:].mean().item(), rel=1e-4)


def test_pseudo_examples_begin_between_two_images_and_move_to_where_the_student_differs() -> None:
    method = bind(PseudoExamples(images=24, rounds=2, iterations=5, image_lr=0.05, image_batch=8, protocol=PROTOCOL))
    assert isinstance(method, PseudoExamples)
    gaps: list[Tensor] = []
    original = method.dream

    def dream() -> None:
        original()
        if method.round:
            for images in (method.images[:12], method.fresh):
                s, t = (net(images).log_softmax(1) for net in (method.student, method.teacher))
                gaps.append((t.exp() * (t - s)).sum(1).mean())

    method.dream = dream  # type: ignore[method-assign]
    method._plan_for(2)
    data = batches(2)
    fit(method, data, 2)
    assert gaps[1] > gaps[0]
    pool = torch.cat([batch.x for batch in data]).flatten(1)
    for image in method.images[:4].flatten(1):  # on a line between two of them
        lines = pool.unsqueeze(1) - pool
        share = ((image - pool) * lines).sum(-1) / lines.square().sum(-1).clamp(min=1e-12)
        apart = (pool + share.unsqueeze(-1) * lines - image).abs().amax(-1)
        assert apart.min() < 1e-4
