"""Boosting self-supervised learning via knowledge transfer: clusters as labels (Noroozi et al., CVPR 2018,
arXiv:1805.00385)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy
from kdbench.method import Stage
from kdbench.settings import Count, Share
from kdbench.taps import Spec
from methods.learning.linear_probe import LinearProbe
from methods.multi_teacher.pool import images_of

PART = 500
"""Images whose features are computed at once."""


def clustered(features: Tensor, clusters: int, seed: int) -> Tensor:
    """The number of the nearest of k-means' centres for each row of `features` (N, D): int64, (N,).

    From one start by k-means++; of rows that do not differ there may be fewer clusters than asked for.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    kmeans = KMeans(clusters, n_init=1, random_state=seed)
    rows = features.double().cpu().numpy()
    with threadpool_limits(1), warnings.catch_warnings():  # sums over rows in one order, whatever the machine
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = kmeans.fit(rows).labels_
    return torch.from_numpy(labels).long().to(features.device)


class ClusterLabels(LinearProbe):
    """L = CE(ĉ, W f_s), ĉ the cluster of the teacher's features f_t,  then a linear classifier on f_s (`LinearProbe`)

    Before training, the teacher's pooled features of all training images without augmentation are `clustered`; W is a
    linear layer that is dropped. The authors' teacher was trained without labels, too.

    Args:
        clusters: no more than there are training images.
        linear_share: share of the epochs in which the classifier is trained, within the protocol's budget.
    """

    leaf = "learning/semi-self-supervised"
    paper = "noroozi2018boosting"
    title = "Cluster labels"
    terms = ("cluster", "linear")
    survey: ClassVar = {
        "supervision": "self-supervised",
        "labelled_data": "all, for a linear classifier alone",
        "consistency": "cross-entropy with clusters of the teacher's features",
    }
    cluster: Tensor

    def __init__(self, clusters: Count = 2000, linear_share: Share = 1 / 3, **kwargs: Any) -> None:
        super().__init__(linear_share=linear_share, **kwargs)
        self.clusters = clusters

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        images = images_of(self.title, data)
        self.clusters = min(self.clusters, images)
        self.linear = nn.Linear(student.channels("embed"), self.clusters)
        self.register_buffer("cluster", torch.zeros(images, dtype=torch.long))

    def stages(self) -> Sequence[Stage]:
        return (Stage("clusters", 0, self.find_clusters), *super().stages())

    @torch.no_grad()
    def find_clusters(self) -> None:
        index = self.positions()
        shown = (self.take(part, plain=True).for_teacher.x for part in index.split(PART))
        features = torch.cat([self.teacher_out(x).embed for x in shown])
        seed = int(torch.randint(2**31, (), generator=self.rng))
        self.cluster[index] = clustered(features, min(self.clusters, len(index)), seed)

    def features_terms(self, batch: Batch) -> dict[str, Tensor]:
        return {"cluster": cross_entropy(self.linear(self.student_out(batch.x).embed), self.cluster[batch.index])}
