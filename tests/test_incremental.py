"""Methods that keep what they knew while classes arrive, and those that play, against their equations by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_families import CLASSES, EACH, INCREMENTAL, MEMORY, World, learn
from test_methods import ENTRIES, PLAIN, PROTOCOL, bind, home, network, watch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.method import Method
from kdbench.taps import Out
from methods.controls.actor_critic import returns
from methods.learning.actor_mimic import mimic_loss
from methods.learning.balanced import Balanced
from methods.learning.eeil import EEIL, binary_loss, heads_loss
from methods.learning.lwm import LwM, attention_loss, grad_cam
from methods.learning.piekd import PIEKD, totals, v_trace
from methods.learning.podnet import LocalSimilarity, PODNet, centroids, nca_rows
from methods.learning.policy_distillation_losses import best_action_loss, score_loss
from methods.learning.rnd import Moments, fixed, novelty, perceptron
from methods.learning.rtf import Feedback, code_loss, decoding_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")
RNG = torch.Generator().manual_seed(0)


def make(name: str) -> Method:
    entry = ENTRIES[name]
    return entry.cls(**entry.settings, protocol=PROTOCOL)


# ---- classes that arrive ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eeil", "eeil_facil", "icarl_cnn", "lwm", "podnet", "podnet_authors"])
def test_what_arrives_is_learnt(name: str) -> None:
    method = make(name)
    turns = watch(method)
    world = learn(method)
    assert {term for turn in turns for term in turn.terms} == set(method.terms)
    assert all(len(turn.terms) == 1 for turn in turns if turn.experience == 0)  # there is no past self
    memory = 0 if name == "lwm" else 2
    assert world.y[method.kept].bincount(minlength=CLASSES).tolist() == [memory] * CLASSES
    scores = method.eval()(world.x)
    assert (scores.argmax(1) >= 4).any()  # of the classes that came last, too


def test_lwf_of_the_three_scenarios_counts_experiences() -> None:
    """In the second of two, with three of six classes old: CE over all six, halved; the second term times 2² / 2."""
    method: Any = make("lwf").__class__(labels="seen", balance="experiences", protocol=PROTOCOL)
    bind(method)
    method._position = next(k for k, entry in enumerate(method._plan) if entry.experience.number == 1)
    s, t, y = torch.randn(5, 6), torch.randn(5, 6), torch.tensor([3, 4, 5, 4, 3])
    batch = Batch(torch.zeros(5, 1, 8, 8), y, torch.arange(5), torch.zeros(5, 3, dtype=torch.long))
    found = method.losses(Out({"logits": s}), Out({"logits": t}), batch)
    soft = (t[:, :3] / 2).softmax(1)
    assert found["ce"].item() == pytest.approx(nn.functional.cross_entropy(s, y).item() / 2, rel=1e-5)
    kd = -(soft * (s[:, :3] / 2).log_softmax(1)).sum(1).mean()
    assert found["kd"].item() == pytest.approx(2 * kd.item(), rel=1e-5)
    method.balance = [0.0, 0.7]
    found = method.losses(Out({"logits": s}), Out({"logits": t}), batch)
    assert found["kd"].item() == pytest.approx(0.7 * kd.item(), rel=1e-5)
    with pytest.raises(DoesNotFit, match="balance has 1 numbers for 2 experiences"):
        bind(method.__class__(balance=[1.0], protocol=PROTOCOL))


def in_experience(method: Method, number: int, spec: DataSpec = INCREMENTAL) -> Any:
    """The method, bound, in the first stage of an experience."""
    method.protocol = method.protocol.model_copy(update={"epochs": 2 * len(spec.experiences)})
    bind(method, spec=spec)
    method._position = next(k for k, entry in enumerate(method._plan) if entry.experience.number == number)
    return method


def said(logits: Tensor, embed: Tensor | None = None) -> Out:
    return Out({"logits": logits} | ({} if embed is None else {"embed": embed}))


def of_classes(y: Sequence[int]) -> Batch:
    n = len(y)
    return Batch(torch.zeros(n, 1, 8, 8), torch.tensor(y), torch.arange(n), torch.zeros(n, 3, dtype=torch.long))


def test_lwf_over_all_seen_has_the_past_self_give_new_classes_nothing() -> None:
    """In the second experience of three: targets over classes 0 and 1 alone, the student's softmax over 0 to 3."""
    method = in_experience(make("lwf").__class__(heads="seen", protocol=PROTOCOL), 1)
    s, t = torch.randn(5, 6), torch.randn(5, 6)
    found = method.losses(said(s), said(t), of_classes([2, 3, 2, 2, 3]))["kd"]
    expected = -((t[:, :2] / 2).softmax(1) * (s[:, :4] / 2).log_softmax(1)[:, :2]).sum(1).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


# ---- domains that arrive ---------------------------------------------------------------------------------------------

DOMAINS = replace(
    INCREMENTAL, task="domain-incremental", experiences=(CLASSES,) * 3, arrivals={"test": (2, 2, 2)}, memory=3 * CLASSES
)


@pytest.mark.parametrize("heads", ["one", "seen"])
def test_lwf_distils_all_classes_where_they_come_again(heads: str) -> None:
    method = in_experience(make("lwf").__class__(heads=heads, protocol=PROTOCOL), 1, DOMAINS)
    s, t = torch.randn(4, 6), torch.randn(4, 6)
    found = method.losses(said(s), said(t), of_classes([0, 5, 3, 1]))
    assert found["ce"].item() == pytest.approx(nn.functional.cross_entropy(s, torch.tensor([0, 5, 3, 1])).item())
    expected = -((t / 2).softmax(1) * (s / 2).log_softmax(1)).sum(1).mean()
    assert found["kd"].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(DoesNotFit, match="all domains have one head, not a sum of them"):
        bind(make("lwf").__class__(heads="sum", protocol=PROTOCOL), spec=DOMAINS)


def test_replay_divides_its_memory_among_the_classes_of_each_domain() -> None:
    method: Any = make("replay")
    world = World()
    in_experience(method, 0, DOMAINS).samples = world
    world.y = torch.arange(len(world.y)) % CLASSES  # the same classes in each domain
    world.positions = lambda experience: torch.arange(16 * experience, 16 * experience + 16)  # type: ignore[method-assign]
    for number, each in ((0, 3), (1, 1), (2, 1)):
        method._position = next(k for k, entry in enumerate(method._plan) if entry.experience.number == number)
        method.keep_some()
        for domain in range(number + 1):
            of_domain = method.kept[method.kept // 16 == domain]
            assert (world.y[of_domain].bincount(minlength=CLASSES) <= each).all()
            assert len(of_domain) >= CLASSES * each - 2  # 16 samples hold two or three of each


def test_lfl_keeps_features_near_and_the_classifier_still() -> None:
    method: Any = make("lfl")
    in_experience(method, 0, DOMAINS)
    head = {id(parameter) for parameter in method.student.head.parameters()}
    (player,) = method.players()
    assert {id(parameter) for parameter in player.parameters} == {id(each) for each in method.student.parameters()}
    method._position = next(k for k, entry in enumerate(method._plan) if entry.experience.number == 1)
    (player,) = method.players()
    assert {id(each) for each in method.student.parameters()} - {id(each) for each in player.parameters} == head
    f, g = torch.randn(4, 3), torch.randn(4, 3)
    found = method.losses(said(torch.randn(4, 6), f), said(torch.randn(4, 6), g), of_classes([0, 5, 3, 1]))["feature"]
    assert found.item() == pytest.approx(sum(float((a - b).square().sum()) for a, b in zip(f, g, strict=True)) / 8)


# ---- what is replayed is made up -------------------------------------------------------------------------------------


def rtf(number: int, spec: DataSpec = INCREMENTAL, **settings: Any) -> Any:
    return in_experience(ENTRIES["rtf"].cls(latent=3, hidden=(5,), protocol=PROTOCOL, **settings), number, spec)


@pytest.mark.parametrize("over", ["sum", "mean"])
def test_replayed_images_are_distilled_over_all_seen(over: str) -> None:
    s, t = torch.randn(5, 6), torch.randn(5, 6)
    expected = -4 * ((t[:, :2] / 2).softmax(1) * (s[:, :4] / 2).log_softmax(1)[:, :2]).sum(1).mean()
    found = rtf(1, over=over).replay_loss(s, t)
    assert found.item() == pytest.approx(expected.item() / (4 if over == "mean" else 1), rel=1e-5)


def test_each_experience_has_its_share_of_what_is_replayed() -> None:
    """In the third of three: of four images two for classes 0 and 1, two for 2 and 3."""
    s, t = torch.randn(4, 6), torch.randn(4, 6)
    parts = [(s[:2, :2] / 2, t[:2, :2] / 2), (s[2:, 2:4] / 2, t[2:, 2:4] / 2)]
    expected = [-4 * (q.softmax(1) * z.log_softmax(1)).sum(1).mean() for z, q in parts]
    assert rtf(2, heads="mean").replay_loss(s, t).item() == pytest.approx(sum(expected).item() / 2, rel=1e-5)
    with pytest.raises(DoesNotFit, match="all domains have one head, not a mean of them"):
        rtf(1, DOMAINS, heads="mean")


def test_hard_targets_are_the_past_selfs_class() -> None:
    s, t = torch.randn(4, 6), torch.randn(4, 6)
    expected = nn.functional.cross_entropy(s, t.argmax(1))
    assert rtf(1, DOMAINS, targets="hard").replay_loss(s, t).item() == pytest.approx(expected.item())


def test_feedback_is_a_variational_autoencoder() -> None:
    """Its two losses times the pixels are the negative ELBO, by torch.distributions."""
    method = rtf(0)
    features, pixels = torch.randn(7, 16), torch.rand(7, 64)
    noise = torch.randn(7, 3)
    decoded, mean, log_variance = Feedback(16, 3, (5,), 64)(features, noise)
    code = Normal(mean, (0.5 * log_variance).exp())
    kl = kl_divergence(code, Normal(0.0, 1.0)).sum(1).mean()
    likelihood = -nn.functional.binary_cross_entropy(decoded.sigmoid(), pixels, reduction="none").sum(1).mean()
    found = decoding_loss(decoded, pixels) + code_loss(mean, log_variance, 64)
    assert 64 * found.item() == pytest.approx((kl - likelihood).item(), rel=1e-5)
    x = method.shown(torch.rand(5, 1, 8, 8))  # as networks see it
    inside = (x * method.shown.std + method.shown.mean).flatten(1)
    assert inside.min() >= -1e-6
    assert inside.max() <= 1 + 1e-6


def test_replay_begins_with_the_second_experience() -> None:
    method: Any = ENTRIES["rtf"].cls(protocol=PROTOCOL)
    turns = watch(method)
    world = learn(method)
    assert {term for turn in turns for term in turn.terms} == set(method.terms)
    assert all(set(turn.terms) == set(method.terms) - {"replay"} for turn in turns if turn.experience == 0)
    made = method.replayed(4, world.x)
    assert made.shape == (4, *world.x.shape[1:])
    pixels = made * method.shown.std + method.shown.mean
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.parametrize(("heads", "share"), [("sum", 1.0), ("mean", 0.5)])
def test_lwf_may_distil_the_classes_of_each_experience_by_themselves(heads: str, share: float) -> None:
    """In the third experience of three, two classes each: a softmax over classes 0 and 1, and one over 2 and 3."""
    method = in_experience(make("lwf").__class__(heads=heads, protocol=PROTOCOL), 2)
    s, t = torch.randn(5, 6), torch.randn(5, 6)
    found = method.losses(said(s), said(t), of_classes([4, 5, 4, 4, 5]))["kd"]
    pairs = [(s[:, part] / 2, t[:, part] / 2) for part in (slice(0, 2), slice(2, 4))]
    apart = [-(q.softmax(1) * z.log_softmax(1)).sum(1).mean() for z, q in pairs]
    assert found.item() == pytest.approx(share * sum(apart).item(), rel=1e-5)


def ends_of(method: EEIL, experience: int, stage: str) -> tuple[int, ...]:
    """Which heads are distilled there."""
    method._position = next(
        k for k, entry in enumerate(method._plan) if (entry.experience.number, entry.stage.name) == (experience, stage)
    )
    return method.heads()


@pytest.mark.parametrize(
    ("form", "train", "balance"),
    [("paper", [(), (2,), (2, 4)], [(2, 4), (2, 4, 6)]), ("facil", [(), (), (2,)], [(2,), (2, 4)])],
)
def test_heads_of_old_classes_are_distilled_and_in_the_end_those_of_new_ones(
    form: Any, train: list[tuple[int, ...]], balance: list[tuple[int, ...]]
) -> None:
    method = bind(EEIL(form=form, protocol=PROTOCOL.model_copy(update={"epochs": 6})), spec=INCREMENTAL)
    assert isinstance(method, EEIL)
    assert [ends_of(method, k, "train") for k in range(3)] == train
    assert [ends_of(method, k, "balance") for k in (1, 2)] == balance


def test_a_heads_loss_stays_within_the_head() -> None:
    s, t = torch.randn(5, 7, generator=RNG), torch.randn(5, 6, generator=RNG)
    expected, binary = torch.zeros(()), torch.zeros(())
    for a, b in ((0, 2), (2, 6)):
        p, q = (s[:, a:b] / 2).softmax(1), (t[:, a:b] / 2).softmax(1)
        expected -= (q * p.log()).sum(1).mean()
        binary -= (q * p.log() + (1 - q) * (1 - p).log()).mean()
    assert torch.allclose(heads_loss(s, t, (2, 6)), expected)
    assert torch.allclose(heads_loss(s, t, (2, 6), form="facil"), binary)
    assert binary_loss(s[:, :1], t[:, :1]) == 0  # one class alone is certain


def test_proxies_are_near_by_distance_in_the_authors_code() -> None:
    head, h = LocalSimilarity(5, 4, 3, "distance"), torch.randn(6, 5, generator=RNG)
    proxies = nn.functional.normalize(head.weight.flatten(0, 1), dim=1)
    far = torch.cdist(nn.functional.normalize(h, dim=1), proxies).square().unflatten(1, (4, 3))
    expected = -(torch.softmax(-far, 2) * far).sum(2)
    assert torch.allclose(head(h), expected, atol=1e-5)
    assert ENTRIES["podnet_authors"].settings["similarity"] == "distance"


@pytest.mark.parametrize("name", ["eeil", "podnet"])
def test_the_second_stage_shows_as_many_samples_of_each_class(name: str) -> None:
    method = make(name)
    assert isinstance(method, Balanced)
    chosen: list[Tensor] = []
    original = method.even_out

    def even_out() -> None:
        original()
        chosen.append(method.balanced.nonzero()[:, 0])

    method.even_out = even_out  # type: ignore[method-assign]
    world = learn(method)
    for index, old in zip(chosen, (2, 4), strict=True):
        each = min(MEMORY // old, EACH)
        assert world.y[index].bincount(minlength=CLASSES).tolist() == [each] * (old + 2) + [0] * (4 - old)
    with pytest.raises(DoesNotFit, match="memory for 5"):
        bind(make(name), spec=replace(INCREMENTAL, memory=5))


def test_the_past_self_of_the_balanced_stage_is_the_one_before_it() -> None:
    for form, name in (("paper", "balance"), ("facil", "train")):
        method = EEIL(form=form, protocol=PROTOCOL)  # type: ignore[arg-type]
        told: list[tuple[str, Tensor]] = []

        def begin(stage: str, original: Any, method: EEIL = method, told: list[tuple[str, Tensor]] = told) -> Any:
            def beginning() -> None:
                original()
                told.append((stage, next(method.student.parameters()).detach().clone()))

            return beginning

        method.welcome, method.even_out = begin("train", method.welcome), begin("balance", method.even_out)  # type: ignore[method-assign]
        learn(method)
        last = [weight for stage, weight in told if stage == name][-1]
        assert torch.equal(next(method.past.parameters()), last)


def test_grad_cam_by_hand() -> None:
    """Of average pooling and a linear layer α_c is the layer's weight, divided by the number of pixels."""
    maps = torch.rand(3, 4, 2, 2, generator=RNG).requires_grad_()
    head = nn.Linear(4, 5)
    nn.init.uniform_(head.weight, -0.2, 0.8, generator=RNG)  # else all maps may be below 0
    classes = torch.tensor([1, 4, 1])
    found = grad_cam(head(maps.mean((2, 3))), maps, classes)
    expected = torch.stack([(head.weight[c][:, None, None] / 4 * a).sum(0).relu() for c, a in zip(classes, maps)])  # noqa: B905
    assert torch.allclose(found, expected)
    loss = attention_loss(found, torch.ones(3, 2, 2))
    rows = [(torch.full((4,), 0.5) - q.flatten() / max(float(q.norm()), 1e-12)).abs().sum() for q in expected]
    assert torch.allclose(loss, torch.stack(rows).mean())
    (gradient,) = torch.autograd.grad(loss, head.weight)
    assert gradient.abs().sum() > 0  # attention is learnt


def test_attention_is_of_the_old_class_that_the_past_self_prefers() -> None:
    method = bind(LwM(protocol=PROTOCOL.model_copy(update={"epochs": 3})), spec=INCREMENTAL)
    assert isinstance(method, LwM)
    method._position = 1
    batch = World().batches(1)[0]
    s = method.student_out(batch.x)
    t = method.teach(batch)
    assert t is not None
    top = method.past.net(batch.x)[:, :2].argmax(1)
    now, before = (grad_cam(out.logits, out[method.place], top) for out in (s, t))
    assert torch.allclose(method.losses(s, t, batch)["attention"], attention_loss(now, before))
    assert not batch.x.requires_grad
    with pytest.raises(DoesNotFit, match="no map"):
        bind(LwM(tap="embed"), spec=INCREMENTAL)


def test_nca_leaves_the_true_class_out_of_the_denominator() -> None:
    similarity, y = torch.rand(4, 5, generator=RNG) * 2 - 1, torch.tensor([0, 3, 3, 1])
    eta = torch.tensor(1.7, requires_grad=True)
    expected = []
    for row, label in zip(similarity, y.tolist(), strict=True):
        rest = sum((1.7 * row[c]).exp() for c in range(5) if c != label)
        expected.append(-((1.7 * (row[label] - 0.6)).exp() / rest).log())
    rows = nca_rows(similarity, y, eta, margin=0.6)
    assert torch.allclose(rows, torch.stack(expected), atol=1e-6)
    (without,) = torch.autograd.grad(nca_rows(similarity, y, eta, margin=0.0).sum(), eta)
    (gradient,) = torch.autograd.grad(rows.sum(), eta)
    assert torch.equal(gradient, without)  # the margin does not move η


def test_new_proxies_are_centroids_and_old_ones_rest() -> None:
    features = torch.cat([torch.full((4, 3), -5.0), torch.full((3, 3), 5.0)]) + torch.randn(7, 3, generator=RNG) / 10
    found = centroids(features, 2, torch.Generator().manual_seed(1))
    assert torch.allclose(found[found[:, 0].argsort()], torch.stack([features[:4].mean(0), features[4:].mean(0)]))
    assert centroids(features[:2], 5, RNG).shape == (5, 3)

    method = PODNet(proxies=3, protocol=PLAIN, balance_share=0.5, balance_lr=0.1)
    seen: list[Tensor] = []
    original = method.even_out

    def even_out() -> None:
        original()
        seen.append(method.net.head.weight.detach().clone())

    method.even_out = even_out  # type: ignore[method-assign]
    began: list[Tensor] = []
    welcome = method.welcome

    def welcoming() -> None:
        welcome()
        began.append(method.net.head.weight.detach().clone())

    method.welcome = welcoming  # type: ignore[method-assign]
    learn(method)
    for before, after, old in zip(began[1:], seen, (2, 4), strict=True):
        assert torch.equal(before[:old], after[:old])
        assert not torch.equal(before[old : old + 2], after[old : old + 2])
    assert not torch.equal(seen[-1][:4], method.net.head.weight[:4])  # all learn in the second stage
    with pytest.raises(DoesNotFit, match="two or more"):
        bind(PODNet(), spec=replace(INCREMENTAL, experiences=(1, 4, 6)))


# ---- policies --------------------------------------------------------------------------------------------------------


def test_losses_of_policies_by_hand() -> None:
    s, t = torch.randn(4, 3, generator=RNG), torch.randn(4, 3, generator=RNG)
    p = s.softmax(1)
    assert torch.allclose(best_action_loss(s, t), -p[range(4), t.argmax(1)].log().mean())
    assert torch.allclose(score_loss(s, t), ((s - t) ** 2).sum() / 4)
    q = (t / 0.5).softmax(1)
    assert torch.allclose(mimic_loss(s, t, 0.5), -(q * p.log()).sum() / 4)
    assert torch.allclose(novelty(s, t), ((s - t) ** 2).sum(1) / 3)


def test_running_moments_are_those_of_all_rows() -> None:
    moments, parts = Moments(2), [torch.randn(n, 2, generator=RNG) * 3 + 1 for n in (5, 1, 40)]
    for part in parts:
        moments.see(part)
    rows = torch.cat(parts)
    assert torch.allclose(moments.mean, rows.mean(0), atol=1e-4)
    assert torch.allclose(moments.var, rows.var(0, correction=0), rtol=1e-3)


def test_the_random_network_is_never_trained() -> None:
    net = perceptron((3, 4, 2), nn.Tanh)
    x = torch.randn(5, 3, generator=RNG)
    before = net(x)
    assert torch.equal(fixed(net)(x), before)
    assert not list(net.parameters())
    assert len(net.state_dict()) == 4


def test_v_trace_of_ones_own_steps_is_a2c_and_of_others_the_sum_by_hand() -> None:
    reward, value, following = (torch.randn(5, 3, generator=RNG) for _ in range(3))
    ended = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]]).bool()
    terminated = ended & torch.tensor([[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
    following[:-1] = torch.where(ended[:-1], following[:-1], value[1:])  # one state, one value
    worth, advantage = v_trace(reward, value, following, terminated, ended, torch.ones(5, 3), 0.9)
    expected = returns(reward, following, terminated, ended, 0.9)
    assert torch.allclose(worth, expected, atol=1e-5)
    assert torch.allclose(advantage, expected - value, atol=1e-5)

    ratio = torch.rand(5, 3, generator=RNG)
    worth, _ = v_trace(reward, value, following, terminated, ended, ratio, 0.9)
    for env in range(3):
        for t in range(5):
            total, factor = value[t, env], torch.tensor(1.0)
            for k in range(t, 5):  # equation 1
                ahead = following[k, env] * (not terminated[k, env])
                factor = factor * ratio[k, env]
                total = total + factor * (reward[k, env] + 0.9 * ahead - value[k, env])
                factor = factor * 0.9
                if ended[k, env]:
                    break
            assert worth[t, env].item() == pytest.approx(total.item(), rel=1e-4, abs=1e-5)


def test_totals_begin_anew_with_each_episode() -> None:
    reward = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    ended = torch.tensor([[False, True], [True, False], [False, False]])
    found, left = totals(reward, ended, torch.tensor([10.0, 20.0]))
    assert found.tolist() == [[11.0, 22.0], [14.0, 4.0], [5.0, 10.0]]
    assert left.tolist() == [5.0, 10.0]


def piekd() -> PIEKD:
    world = home("piekd")
    method = PIEKD(interval=16, passes=1, protocol=PROTOCOL)
    method.bind(network(world.student, 0, world=world), None, world.spec)
    return method


def test_the_elected_has_the_best_mean_of_the_episodes_that_are_known() -> None:
    method = piekd()
    assert method.elected() == 0
    method.known[1, -1:] = method.known[2, -2:] = True
    method.latest[1, -1], method.latest[2, -2:] = -7.0, torch.tensor([-9.0, -3.0])
    assert method.elected() == 2
    world = home("piekd")
    with pytest.raises(DoesNotFit, match="deals 2 environments out to 3 members"):
        PIEKD(envs=2).bind(network(world.student, 0, world=world), None, world.spec)


def test_all_but_the_elected_are_moved_by_a_distillation() -> None:
    method = piekd()
    method.known[1, -1], method.latest[1, -1] = True, 5.0
    method.states.copy_(torch.randn(16, 4, generator=RNG))
    members = [list(part.parameters()) for part in method.parts()]
    before = [[value.detach().clone() for value in member] for member in members]
    for player, terms in method.distilled():
        k = int(player.removeprefix("pupil"))
        assert (terms["kd"] + terms["value_kd"] > 0) == (k != 1)
        with torch.no_grad():
            for value in members[k]:  # as an optimiser might
                value.add_(1.0)
    kept = [all(map(torch.equal, member, old)) for member, old in zip(members, before, strict=True)]
    assert kept == [False, True, False]
