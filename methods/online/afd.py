"""Feature-map-level online adversarial knowledge distillation (Chung et al., ICML 2020, arXiv:2002.01775)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method, Player
from kdbench.settings import Positive, Temperature, Weight
from kdbench.taps import Out, Spec, Taps

Peers = Annotated[int, Field(ge=2, le=100)]


@in_float32
def fooling_loss(own: Tensor) -> Tensor:
    """[1 - D_k(F_k)]² of what a network's discriminator says of the network's own maps, (B,), averaged over B."""
    return (1 - own).square().mean()


@in_float32
def telling_loss(own: Tensor, next_: Tensor) -> Tensor:
    """[1 - D_k(F_{k+1})]² + [D_k(F_k)]² of a discriminator's outputs, each (B,), averaged over the batch."""
    return (1 - next_).square().mean() + own.square().mean()


@in_float32
def alignment_loss(own: Tensor, next_: Tensor) -> Tensor:
    """‖F_k - F_{k+1}‖₁ of maps (B, C, H, W), averaged over all elements; no gradient reaches the next network's."""
    return (own - next_.detach()).abs().mean()


class Discriminator(nn.Sequential):
    """Convolution, batch norm, leaky ReLU, convolution and sigmoid: is a map (B, C, H, W) the next network's? (B,)."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 1, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(0),
            nn.Sigmoid(),
        )


class _Cycle(Method):
    """Networks in a ring, each taught by the next one; of two each teaches the other."""

    leaf = "online/individual-students"
    paper = "chung2020featuremaplevel"
    needs = frozenset({"labels", "peers"})
    taps = Taps(student=("stage-1",))

    def __init__(self, peers: Peers = 2, temperature: Temperature = 3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_peers, self.temperature = peers, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.peers = nn.ModuleList([self.student, *(self.spawn(k) for k in range(1, self.num_peers))])
        self.last = student.all("stage")[-1]

    def players(self) -> Sequence[Player]:
        return [Player(f"peer{k}", list(peer.parameters())) for k, peer in enumerate(self.peers)]

    def ring(self, x: Tensor) -> list[tuple[Out, Out]]:
        """What each network says of images, beside what the next one says."""
        outs = [self.student_out(x, peer) for peer in self.peers]
        return list(zip(outs, [*outs[1:], outs[0]], strict=True))

    def logit_terms(self, own: Out, next_: Out, y: Tensor) -> dict[str, Tensor]:
        return {"ce": cross_entropy(own.logits, y), "kd": kl(own.logits, next_.logits.detach(), self.temperature)}


class AFD(_Cycle):
    """Networks in a ring learn the next one's logits, and by discriminators the distribution of its maps.

    Logits k:         L = CE(y, z_k) + T² · KL( z_{k+1} || z_k )
    Maps k:           L = [1 - D_k(F_k)]²
    Discriminator k:  L = [1 - D_k(F_{k+1})]² + [D_k(F_k)]²

    F_k is the last map of network k, which steps twice for a batch: on its logits by the protocol's optimiser, then on
    its maps, looked at anew, by an Adam like the discriminators'. Peers have one architecture here, and so their maps
    need no layer that brings them to one size. The first network is deployed.

    Args:
        peers: networks in the ring; with two each teaches the other.
        temperature: T.
        map_lr: learning rate of the Adams.
        map_decay: their weight decay.
    """

    title = "AFD"
    terms = ("ce", "kd", "fooling", "telling")
    survey: ClassVar = {
        "type": "individual students",
        "students": "2 or more, in a ring",
        "targets": "the next network's logits and maps",
        "loss": "CE + KL + adversarial",
        "adaptation": "discriminator of last maps",
    }

    def __init__(
        self,
        peers: Peers = 2,
        temperature: Temperature = 3.0,
        map_lr: Positive = 2e-5,
        map_decay: Weight = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(peers, temperature, **kwargs)
        self.map_lr, self.map_decay = map_lr, map_decay

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        channels = student.channels(self.last)
        self.discriminators = nn.ModuleList([Discriminator(channels) for _ in self.peers])

    def players(self) -> Sequence[Player]:
        adam = {"_target_": "torch.optim.Adam", "lr": self.map_lr, "weight_decay": self.map_decay}
        nets = {"maps": self.peers, "discriminator": self.discriminators}
        parts = [(f"{name}{k}", net) for name, each in nets.items() for k, net in enumerate(each)]
        return [*super().players(), *(Player(name, list(net.parameters()), adam) for name, net in parts)]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for k, (own, next_) in enumerate(self.ring(batch.x)):
            yield f"peer{k}", self.logit_terms(own, next_, batch.y)
        maps = [(own[self.last], next_[self.last].detach()) for own, next_ in self.ring(batch.x)]
        for k, (own_map, _) in enumerate(maps):
            yield f"maps{k}", {"fooling": fooling_loss(self.discriminators[k](own_map))}
        for k, (own_map, next_map) in enumerate(maps):
            scores = self.discriminators[k](own_map.detach()), self.discriminators[k](next_map)
            yield f"discriminator{k}", {"telling": telling_loss(*scores)}


class AFDDirect(_Cycle):
    """Networks in a ring learn the next one's logits, and its maps directly: what AFD is compared with.

    L_k = CE(y, z_k) + T² · KL( z_{k+1} || z_k ) + λ · ‖F_k - F_{k+1}‖₁,  see `alignment_loss`

    F_k is the last map of network k; the first one is deployed.

    Args:
        peers: networks in the ring; with two each teaches the other.
        temperature: T.
    """

    title = "AFD, direct alignment"
    terms = ("ce", "kd", "alignment")
    survey: ClassVar = AFD.survey | {"loss": "CE + KL + L1", "adaptation": "none"}

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for k, (own, next_) in enumerate(self.ring(batch.x)):
            alignment = alignment_loss(own[self.last], next_[self.last])
            yield f"peer{k}", {**self.logit_terms(own, next_, batch.y), "alignment": alignment}
