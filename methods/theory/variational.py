"""The variational bound of VID, logged (Ahn et al., CVPR 2019, arXiv:1904.05835)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from methods.intermediate.bounds import gaussian_bound
from methods.intermediate.vid import VID


class VariationalBound(VID):
    """L = CE(y, s) + λ · Σ_stages `vid_loss`, as VID, and after each epoch the bound that it raises.

    I(T; S) >= H(T) + E log q(t | s). Logged is E log q(t | s), in nats for each activation, averaged over stages: H(T)
    is the teacher's alone (see `gaussian_bound`).
    """

    leaf = "theory"
    title = "VID, its bound"
    survey: ClassVar = {"bound": "H(T) + E log q(t | s), q Gaussian"}

    def bounds(self, means: Mapping[str, float]) -> dict[str, float]:
        return {"log_likelihood": gaussian_bound(means["vid"] / len(self.pairs))}
