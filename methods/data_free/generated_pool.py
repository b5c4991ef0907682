"""Pools whose images a generator makes, kept as pixels: what CMI and FastDFKD share."""

from __future__ import annotations

from torch import Tensor

from kdbench.data.batch import DataSpec
from kdbench.errors import DoesNotFit
from kdbench.taps import Spec
from methods.data_free.deep_inversion import Statistics
from methods.data_free.generators import PixelGenerator
from methods.data_free.pool import Pool
from methods.data_free.views import shifted_crop
from methods.data_free.zskd import Pixels

SHIFT = 4
"""Pixels by which images are moved at most, as in zju-vipa/DataFree."""


class GeneratedPool(Pool):
    """`Pool` of images in 0..1; each is moved and mirrored anew (`seen`) whenever a network sees it.

    A subclass has `noise`, the size of the generator's input, and `flip`, whether a mirrored image is of its class
    still.
    """

    noise: int
    flip: bool

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        super().build(student, teacher, data)
        if min(data.shape[1:]) < 4:
            raise DoesNotFit(
                f"{self.title}'s generator makes images of at least 4x4, not {data.shape}: choose another data set."
            )
        self.net = (Statistics.kept_by(teacher, self.title),)  # a tuple hides the teacher's weights from nn.Module
        self.pixels = Pixels(data)
        self.generator = PixelGenerator(self.noise, data.shape)

    def seen(self, x: Tensor) -> Tensor:
        """What networks see of images in 0..1."""
        return self.pixels(shifted_crop(x, SHIFT, self.flip, self.rng))

    def drawn(self, n: int) -> Tensor:
        return self.seen(super().drawn(n))
