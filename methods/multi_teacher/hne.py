"""Distilled hierarchical neural ensembles (Ruiz and Verbeek, 2020, arXiv:2003.01474)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps
from methods.online.trunk import branches


@in_float32
def hierarchical_loss(leaves: Sequence[Tensor], temperature: float = 2.0) -> Tensor:
    """Σ_b T² · KL( softmax(E_B / T) || softmax(E_b / T) ) over b = 0 ... B - 1, of 2^B models' logits, each (B, K).

    E_b = (z_1 + ... + z_n) / n for the first n = 2^b of them, which share the more layers the fewer they are. The whole
    ensemble E_B teaches all that are nested in it; no gradient reaches it. Summed over classes, batch mean;
    in float64, for the nested are near to the whole.
    """
    z = torch.stack(list(leaves)).double()
    whole = z.mean(0).detach()
    nested = [z[: 2**b].mean(0) for b in range((len(z) - 1).bit_length())]
    return torch.stack([kl(ensemble, whole, temperature) for ensemble in nested]).sum().to(leaves[0].dtype)


class HNE(Method):
    """A tree of networks, which fork behind each of the last stages, is taught by the ensemble of all its leaves.

    L = (1 - α) · Σ_n CE(y, z_n) + α · `hierarchical_loss`(z_1, ..., z_N)

    with α in ``weights``. The student is trunk and first leaf in one, and is deployed; other branches are as its end,
    freshly initialised. The passes through them alone do not count as forward passes.

    Args:
        forks: B, the levels of the binary tree, which has N = 2^B leaves.
        temperature: T.
    """

    leaf = "multi-teacher/sub-teachers"
    paper = "ruiz2020distilled"
    title = "HNE"
    needs = frozenset({"labels", "peers"})
    taps = Taps(student=("stage*",))
    terms = ("ce", "distillation")
    survey: ClassVar = {
        "ensemble_logits": "mean of all leaves of a tree of networks",
        "ensemble_features": "none",
        "unify_data": "no",
        "customize": "no",
        "peers": "yes",
        "online": "yes",
        "objective": "CE + KL",
    }

    def __init__(
        self, forks: Annotated[int, Field(ge=1, le=5)] = 2, temperature: Temperature = 2.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_forks, self.temperature = forks, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        stages = student.all("stage")
        if len(stages) <= self.num_forks:
            raise DoesNotFit(
                f"HNE forks behind {self.num_forks} of the student's stages, and {student.name} has {len(stages)} with "
                "the last: choose fewer (method.hne.forks)."
            )
        self.forks = stages[-1 - self.num_forks : -1]

        def spawn_behind(before: int) -> Callable[[int], nn.Module]:
            return lambda k: self.spawn(before + k)

        self.branches = nn.ModuleList(
            branches(spawn_behind(2**level - 1), after, 2**level) for level, after in enumerate(self.forks)
        )

    def leaves(self, path: Mapping[str, Tensor], branches: Sequence[Iterator[Any]], level: int = 0) -> list[Tensor]:
        """Logits of all leaves below a path, whose own comes first: those that share most with it are next to it."""
        if level == self.num_forks:
            return [path["logits"]]
        first = self.leaves(path, branches, level + 1)
        other = next(branches[level]).tap(path[self.forks[level]], self.forks[level + 1 :])
        return first + self.leaves(other, branches, level + 1)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        logits = self.leaves(s.taps, [iter(of_level) for of_level in self.branches])  # type: ignore[call-overload]
        return {
            "ce": torch.stack([cross_entropy(z, batch.y) for z in logits]).sum(),
            "distillation": hierarchical_loss(logits, self.temperature),
        }
