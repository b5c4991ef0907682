"""Losses at the ends of their ranges: temperatures, precisions, tiny batches, inputs of any size.

A new loss is tested by existing: each public ``*_loss`` and ``*_terms`` of `methods` must be in `LOSSES`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import methods
from kdbench.losses import HOT, divergence, in_float32, kl
from kdbench.tasks.policy import gaussian
from methods.applications.cwd import cwd_loss
from methods.applications.depth_proxy import proxy_loss
from methods.applications.pixel_wise import pixel_wise_loss
from methods.applications.self_ensembling import class_balance_loss
from methods.cross_modal.generalised_distillation import imitation_loss
from methods.cross_modal.graph_distillation import imitation_terms
from methods.cross_modal.hallucination import hallucination_loss
from methods.data_free.cmi import contrastive_loss, decision_adversarial_loss
from methods.data_free.dafl import activation_loss, information_entropy_loss, one_hot_loss
from methods.data_free.deep_inversion import competition_loss, statistics_loss
from methods.data_free.dfad import adversarial_loss
from methods.data_free.fast_dfkd import moments, momentum_loss
from methods.data_free.kegnet import classification_loss, decoder_loss, diversity_loss
from methods.data_free.replayed import replay_loss
from methods.data_free.zskd import impression_loss
from methods.data_free.zskt import belief_loss
from methods.few_sample.cross_distillation import cross_distillation_loss
from methods.intermediate.ab import ab_loss
from methods.intermediate.afd_attention import matched_feature_loss
from methods.intermediate.at import at_loss
from methods.intermediate.catkd import cat_loss
from methods.intermediate.crd import nce_loss, on_sphere
from methods.intermediate.crd_infonce import info_nce_loss
from methods.intermediate.fitnet import hint_loss
from methods.intermediate.fsp import flow, fsp_loss
from methods.intermediate.ft import attention_factor_loss, factor_loss, paraphrase_loss
from methods.intermediate.gradient_attention import class_attention_loss
from methods.intermediate.irg import edge_loss, transform_loss, vertex_loss
from methods.intermediate.irg_forms import change_loss, graph_loss
from methods.intermediate.itrd import itrd_correlation_loss, itrd_mutual_loss
from methods.intermediate.jacobian import jacobian_loss
from methods.intermediate.kdpp import norm_direction_loss
from methods.intermediate.kdsvd import as_matrices, decomposed, kdsvd_loss
from methods.intermediate.meal import similarity_loss
from methods.intermediate.nst import nst_loss
from methods.intermediate.ofd import ofd_loss
from methods.intermediate.pkt import pkt_loss
from methods.intermediate.reviewkd import hcl_loss
from methods.intermediate.semckd import semckd_loss
from methods.intermediate.sobolev import derivative_loss
from methods.intermediate.sp import sp_loss
from methods.intermediate.vid import vid_loss
from methods.learning.actor_mimic import feature_loss, mimic_loss
from methods.learning.anc import logits_loss
from methods.learning.bic import bias_loss
from methods.learning.byol import latent_loss
from methods.learning.compress import anchored_loss
from methods.learning.cooperation import relation_loss
from methods.learning.eeil import binary_loss
from methods.learning.ensemble_to_one import ensemble_loss
from methods.learning.gaussian_policy_distillation import gaussian_kl_loss, root_distance_loss
from methods.learning.gkd import gkd_loss
from methods.learning.icarl import icarl_loss
from methods.learning.lfl import euclidean_loss
from methods.learning.lucir import less_forget_loss, margin_ranking_loss
from methods.learning.lwf import new_classes_loss, old_classes_loss, seen_classes_loss
from methods.learning.lwm import attention_loss
from methods.learning.mean_teacher import consistency_loss
from methods.learning.mean_teacher_distance import logit_distance_loss
from methods.learning.mhgd import attention_graph_loss, estimation_loss
from methods.learning.pi_model import two_pass_loss
from methods.learning.podnet import nca_loss, pod_loss
from methods.learning.policy_distillation import policy_loss
from methods.learning.policy_distillation_losses import best_action_loss, score_loss
from methods.learning.rtf import code_loss, decoding_loss
from methods.learning.seed_distillation import seed_loss
from methods.learning.sntg import smooth_neighbours_loss
from methods.learning.temporal_ensembling import ensemble_target_loss
from methods.logits.cc import correlation_loss, neighbours_loss
from methods.logits.darkrank import rank_loss
from methods.logits.dist import dist_terms
from methods.logits.distilled_labels import mixed_label_loss
from methods.logits.dkd import dkd_loss, dkd_terms
from methods.logits.dynamic_temperature import tempered_loss
from methods.logits.embedding_teachers import absolute_loss, relative_loss
from methods.logits.endd import dirichlet_loss
from methods.logits.knowledge_adjustment import adjusted_loss
from methods.logits.label_smoothing import label_smoothing_loss
from methods.logits.logits_mse import logits_mse_loss
from methods.logits.mlkd import batch_relation_loss, class_relation_loss, level_terms
from methods.logits.model_compression import mean_probability_loss
from methods.logits.multi_exit import early_exits_loss
from methods.logits.pu_compression import pu_loss, robust_loss
from methods.logits.rkd import rkd_terms
from methods.logits.tf_kd_reg import virtual_teacher_loss
from methods.logits.ttm import ttm_loss
from methods.logits.wsld import wsld_loss
from methods.multi_teacher.aekd import aekd_loss
from methods.multi_teacher.average import average_loss, members_loss
from methods.multi_teacher.camkd import camkd_feature_loss, camkd_loss
from methods.multi_teacher.cfl import mmd_loss, reconstruction_loss
from methods.multi_teacher.customize import selective_loss, unit_norm_loss
from methods.multi_teacher.ebkd import ebkd_loss
from methods.multi_teacher.hne import hierarchical_loss
from methods.multi_teacher.hydra import heads_loss
from methods.multi_teacher.ka import amalgamation_loss
from methods.multi_teacher.knowledge_flow import dependence_loss
from methods.multi_teacher.lfme import experts_loss, paced_cross_entropy_loss
from methods.multi_teacher.log_euclidean import log_euclidean_loss
from methods.multi_teacher.pool import weighted_members_loss
from methods.multi_teacher.triplets import triplet_voting_loss
from methods.multi_teacher.uhc import uhc_loss
from methods.multi_teacher.uhc_factorised import soft_label_loss
from methods.online.afd import alignment_loss, fooling_loss, telling_loss
from methods.online.cl_ilr import consensus_loss
from methods.online.codistillation import agreement_loss
from methods.online.dml import mutual_loss
from methods.online.dml_joint import pairwise_loss
from methods.online.ffl import fusion_loss
from methods.online.okddip import group_loss
from methods.online.one import native_ensemble_loss
from methods.online.transfer_graph import transfer_loss
from methods.teacher_free.bake import ensembled, ensembled_loss
from methods.teacher_free.byot import exit_feature_loss, exit_kd_loss
from methods.teacher_free.byot_final import feature_distance_loss
from methods.teacher_free.cwtm import confidence_weighted_loss
from methods.teacher_free.ddgsd import mean_feature_loss, posterior_loss
from methods.teacher_free.dks import synergy_loss
from methods.teacher_free.sad import attention_step_loss
from methods.teacher_free.snapshot_distillation import asymmetric_loss

B, K = 6, 10
Y = torch.arange(B) % K
SHAPES = {"logits": (K,), "embed": (12,), "map": (4, 3, 3)}

Loss = Callable[[Tensor, Tensor], Tensor]


def depth(x: Tensor) -> Tensor:
    """Positive, whatever a ReLU left, and without losing a digit."""
    return 1 + x.to(torch.promote_types(x.dtype, torch.float32))


def chance(x: Tensor) -> Tensor:
    """What a discriminator says, (B,), without losing a digit."""
    return x[:, 0].to(torch.promote_types(x.dtype, torch.float32)).sigmoid()


def svd(s: Tensor, t: Tensor) -> Tensor:
    """Of two layers, the second with its channels the other way round."""
    students = [decomposed(as_matrices(x), 4)[0] for x in (s, s.flip(1))]
    teachers, values = zip(*(decomposed(as_matrices(x), 1) for x in (t, t.flip(1))), strict=True)
    return kdsvd_loss(students, teachers, values)


PASSING = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
"""What a layer is given in the student and in the teacher."""
HALVES = [range(6), range(4, K)]
"""What each of two teachers knows."""


def bounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of a Gaussian policy, without losing a digit."""
    return gaussian(x.to(torch.promote_types(x.dtype, torch.float32)).clamp(-3, 3))


def spread_out(x: Tensor) -> Tensor:
    """Weights of two teachers for each sample, (2, B)."""
    w = torch.linspace(0, 1, len(x), dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.stack([w, 1 - w])


def anchors(x: Tensor) -> Tensor:
    """Seven rows like those of an embedding, never in half precision."""
    rows = torch.linspace(-1, 1, 84).sin().view(7, 12)
    return rows.to(torch.promote_types(x.dtype, torch.float32))


LOSSES: dict[str, tuple[str, Loss]] = {
    "kl": ("logits", lambda s, t: kl(s, t, 4.0)),
    "dkd_terms": ("logits", lambda s, t: torch.stack(dkd_terms(s, t, Y[: len(s)], 4.0)).sum()),
    "dkd_loss": ("logits", lambda s, t: dkd_loss(s, t, Y[: len(s)])),
    "mutual_loss": ("logits", lambda s, t: mutual_loss(s, [t, t.flip(0)], 3.0)),
    "exit_kd_loss": ("logits", exit_kd_loss),
    "confidence_weighted_loss": ("logits", lambda s, t: confidence_weighted_loss(s, t, Y[: len(s)])),
    "ensembled_loss": ("logits", lambda s, t: ensembled_loss(s, ensembled(t, s, 4.0), 4.0)),
    "synergy_loss": ("logits", lambda s, t: synergy_loss([s, t, s.flip(1)], 3.0)),
    "label_smoothing_loss": ("logits", lambda s, t: label_smoothing_loss(s, Y[: len(s)], 0.1)),
    "one_hot_loss": ("logits", lambda s, t: one_hot_loss(s)),
    "information_entropy_loss": ("logits", lambda s, t: information_entropy_loss(s)),
    "logits_mse_loss": ("logits", logits_mse_loss),
    "rkd_terms": ("embed", lambda s, t: torch.stack(rkd_terms(s, t)).sum()),
    "pkt_loss": ("embed", pkt_loss),
    "activation_loss": ("embed", lambda s, t: activation_loss(s)),
    "exit_feature_loss": ("embed", exit_feature_loss),
    "feature_distance_loss": ("embed", feature_distance_loss),
    "at_loss": ("map", at_loss),
    "attention_step_loss": ("map", attention_step_loss),
    "sp_loss": ("map", sp_loss),
    "hint_loss": ("map", hint_loss),
    "hcl_loss": ("map", hcl_loss),
    "cat_loss": ("map", lambda s, t: cat_loss(s, t, 2, normalize=True)),
    "semckd_loss": ("map", lambda s, t: semckd_loss(t[:, 0], s[:, 0])),
    "matched_feature_loss": (
        "map",
        lambda s, t: matched_feature_loss(t[:, 0], [s, s.flip(1), -s], [t, t.flip(2), t.flip(3)]),
    ),
    "class_attention_loss": ("map", lambda s, t: class_attention_loss(s[:, :1], t[:, :1])),
    "itrd_correlation_loss": ("embed", itrd_correlation_loss),
    "itrd_mutual_loss": ("embed", itrd_mutual_loss),
    "info_nce_loss": ("logits", lambda s, t: info_nce_loss(s)),
    "nce_loss": ("logits", lambda s, t: nce_loss(s, t.mean().detach(), 50)),
    "dirichlet_loss": ("logits", lambda s, t: dirichlet_loss(s, [t, t.flip(0)], 2.5)),
    "mixed_label_loss": ("logits", lambda s, t: mixed_label_loss(s, t, Y[: len(s)], 0.3)),
    "members_loss": ("logits", lambda s, t: members_loss(s, [t, t.flip(0)], 4.0)),
    "average_loss": ("logits", lambda s, t: average_loss(s, [t, t.flip(0)], 4.0)),
    "soft_label_loss": ("logits", lambda s, t: soft_label_loss(s, t.float().softmax(1), 3.0)),
    "hierarchical_loss": ("logits", lambda s, t: hierarchical_loss([s, s.flip(0), t, s.flip(1)])),
    "dependence_loss": ("logits", lambda s, t: dependence_loss(s)),
    "log_euclidean_loss": ("embed", lambda s, t: log_euclidean_loss(s, [t, t.flip(0)], 0.1)),
    "amalgamation_loss": ("map", amalgamation_loss),
    "selective_loss": ("map", lambda s, t: selective_loss([s, s.flip(1)], [t, t], torch.arange(len(s)) % 2)),
    "unit_norm_loss": ("map", lambda s, t: unit_norm_loss(s)),
    "weighted_members_loss": ("logits", lambda s, t: weighted_members_loss(s, [t, t.flip(0)], spread_out(s), 4.0)),
    "ebkd_loss": ("logits", lambda s, t: ebkd_loss(s, [t, t.flip(0)])),
    "camkd_loss": ("logits", lambda s, t: camkd_loss(s, [t, t.flip(0)], Y[: len(s)])),
    "camkd_feature_loss": ("map", lambda s, t: camkd_feature_loss([s, s], [t, t.flip(0)], spread_out(s))),
    "aekd_loss": ("logits", lambda s, t: aekd_loss(s, [t, t.flip(0), t.flip(1)])),
    "heads_loss": ("logits", lambda s, t: heads_loss([s, s.flip(0)], [t, t.flip(1)], 4.0)),
    "triplet_voting_loss": ("map", lambda s, t: triplet_voting_loss(s, [t], torch.arange(9).view(3, 3) % len(s), 0.1)),
    "experts_loss": ("logits", lambda s, t: experts_loss(s, [t[:, :6], t[:, 4:]], HALVES, torch.tensor([1.0, 0.4]))),
    "paced_cross_entropy_loss": ("logits", lambda s, t: paced_cross_entropy_loss(s, Y[: len(s)], spread_out(s)[0])),
    "uhc_loss": ("logits", lambda s, t: uhc_loss(s, [t[:, :6], t[:, 4:]], HALVES, 3.0)),
    "native_ensemble_loss": ("logits", lambda s, t: native_ensemble_loss([s, s.flip(0)], t, 3.0)),
    "group_loss": ("logits", lambda s, t: group_loss([s, s.flip(0)], [t, t], 3.0)),
    "cwd_loss": ("map", cwd_loss),
    "proxy_loss": ("map", lambda s, t: proxy_loss(depth(s), depth(t))),
    "pixel_wise_loss": ("logits", lambda s, t: pixel_wise_loss(s[..., None, None], t[..., None, None])),
    "class_balance_loss": ("logits", lambda s, t: class_balance_loss(s, torch.ones(len(s)))),
    "momentum_loss": (
        "map",
        lambda s, t: momentum_loss([moments(s, torch.zeros(4), torch.ones(4))], torch.ones(2, 4), 0.9),
    ),
    "statistics_loss": ("map", lambda s, t: statistics_loss(s, torch.zeros(4), torch.ones(4))),
    "competition_loss": ("logits", lambda s, t: competition_loss(s, t)),
    "impression_loss": ("logits", lambda s, t: impression_loss(s, t.float().softmax(1))),
    "bias_loss": ("logits", lambda s, t: bias_loss(s, Y[: len(s)], torch.zeros(1))),
    "ensemble_loss": ("logits", lambda s, t: ensemble_loss(s, [t, t.flip(0)], 5.0)),
    "icarl_loss": ("logits", lambda s, t: icarl_loss(s, t, Y[: len(s)], 4)),
    "less_forget_loss": ("embed", less_forget_loss),
    "margin_ranking_loss": ("logits", lambda s, t: margin_ranking_loss(s, Y[: len(s)], 4)),
    "old_classes_loss": ("logits", old_classes_loss),
    "seen_classes_loss": ("logits", lambda s, t: seen_classes_loss(s, t[:, :4])),
    "euclidean_loss": ("embed", euclidean_loss),
    "decoding_loss": ("embed", lambda s, t: decoding_loss(s, t.float().sigmoid())),
    "code_loss": ("embed", lambda s, t: code_loss(s, t.clamp(max=20), 64)),
    "new_classes_loss": ("logits", lambda s, t: new_classes_loss(s, 4 + Y[: len(s)] % 6, 4)),
    "consistency_loss": ("logits", consistency_loss),
    "two_pass_loss": ("logits", two_pass_loss),
    "ensemble_target_loss": ("logits", lambda s, t: ensemble_target_loss(s, t.float().softmax(1))),
    "smooth_neighbours_loss": ("embed", lambda s, t: smooth_neighbours_loss(s, t, Y[: len(s)] % 2 == 0)),
    "logit_distance_loss": ("logits", logit_distance_loss),
    "seed_loss": ("embed", lambda s, t: seed_loss(s, t, anchors(s))),
    "anchored_loss": ("embed", lambda s, t: anchored_loss(s, t, anchors(s), anchors(s).flip(0))),
    "latent_loss": ("embed", latent_loss),
    "policy_loss": ("logits", lambda s, t: policy_loss(s, t, 1.0)),
    "posterior_loss": ("logits", posterior_loss),
    "logits_loss": ("logits", logits_loss),
    "vertex_loss": ("logits", vertex_loss),
    "mean_feature_loss": ("embed", mean_feature_loss),
    "mmd_loss": ("embed", mmd_loss),
    "reconstruction_loss": ("map", reconstruction_loss),
    "gkd_loss": ("map", gkd_loss),
    "edge_loss": ("map", edge_loss),
    "transform_loss": ("map", lambda s, t: transform_loss((s, s.flip(1)), (t, t.flip(1)))),
    "virtual_teacher_loss": ("logits", lambda s, t: virtual_teacher_loss(s, Y[: len(s)], 20.0, 0.99)),
    "dist_terms": ("logits", lambda s, t: torch.stack(dist_terms(s, t, 4.0)).sum()),
    "ttm_loss": ("logits", lambda s, t: ttm_loss(s, t, 0.2, weighted=True)),
    "wsld_loss": ("logits", lambda s, t: wsld_loss(s, t, Y[: len(s)], 4.0)),
    "batch_relation_loss": ("logits", lambda s, t: batch_relation_loss(s, t, 4.0)),
    "class_relation_loss": ("logits", lambda s, t: class_relation_loss(s, t, 4.0)),
    "level_terms": ("logits", lambda s, t: sum(level_terms(s, t, (2.0, 4.0)).values(), start=torch.zeros(()))),
    "norm_direction_loss": ("embed", lambda s, t: norm_direction_loss(s, t, t.float().cumsum(0), Y[: len(s)] * 0)),
    "jacobian_loss": ("embed", jacobian_loss),
    "derivative_loss": ("embed", derivative_loss),
    "adjusted_loss": ("logits", lambda s, t: adjusted_loss(s, t, Y[: len(s)], 4.0, "smoothing")),
    "tempered_loss": ("logits", lambda s, t: tempered_loss(s, t, torch.linspace(1, 8, len(s)).to(s))),
    "mean_probability_loss": ("logits", lambda s, t: mean_probability_loss(s, [t, t.flip(0)])),
    "fsp_loss": ("map", lambda s, t: fsp_loss(flow(s, s.flip(1)), flow(t, t.flip(1)))),
    "nst_loss": ("map", nst_loss),
    "factor_loss": ("map", factor_loss),
    "attention_factor_loss": ("map", attention_factor_loss),
    "paraphrase_loss": ("map", paraphrase_loss),
    "ab_loss": ("map", lambda s, t: ab_loss([s - 1, s], [t - 1, t])),
    "kdsvd_loss": ("map", svd),
    "ofd_loss": ("map", lambda s, t: ofd_loss([s - 1, s], [t - 1, t], [torch.full((4,), -0.5)] * 2)),
    "similarity_loss": ("logits", similarity_loss),
    "contrastive_loss": ("embed", lambda s, t: contrastive_loss(on_sphere(depth(s)), on_sphere(depth(t)), 1)),
    "decision_adversarial_loss": ("logits", decision_adversarial_loss),
    "adversarial_loss": ("logits", adversarial_loss),
    "classification_loss": ("logits", lambda s, t: classification_loss(s, t.float().softmax(1))),
    "decoder_loss": ("embed", decoder_loss),
    "diversity_loss": ("embed", diversity_loss),
    "replay_loss": ("map", lambda s, t: replay_loss([s, s.flip(1)], [t, t.flip(1)], "all_layers")),
    "belief_loss": ("logits", belief_loss),
    "cross_distillation_loss": (
        "map",
        lambda s, t: cross_distillation_loss(s[:, :3], t[:, :3], *(x.to(depth(s).dtype) for x in PASSING)),
    ),
    "imitation_loss": ("logits", lambda s, t: imitation_loss(s, t, 4.0)),
    "imitation_terms": (
        "logits",
        lambda s, t: imitation_terms([s, s.flip(1)], [t, t.flip(0)], torch.full((len(s), 2), 0.5)),
    ),
    "hallucination_loss": ("map", hallucination_loss),
    "graph_loss": ("embed", graph_loss),
    "change_loss": ("map", lambda s, t: change_loss((s, s.flip(1)), (t, t.flip(1)))),
    "mimic_loss": ("logits", mimic_loss),
    "feature_loss": ("embed", feature_loss),
    "relation_loss": ("logits", lambda s, t: relation_loss([s, t, s.flip(1)], Y[: len(s)], "cooperation", 10.0)),
    "binary_loss": ("logits", binary_loss),
    "attention_loss": ("map", lambda s, t: attention_loss(s[:, 0], t[:, 0])),
    "estimation_loss": ("embed", lambda s, t: estimation_loss(on_sphere(depth(s)), on_sphere(depth(t)))),
    "attention_graph_loss": ("map", lambda s, t: attention_graph_loss(s[:, 0], t[:, 0])),
    "pod_loss": ("map", lambda s, t: pod_loss([s, s.flip(1)], [t, t.flip(1)])),
    "nca_loss": ("logits", lambda s, t: nca_loss(on_sphere(depth(s)), Y[: len(s)])),
    "gaussian_kl_loss": ("logits", lambda s, t: gaussian_kl_loss(*bounded(s), *bounded(t))),
    "root_distance_loss": ("logits", lambda s, t: root_distance_loss(*bounded(s), *bounded(t))),
    "best_action_loss": ("logits", best_action_loss),
    "score_loss": ("logits", score_loss),
    "correlation_loss": ("embed", correlation_loss),
    "neighbours_loss": ("embed", neighbours_loss),
    "rank_loss": ("embed", lambda s, t: rank_loss(on_sphere(depth(s)), on_sphere(depth(t)))),  # no ties
    "absolute_loss": ("embed", absolute_loss),
    "relative_loss": ("embed", relative_loss),
    "early_exits_loss": ("logits", lambda s, t: early_exits_loss([s, s.flip(1)], t, torch.tensor(3.0))),
    "pu_loss": ("logits", lambda s, t: pu_loss(s[:, 0], s[:, 1], 0.3)),
    "robust_loss": ("logits", lambda s, t: robust_loss(s, t, torch.linspace(0.5, 1.5, 2 * K).view(2, K))),
    "fooling_loss": ("logits", lambda s, t: fooling_loss(chance(s))),
    "telling_loss": ("logits", lambda s, t: telling_loss(chance(s), chance(t))),
    "alignment_loss": ("map", alignment_loss),
    "consensus_loss": ("logits", lambda s, t: consensus_loss([s, t, s.flip(1)], 2.0)),
    "agreement_loss": ("logits", lambda s, t: agreement_loss(s, [t, t.flip(1)])),
    "pairwise_loss": ("logits", lambda s, t: pairwise_loss([s, t, s.flip(1)], 3.0)),
    "fusion_loss": ("logits", lambda s, t: fusion_loss([s, s.flip(1)], t, 3.0)),
    "transfer_loss": ("logits", lambda s, t: transfer_loss(s, t, Y[: len(s)], "linear", 0.5)),
    "asymmetric_loss": ("logits", lambda s, t: asymmetric_loss(s, t, 2.0)),
    "vid_loss": ("map", lambda s, t: vid_loss(s, t, torch.linspace(-2, 6, 4).to(s))),
}
SOFT = {
    "kl": kl,
    "tckd": lambda s, t, temperature: dkd_terms(s, t, Y, temperature)[0],
    "nckd": lambda s, t, temperature: dkd_terms(s, t, Y, temperature)[1],
    "exit_kd": exit_kd_loss,
    "mutual": lambda s, t, temperature: mutual_loss(s, [t], temperature),
    "average": lambda s, t, temperature: average_loss(s, [t, t.flip(0)], temperature),
}
SQUARES = ("logits_mse_loss", "logits_loss", "score_loss", "vertex_loss", "logit_distance_loss")
"""Of logits' differences, which float32 cannot hold for the largest of them."""
every_loss = pytest.mark.parametrize("name", LOSSES)


def inputs(name: str, n: int = B, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Student's and teacher's, float32: logits of spread 2, else what a ReLU leaves."""
    kind = LOSSES[name][0]
    rng = torch.Generator().manual_seed(3)
    s, t = (torch.randn(n, *SHAPES[kind], generator=rng) for _ in range(2))
    return (2 * scale * s, 2 * scale * t) if kind == "logits" else (scale * s.relu(), scale * t.relu())


def with_gradient(name: str, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    s = s.clone().requires_grad_()
    loss = LOSSES[name][1](s, t)
    (gradient,) = torch.autograd.grad(loss, s)
    return loss.detach(), gradient


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the largest entry."""
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"relative error {error:.1e}"


def test_every_loss_is_here() -> None:
    found = set()
    for module in pkgutil.walk_packages(methods.__path__, "methods."):
        names = vars(importlib.import_module(module.name))
        found |= {
            name
            for name, value in names.items()
            if name.endswith(("_loss", "_terms")) and getattr(value, "__module__", "") == module.name
        }
    assert found | {"kl"} == set(LOSSES)


# ---- temperatures -------------------------------------------------------------------------------------------------


def large() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(64, 100) * 5, torch.randn(64, 100) * 5


@pytest.mark.parametrize(("temperature", "value"), [(1e3, 24.7346), (1e4, 24.7326), (1e5, 24.7324)])
def test_kl_at_high_temperatures_is_that_of_double_precision(temperature: float, value: float) -> None:
    s, t = large()
    assert kl(s, t, temperature).item() == pytest.approx(value, abs=6e-5)


@pytest.mark.parametrize("temperature", [1e7, 1e12, 1e20, 1e300])
def test_kl_tends_to_half_the_variance_of_the_difference(temperature: float) -> None:
    """T² KL(q || p) -> Var(s - t) / 2 over equally likely classes, as T -> infinity."""
    s, t = large()
    limit = (s.double() - t.double()).var(1, unbiased=False).mean() / 2
    assert kl(s, t, temperature).item() == pytest.approx(limit.item(), rel=1e-5)
    assert kl(s.double(), t.double(), temperature).item() == pytest.approx(limit.item(), rel=1e-5)


def soft_reference(name: str, s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """The terms by their definitions, in float64, where a logarithm's error of 1e-15 times T² still does no harm."""
    s, t, rows = s.double() / temperature, t.double() / temperature, torch.arange(B)
    p, q = s.softmax(1), t.softmax(1)
    if name == "tckd":
        p, q = (torch.stack([x[rows, Y], 1 - x[rows, Y]], 1) for x in (p, q))
    elif name == "nckd":
        others = ~F.one_hot(Y, K).bool()
        p, q = (x[others].view(B, K - 1) / x[others].view(B, K - 1).sum(1, keepdim=True) for x in (p, q))
    elif name == "average":
        q = (q + q.flip(0)) / 2
    entropy = q * q.log() if name != "exit_kd" else torch.zeros(())
    return (entropy - q * p.log()).sum(1).mean() * temperature**2


@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0, HOT, 1.01 * HOT, 300.0, 1e4])
@pytest.mark.parametrize("name", SOFT)
def test_terms_with_a_temperature_agree_with_double_precision(name: str, temperature: float) -> None:
    s, t = inputs("kl")
    reference = s.double().requires_grad_()
    expected = soft_reference(name, reference, t, temperature)
    (slope,) = torch.autograd.grad(expected, reference)
    s.requires_grad_()
    found = SOFT[name](s, t, temperature)
    assert_close(found, expected, 1e-4)
    assert_close(torch.autograd.grad(found, s)[0], slope, 1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0, 8.0, 20.0])
def test_at_usual_temperatures_kl_is_pytorchs_to_the_bit(temperature: float) -> None:
    s, t = large()
    s.requires_grad_()
    log_p, log_q = F.log_softmax(s / temperature, 1), F.log_softmax(t / temperature, 1)
    expected = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2
    found = kl(s, t, temperature)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found, s)[0], torch.autograd.grad(expected, s)[0])


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0, 20.0, 100.0, 1e4, 1e6])
@pytest.mark.parametrize("name", ["kl", "tckd", "nckd", "mutual"])
def test_a_divergence_is_never_negative(name: str, temperature: float) -> None:
    for seed, noise in product(range(5), (0.0, 1e-6, 1e-4)):
        rng = torch.Generator().manual_seed(seed)
        t = 5 * torch.randn(B, K, generator=rng)
        s = t + noise * torch.randn(B, K, generator=rng) + 7
        assert SOFT[name](s, t, temperature).item() >= 0


def test_a_student_close_to_its_teacher_still_learns() -> None:
    """Where rounding makes the value negative the gradient is right, and stays."""
    t = inputs("kl")[1]
    s = (t + 1e-3 * torch.arange(K)).requires_grad_()
    (found,) = torch.autograd.grad(kl(s, t, 4.0), s)
    expected = 4 * ((s.double() / 4).softmax(1) - (t.double() / 4).softmax(1)) / B
    assert_close(found, expected, 1e-3)


def test_divergence_of_odds() -> None:
    q = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).expand(4, 3)
    x = torch.tensor([[0.0, 1.0, -2.0], [1e-9, 0.0, 0.0], [90.0, 0.0, -900.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    p = q * (x - x.amax(1, keepdim=True)).exp()
    log_p = (p / p.sum(1, keepdim=True)).clamp(min=1e-300).log()
    expected = (q * (q.log() - log_p)).sum(1)
    # to second order the divergence is half the variance: q (1 - q) x² / 2; to the last, -log p of what is left
    expected[1], expected[3] = 0.5 * 0.5 * 1e-18 / 2, 0.0
    expected[2] = (q[2] * q[2].log()).sum() + 90 + q[2, 0].log() - q[2] @ x[2] - (q[2] * q[2].log()).sum()
    assert divergence(q, x).tolist() == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-30)


# ---- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@every_loss
def test_half_precision_inputs_cost_no_digits(name: str, dtype: torch.dtype) -> None:
    """Under autocast the networks' outputs have half the digits; what a loss makes of them has all of float32's."""
    s, t = (x.to(dtype) for x in inputs(name))
    expected = with_gradient(name, s.double(), t.double())
    s.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name][1](s, t)
    assert loss.dtype == torch.float32
    assert_close(loss.detach(), expected[0], 1e-4)
    (gradient,) = torch.autograd.grad(loss, s)
    assert gradient.dtype == dtype
    assert_close(gradient, expected[1], torch.finfo(dtype).eps)  # rounded to the inputs' type


@pytest.mark.parametrize("name", ["sp_loss", "at_loss", "rkd_terms", "exit_feature_loss", "logits_mse_loss"])
def test_squares_that_float16_cannot_hold(name: str) -> None:
    s, t = (x.half() for x in inputs(name, scale=300.0))
    assert_close(with_gradient(name, s, t)[0], with_gradient(name, s.double(), t.double())[0], 1e-4)


def test_in_float32_passes_everything_else() -> None:
    @in_float32
    def loss(a: Tensor, n: int, *, b: Tensor, word: str = "x") -> tuple[torch.dtype, torch.dtype, int, str]:
        """What it says."""
        return (a @ a).dtype, b.dtype, n, word

    half = torch.ones(2, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(half, 3, b=half.double()) == (torch.float32, torch.float64, 3, "x")
        assert (half.float() @ half.float()).dtype == torch.bfloat16
    assert loss.__doc__ == "What it says."


# ---- inputs of any size -------------------------------------------------------------------------------------------


def extremes(name: str) -> Iterator[tuple[Tensor, Tensor]]:
    s, t = inputs(name)
    logits = LOSSES[name][0] == "logits" and name not in SQUARES
    for scale in (0.0, 1e-30, 1e-20, 1e-3, 1e3, 1e8, *([1e30] if logits else [])):
        yield scale * s, scale * t
    yield s, s  # nothing to learn
    yield torch.zeros_like(s), t
    yield s, torch.zeros_like(t)
    yield torch.full_like(s, 3.0), t  # all samples and all classes alike
    yield s * torch.tensor([0.0, *[1.0] * (B - 1)]).view(B, *[1] * (s.dim() - 1)), t  # a dead sample
    certain = s * 0
    certain[:, 0] = 1e4 if logits else 1.0
    yield certain, t
    yield s, certain


@every_loss
def test_losses_and_gradients_stay_finite(name: str) -> None:
    for s, t in extremes(name):
        loss, gradient = with_gradient(name, s, t)
        assert loss.isfinite(), (name, s, t)
        assert gradient.isfinite().all(), (name, s, t)


@every_loss
def test_float32_agrees_with_float64(name: str) -> None:
    for scale in (0.1, 1.0, 10.0):
        s, t = inputs(name, scale=scale)
        found, expected = with_gradient(name, s, t), with_gradient(name, s.double(), t.double())
        assert_close(found[0], expected[0], 2e-5)
        assert_close(found[1], expected[1], 1e-4)


def test_entropy_of_classes_that_are_never_generated() -> None:
    """p log p -> 0 as p -> 0, and such a class has no pull: the others' entropy alone is left."""
    logits = torch.tensor([[0.0, 0.0, -500.0], [0.0, 0.0, -500.0]], requires_grad=True)
    loss = information_entropy_loss(logits, "ln")
    assert loss.item() == pytest.approx(-torch.tensor(2.0).log().item())
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6


# ---- batches of one -----------------------------------------------------------------------------------------------


@every_loss
def test_a_batch_of_one(name: str) -> None:
    s, t = inputs(name, 1)
    loss, gradient = with_gradient(name, s, t)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if name in ("rkd_terms", "pkt_loss", "sp_loss"):  # no other sample to compare with: nothing is said
        assert loss.item() == pytest.approx(0, abs=1e-12)
        assert gradient.abs().max() <= 1e-12
