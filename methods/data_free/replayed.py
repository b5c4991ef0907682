"""Data-free knowledge distillation from activation records (Lopes, Fenu & Starner, 2017, arXiv:1710.07535)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Stage
from kdbench.settings import Count, Positive, Temperature
from kdbench.taps import Out, Spec, Taps
from methods.data_free.pool import Pool

Record = Literal["top_layer", "all_layers"]


@in_float32
def replay_loss(activations: Sequence[Tensor], targets: Sequence[Tensor], record: Record = "top_layer") -> Tensor:
    """mean ( ReLU(a) - ReLU(target) )² of the top layer; of all layers Σ_l 1/size_l · that of layer l.

    Args:
        activations, targets: (B, ...) of each layer, the top one last; size_l is the number of a sample's.
    """
    pairs = list(zip(activations, targets, strict=True))
    if record == "top_layer":
        pairs = pairs[-1:]
    each = [(a.relu() - b.relu()).square().mean() / (a[0].numel() if record == "all_layers" else 1) for a, b in pairs]
    return torch.stack(each).sum()


@torch.no_grad()
def square_root(covariance: Tensor) -> Tensor:
    """The symmetric root of covariances (..., D, D), which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt().unsqueeze(-2) @ vectors.mT


class Replayed(Pool):
    """Images are made to excite the teacher as its training data did, by records of that, and distilled on.

    The records are what comes with the teacher: for each class, mean and covariance of its top layer over its training
    images, and with ``all_layers`` mean and variance of every unit of the layers below. They are gathered once, in
    stage record; of training images nothing else is kept, and none is distilled on.

    For each image activations are drawn from the normal distribution of a class, and from noise

    x̂ = argmin `replay_loss`( activations of x, those drawn ), by Adam.

    L = CE( softmax(s / T), softmax(t / T) ) on these images.

    Layers are stages, and the top layer is the input of the classifier. iRapha/replayed_distillation takes the softened
    logits for it, multiplies noise by a covariance where its root would give that covariance, and begins with images
    from N(.15, .1²) in pixels. The paper's spectral records are not here: that code's ``spectral_all_layers`` and
    ``spectral_layer_pairs`` draw the same as its ``all_layers``, and nothing uses the graph that it computes.

    Args:
        record: which layers.
        images, temperature: see `Pool`.
        iterations, image_lr, image_batch: of Adam, for each batch of images.
    """

    leaf = "data-free/metadata"
    paper = "lopes2017data"
    title = "Replayed distillation"
    needs = frozenset({"teacher", "labels"})
    survey: ClassVar = {
        "original_data": "statistics of it",
        "prior": "activation statistics of each class",
        "generators": "none",
        "input": "noise",
        "discriminator": "none",
        "multi_task": "no",
    }
    root: Tensor

    def __init__(
        self,
        record: Record = "top_layer",
        images: Count = 2560,
        iterations: Count = 1000,
        image_lr: Positive = 0.07,
        image_batch: Count = 256,
        temperature: Temperature = 8.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(images, 1, temperature, **kwargs)
        self.record, self.iterations, self.image_lr, self.image_batch = record, iterations, image_lr, image_batch
        self.taps = Taps(teacher=("embed",) if record == "top_layer" else ("stage*", "embed"))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        super().build(student, teacher, data)
        self.layers = teacher.resolve(self.taps.teacher)
        classes, width = data.num_classes, teacher.channels("embed")
        self.register_buffer("root", torch.zeros(classes, width, width))
        for name in self.layers:
            self.register_buffer(f"{name}_mean", torch.zeros(classes, *teacher.shapes[name]))
            self.register_buffer(f"{name}_std", torch.zeros(classes, *teacher.shapes[name]))

    def stages(self) -> Sequence[Stage]:
        return (Stage("record", 0, self.gather), *super().stages())

    @torch.no_grad()
    def gather(self) -> None:
        """Of each class the mean and standard deviation of all units, and the root of the top layer's covariance."""
        classes = self.data.num_classes
        counts = torch.zeros(classes, dtype=torch.float64, device=self.device)
        moments = {name: torch.zeros(2, *self.get_buffer(f"{name}_mean").shape).to(counts) for name in self.layers}
        products = self.root.to(counts)
        for part in self.positions().split(self.image_batch):
            batch = self.take(part, plain=True)
            t = self.teacher_out(batch.x)
            of = F.one_hot(batch.y, classes).to(counts)
            counts += of.sum(0)
            for name in self.layers:
                powers = torch.stack([t[name], t[name].square()]).to(counts)
                moments[name] += torch.einsum("bk,mb...->mk...", of, powers)
            top = t.embed.to(counts)
            products += torch.einsum("bk,bd,be->kde", of, top, top)
        counts = counts.clamp(min=1)
        for name in self.layers:
            mean, square = moments[name] / counts.view(-1, *[1] * (moments[name].dim() - 2))
            self.get_buffer(f"{name}_mean").copy_(mean)
            self.get_buffer(f"{name}_std").copy_((square - mean.square()).clamp(min=0).sqrt())
        mean = moments["embed"][0] / counts.unsqueeze(1)
        covariance = products / counts.view(-1, 1, 1) - mean.unsqueeze(2) * mean.unsqueeze(1)
        self.root.copy_(square_root(covariance))

    def activations(self, y: Tensor) -> list[Tensor]:
        """Of every layer, drawn from the records of the classes `y`."""
        drawn = []
        for name in self.layers:
            mean = self.get_buffer(f"{name}_mean")[y]
            noise = torch.randn(mean.shape, generator=self.rng).to(mean)
            if name == "embed":
                drawn.append(mean + (self.root[y] @ noise.unsqueeze(2)).squeeze(2))
            else:
                drawn.append(mean + self.get_buffer(f"{name}_std")[y] * noise)
        return drawn

    def dream(self) -> None:
        fresh = self.fresh
        labels = torch.arange(len(fresh), device=fresh.device) % self.data.num_classes
        for images, y in zip(fresh.split(self.image_batch), labels.split(self.image_batch), strict=True):
            targets = self.activations(y)
            x = torch.randn(images.shape, generator=self.rng).to(images).requires_grad_()
            adam = torch.optim.Adam([x], lr=self.image_lr)
            for _ in range(self.iterations):
                t = self.teacher_out(x, grad=True)
                loss = replay_loss([t[name] for name in self.layers], targets, self.record)
                (x.grad,) = torch.autograd.grad(loss, [x])
                adam.step()
            images.copy_(x.detach())

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"kd": cross_entropy(s.logits / self.temperature, (t.logits / self.temperature).softmax(1))}
