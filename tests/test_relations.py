"""Methods that compare images with one another: a memory bank, instance graphs, batch graphs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_methods import BATCH, CLASSES, PLAIN, SPEC, STUDENT, TEACHER, batches, bind, fit, network, state
from torch import Tensor

from kdbench.data.batch import DataSpec
from kdbench.errors import DoesNotFit
from methods.intermediate.crd import CRD, nce_loss
from methods.intermediate.irg import edges, transformation
from methods.intermediate.sp import similarity
from methods.learning.gkd import GKD, adjacency, gkd_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- CRD ----------------------------------------------------------------------------------------------------------


def test_nce_is_logistic_regression_of_true_pairs_against_noise() -> None:
    """The critic of equation 17, written out: o / (o + K / N), which RepDistiller divides by ε = 1e-7 more."""
    scores, log_z, samples = random(4, 6), torch.tensor(2.0, dtype=torch.float64), 50
    o, noise = np.exp(scores.numpy()) / np.exp(2.0), 5 / 50
    expected = -(np.log(o[:, 0] / (o[:, 0] + noise)) + np.log(noise / (o[:, 1:] + noise)).sum(1)).mean()
    assert nce_loss(scores, log_z, samples).item() == pytest.approx(expected, rel=1e-5)


def crd(**settings: object) -> CRD:
    method = bind(CRD(dim=5, negatives=400, protocol=PLAIN, **settings))  # type: ignore[arg-type]
    assert isinstance(method, CRD)
    return method


def test_negatives_are_drawn_evenly_from_images_of_other_classes() -> None:
    method, (batch, _) = crd(), batches(2)
    method.labels.copy_(torch.arange(SPEC.n_train) % CLASSES)
    batch.y = method.labels[batch.index]
    method.labels[[3, 12]] = -1  # not seen yet, but one of them is in this batch
    drawn = torch.cat([method.keys(batch)[:, 1:] for _ in range(50)], dim=1)
    known = method.labels.scatter(0, batch.index, batch.y)
    for y, negatives in zip(batch.y, drawn, strict=True):
        counts = torch.bincount(negatives, minlength=SPEC.n_train)
        others = known != y
        assert not counts[~others].any()
        assert (counts[others] / counts.sum() - 1 / others.sum()).abs().max() < 0.01
    assert torch.equal(method.keys(batch)[:, 0], batch.index)


def test_banks_follow_the_embeddings_before_the_step_and_z_is_that_of_the_first_batch() -> None:
    method, (first, second) = crd(momentum=0.25), batches(2)
    before = state(method)
    s, t = method.student_out(first.x).embed.detach(), method.teacher_out(first.x).embed
    new = [F.normalize(layer(x).detach(), dim=1) for layer, x in ((method.embed_s, s), (method.embed_t, t))]
    fit(method, [first], 1)
    z = method.log_z.clone()
    assert z.isfinite().all()
    for bank, vectors in zip(("bank_s", "bank_t"), new, strict=True):
        expected = before[bank].clone()
        expected[first.index] = F.normalize(0.25 * before[bank][first.index] + 0.75 * vectors, dim=1)
        assert torch.allclose(getattr(method, bank), expected, atol=1e-6)
    assert torch.equal(method.labels[first.index], first.y)
    assert (method.labels[second.index] == -1).all()
    # of random unit-length keys the mean score is about that of exponentials of small numbers: Z is of the order of N
    assert (z - math.log(SPEC.n_train)).abs().max() < 1 / 0.07

    again = crd(momentum=0.25)
    fit(again, [first, second], 1)
    assert torch.equal(again.log_z, z)


def test_against_banks_that_stand_still_the_contrast_is_learned() -> None:
    method = crd(momentum=1.0)
    terms = []
    original = method.losses

    def losses(*args: object) -> dict[str, Tensor]:
        found = original(*args)  # type: ignore[arg-type]
        terms.append(found["crd"].item())
        return found

    method.losses = losses  # type: ignore[method-assign,assignment]
    fit(method, batches(1) * 30, 1)
    assert sum(terms[-5:]) / 5 < 0.9 * terms[0]


def test_a_bank_needs_to_know_how_many_images_there_are() -> None:
    with pytest.raises(DoesNotFit, match="datamodule whose `spec` does"):
        CRD().bind(network(STUDENT, 0), network(TEACHER, 0), DataSpec("custom", SPEC.shape, CLASSES, 0, 0))


# ---- IRG ----------------------------------------------------------------------------------------------------------


def test_edges_are_squared_distances_by_the_largest() -> None:
    x = random(5, 2, 3, 3)
    rows = x.flatten(1).numpy()
    expected = ((rows[:, None] - rows) ** 2).sum(2)
    assert np.allclose(edges(x).numpy(), expected / expected.max(), atol=1e-12)


def test_a_transformation_between_layers_of_other_sizes_pools_maps_and_averages_channels() -> None:
    """A map of half the size and twice the channels, as between the stages of a ResNet."""
    a, b = random(4, 6, 4, 4), random(4, 12, 2, 2, seed=1)
    pooled = F.avg_pool2d(a, 2)
    pairs = (b[:, 0::2] + b[:, 1::2]) / 2
    expected = (pooled - pairs).square().sum((1, 2, 3))
    assert torch.allclose(transformation(a, b), expected / expected.max())
    assert torch.allclose(transformation(b, a), expected / expected.max())


# ---- GKD ----------------------------------------------------------------------------------------------------------


def test_of_vectors_of_equal_degree_the_graph_is_similarity_without_the_diagonal() -> None:
    """Corners of a simplex: every pair has the cosine c, every degree is (B - 1) c."""
    x = torch.eye(5, dtype=torch.float64) + 0.3
    cosines = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    expected = (torch.ones(5, 5, dtype=torch.float64) - torch.eye(5, dtype=torch.float64)) / 4
    assert torch.allclose(adjacency(x), expected)
    assert torch.allclose(similarity(F.normalize(x, dim=1)), F.normalize(cosines, dim=1))


def test_graphs_by_definition() -> None:
    s, t = random(6, 3, 2, 2).relu(), random(6, 5, 2, 2, seed=1).relu()
    graphs = []
    for x in (s, t):
        rows = x.flatten(1).numpy()
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        w = rows @ rows.T - np.eye(6)
        degrees = np.diag(w.sum(1) ** -0.5)
        graphs.append(degrees @ w @ degrees)
    a_s, a_t = graphs
    y = torch.tensor([0, 1, 0, 1, 2, 2])
    same = y[:, None] == y
    nearest = np.zeros((6, 6))
    for i in range(6):
        nearest[i, np.argsort(a_t[i])[-2:]] = 1
    mask = np.maximum(nearest, nearest.T)  # an edge stays if it is among the nearest of one of its ends

    def distance(m: np.ndarray, power: int = 1) -> float:
        return float(np.square(np.linalg.matrix_power(a_t * m, power) - np.linalg.matrix_power(a_s * m, power)).sum())

    whole = np.ones((6, 6))
    assert gkd_loss(s, t).item() == pytest.approx(distance(whole))
    assert gkd_loss(s, t, power=3).item() == pytest.approx(distance(whole, 3))
    assert gkd_loss(s, t, same).item() == pytest.approx(distance(same.numpy()))
    assert gkd_loss(s, t, neighbours=2).item() == pytest.approx(distance(mask))
    assert gkd_loss(s, t, neighbours=2, power=2).item() == pytest.approx(distance(mask, 2))


def test_classes_part_the_graph() -> None:
    (batch,) = batches(1)
    values = {}
    for kind in ("all", "same_class", "other_classes"):
        method = bind(GKD(edges=kind))  # type: ignore[arg-type]
        values[kind] = method.losses(method.student_out(batch.x), method.teacher_out(batch.x), batch)["gkd"].item()
    # edges are within classes or across them, and with p = 1 each counts alone
    assert values["all"] == pytest.approx(values["same_class"] + values["other_classes"], rel=1e-4)
    assert min(values.values()) > 0
    assert BATCH > CLASSES  # so that some class comes twice
