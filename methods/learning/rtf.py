"""Generative replay with feedback connections (van de Ven, Tolias, arXiv 2018, arXiv:1809.10635)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Snapshot, Stage
from kdbench.settings import Count, Temperature
from kdbench.taps import Spec, Taps
from methods.data_free.zskd import Pixels
from methods.learning.lwf import new_classes_loss, seen_classes_loss


@in_float32
def decoding_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Binary cross-entropy of decoded pixels (B, n), before the sigmoid, and those of the image, in 0..1.

    The mean over B·n, as in the code; the paper sums over pixels.
    """
    return F.binary_cross_entropy_with_logits(decoded, pixels)


@in_float32
def code_loss(mean: Tensor, log_variance: Tensor, pixels: int) -> Tensor:
    """KL( N(μ, σ²) || N(0, 1) ) of latent codes (B, z), summed over z, averaged over B·`pixels`.

    So that it stands to `decoding_loss` as their sums would: -ELBO / `pixels` is the sum of both.
    """
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum() / (len(mean) * pixels)


class Feedback(nn.Module):
    """From what the classifier reads, (B, D), to a latent code and back to the pixels of the image: (B, n).

    Args:
        features: D.
        latent: size of the code.
        hidden: of each layer from the code to the pixels.
        pixels: n.
    """

    def __init__(self, features: int, latent: int, hidden: Sequence[int], pixels: int) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(features, latent), nn.Linear(features, latent)
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise((latent, *hidden))]
        self.decode = nn.Sequential(*layers, nn.Linear((latent, *hidden)[-1], pixels))

    def forward(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decoded pixels before the sigmoid, and mean and logarithm of the variance of the code.

        Args:
            noise: standard normal, (B, z).
        """
        mean, log_variance = self.mean(features), self.log_variance(features)
        return self.decode(mean + (0.5 * log_variance).exp() * noise), mean, log_variance


class RtF(Method):
    """L = 1/k · [ CE(y, s) + V(x) ] + (1 - 1/k) · [ T² · H( softmax(t / T), softmax(s~ / T) ) + V(x~) ].

    In the k-th experience. The student has feedback connections, so that it is a variational autoencoder too, with
    V = `decoding_loss` + `code_loss`: codes are made of what its classifier reads. As many images x~ are replayed as
    there are new ones: decoded from codes ~ N(0, 1) by the past self, the student and its feedback as they were when
    the experience began, which also says the soft targets t.

    Args:
        temperature: T.
        latent: size of the code.
        hidden: of each layer from the code to the pixels, beside the last.
        labels: what CE tells apart: all classes ``seen``, or the ``new`` ones, where a network is told of the
            experience.
        heads: ``seen``: one softmax over all classes seen, of which the past self gives the new ones nothing;
            ``mean``: each earlier experience has as many of the replayed images, and a softmax over its own classes.
        targets: ``soft``; or ``hard``: CE with the class that the past self thinks most of in place of T² · H, as in
            deep generative replay (Shin et al. 2017, arXiv:1705.08690).
        over: whether T² · H is the ``sum`` over classes, or their ``mean``, as in the code until May 2019.
    """

    leaf = "learning/incremental"
    paper = "vandeven2018generative"
    title = "RtF"
    extension = True
    needs = frozenset({"labels"})
    taps = Taps(student=("embed",))
    terms = ("ce", "replay", "reconstruction", "latent")
    tasks = frozenset({"class-incremental", "domain-incremental"})
    earlier: ClassVar = frozenset({"f6f0c4c8728cc9a355c27121f9f32a921b13db16195f3f04c7dd590295378260"})
    survey: ClassVar = {
        "knowledge": "softened scores of the past self on images that it generates",
        "objective": "1/k CE + (1 - 1/k) CE(past/T, s/T), VAE loss",
    }

    def __init__(
        self,
        temperature: Temperature = 2.0,
        latent: Count = 100,
        hidden: Sequence[Count] = (400, 400),
        labels: Literal["seen", "new"] = "seen",
        heads: Literal["seen", "mean"] = "seen",
        targets: Literal["soft", "hard"] = "soft",
        over: Literal["sum", "mean"] = "sum",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.latent, self.hidden = temperature, latent, tuple(hidden)
        self.labels, self.heads, self.targets, self.over = labels, heads, targets, over

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if data.task == "domain-incremental" and self.heads == "mean":
            raise DoesNotFit("RtF: all domains have one head, not a mean of them: set method.rtf.heads=seen.")
        self.shape, self.pixels = data.shape, torch.Size(data.shape).numel()
        self.shown = Pixels(data)
        self.feedback = Feedback(student.channels("embed"), self.latent, self.hidden, self.pixels)
        self.past, self.past_feedback = Snapshot(self.student), Snapshot(self.feedback)

    def stages(self) -> Sequence[Stage]:
        return (Stage("train", begin=self.remember),)

    def remember(self) -> None:
        """The past self is who the student is now."""
        self.past.take(self.student)
        self.past_feedback.take(self.feedback)

    def drawn(self, n: int, like: Tensor) -> Tensor:
        """Standard normal codes, (n, z)."""
        return torch.randn(n, self.latent, generator=self.rng).to(like)

    @torch.no_grad()
    def replayed(self, n: int, like: Tensor) -> Tensor:
        """Images as networks see them, (n, C, H, W), from the past self."""
        past: Feedback = self.past_feedback.net  # type: ignore[assignment]
        decoded: Tensor = self.shown(past.decode(self.drawn(n, like)).sigmoid().view(n, *self.shape))
        return decoded

    def autoencoded(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """`decoding_loss` and `code_loss` of images (B, C, H, W) and the features (B, D) of them."""
        pixels = (x * self.shown.std + self.shown.mean).clamp(0, 1).flatten(1)
        decoded, mean, log_variance = self.feedback(features, self.drawn(len(x), features))
        return decoding_loss(decoded, pixels), code_loss(mean, log_variance, self.pixels)

    def replay_loss(self, s: Tensor, t: Tensor) -> Tensor:
        """Of the logits (B, K) of replayed images, in the heads that there are."""
        number, seen, known = self.experience.number, self.experience.seen, self.experience.known
        if self.heads == "mean":
            heads = pairwise((0, *self.data.experiences[:number]))
            shares = zip(s.tensor_split(number), t.tensor_split(number), heads, strict=True)
            pairs = [(mine[:, a:b], theirs[:, a:b]) for mine, theirs, (a, b) in shares]
        else:
            pairs = [(s[:, :seen], t[:, :known])]
        return torch.stack([self.of_head(*pair) for pair in pairs]).mean()

    def of_head(self, s: Tensor, t: Tensor) -> Tensor:
        """Of one head's logits, (B, K) and those that the past self knows, (B, K or fewer)."""
        if self.targets == "hard":
            return cross_entropy(s, t.argmax(1))
        loss = self.temperature**2 * seen_classes_loss(s, t, self.temperature)
        return loss / s.shape[1] if self.over == "mean" else loss

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        number, old, seen = self.experience.number, self.experience.old, self.experience.seen
        new = self.student_out(batch.x)
        share = 1 / (number + 1)
        ce = new_classes_loss(new.logits[:, :seen], batch.y, old if self.labels == "new" else 0)
        reconstruction, latent = self.autoencoded(batch.x, new.embed)
        terms = {"ce": share * ce, "reconstruction": share * reconstruction, "latent": share * latent}
        if number:
            x = self.replayed(len(batch), batch.x)
            s, t = self.student_out(x), self.teacher_out(x, self.past)
            reconstruction, latent = self.autoencoded(x, s.embed)
            terms["replay"] = (1 - share) * self.replay_loss(s.logits, t.logits)
            terms["reconstruction"] = terms["reconstruction"] + (1 - share) * reconstruction
            terms["latent"] = terms["latent"] + (1 - share) * latent
        yield "student", terms
