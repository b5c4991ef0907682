"""Lower bounds on the mutual information of teacher and student that follow from a loss; all in nats."""

from __future__ import annotations

import math


def gaussian_bound(nll: float) -> float:
    """E log q(t | s) for each activation, from the mean of `vid_loss`, which leaves the constant ½ log 2π out.

    I(T; S) >= H(T) + E log q(t | s) (Barber & Agakov, NIPS 2003), with equality where q is the posterior. H(T) is not
    known, but the teacher's alone: no student changes it.
    """
    return -nll - 0.5 * math.log(2 * math.pi)


def nce_bound(nce: float, negatives: int) -> float:
    """log K - `nce_loss` <= I(T; S) (Tian et al., ICLR 2020, section 3.1), for K keys from the product of marginals.

    The best critic leaves one nat less than I(T; S) as K grows: so much is what negatives alone cost.
    """
    return math.log(negatives) - nce


def info_nce_bound(info_nce: float, negatives: int) -> float:
    """log(K + 1) - `info_nce_loss` <= I(T; S) (van den Oord et al., arXiv:1807.03748, section 2.3); K as above.

    It is close where I(T; S) is far below log(K + 1), which it never exceeds.
    """
    return math.log(negatives + 1) - info_nce


__all__ = ["gaussian_bound", "info_nce_bound", "nce_bound"]
