"""Actor-Mimic (Parisotto et al., ICLR 2016, arXiv:1511.06342)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.settings import Count, Temperature
from kdbench.taps import Out, Spec, Taps
from methods.controls.playing import Playing

Form = Literal["paper", "both"]
FLOOR = 1e-8
"""What form ``both`` adds to the student's probabilities."""


@in_float32
def mimic_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0, form: Form = "paper") -> Tensor:
    """H( softmax(q_t / τ), softmax(s) ), summed over actions, averaged over the batch (policy regression).

    ``both`` divides the student's scores by τ, too, and takes log(p + 1e-8) (Tony-Cheng/Active-Actor-Mimic, which sums
    over the batch).

    Args:
        student, teacher: action scores, (B, A); no gradient reaches `teacher`.
    """
    target = (teacher.detach() / temperature).softmax(1)
    if form == "paper":
        return cross_entropy(student, target)
    return -(target * ((student / temperature).softmax(1) + FLOOR).log()).sum(1).mean()


@in_float32
def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖ f(h_s) - h_t ‖², summed over the D units, averaged over the batch (feature regression); both (B, D).

    Tony-Cheng/Active-Actor-Mimic averages over units, and has no f.
    """
    return (student - teacher.detach()).square().sum(1).mean()


class ActorMimic(Playing):
    """L = `mimic_loss`(s, t) + β · `feature_loss`(f(h_s), h_t) on the states that the student meets.

    A batch of B steps is played by the student in `envs` environments side by side, actions drawn from softmax(s); it
    sees no reward. f is a linear layer, h the last hidden layer. The paper has experts of several games; here there is
    one, and its scores are whatever the recipe trains.

    Args:
        envs: environments.
        temperature: τ.
    """

    leaf = "learning/reinforcement"
    paper = "parisotto2016actor"
    title = "Actor-Mimic"
    extension = True
    needs = frozenset({"teacher"})
    terms = ("policy", "feature")
    taps = Taps(student=("embed",), teacher=("embed",))
    survey: ClassVar = {
        "knowledge": "action scores and hidden features on the student's own states",
        "objective": "CE(t/τ, s) + β MSE of features",
    }

    def __init__(self, envs: Count = 8, temperature: Temperature = 1.0, form: Form = "paper", **kwargs: Any) -> None:
        super().__init__(envs=envs, **kwargs)
        self.temperature, self.form = temperature, form

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.regress = nn.Linear(student.channels("embed"), teacher.channels("embed"))

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        play = self.play.at(self.epoch, self.device)
        steps = play.rollout(len(batch), lambda seen: play.sampled(self.student_out(seen).logits))
        x = steps.x.flatten(0, 1)
        yield "student", self.losses(self.student_out(x), self.teacher_out(x), batch)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "policy": mimic_loss(s.logits, t.logits, self.temperature, self.form),
            "feature": feature_loss(self.regress(s.embed), t.embed),
        }
