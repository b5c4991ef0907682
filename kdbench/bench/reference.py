"""The plain loop that the engine is measured against: one method at a time, as public KD code trains it.

As HobbitLong/RepDistiller (train_student.py, helper/loops.py), megvii-research/mdistiller and torchvision's
references/classification do: PIL images, of large ones their files, through torchvision's transforms in two DataLoader
workers, batches of 64, float32, eager, NCHW, the teacher run live in every step, and loss and accuracy read back to the
host each time. Losses are the method's own, so that they cost the same on both sides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from kdbench.bench.setting import WORKERS, Setting
from kdbench.data.batch import Batch
from kdbench.data.datasets import Dataset
from kdbench.data.manifest import ImageFiles
from kdbench.method import Method
from kdbench.taps import Out, probe

WARM = 3
"""Steps before the clock starts, in every turn: buffers are allocated, and the workers' queues are full."""


class Images(TorchDataset[tuple[Tensor, int]]):
    """The training images of a data set as PIL images, transformed one by one."""

    def __init__(self, data: Dataset) -> None:
        images, self.labels = data.train.images, data.train.labels.tolist()
        self.images = images if isinstance(images, ImageFiles) else images.numpy()
        crop: list[Any] = [transforms.RandomCrop(data.spec.shape[1:], padding=data.pad)] if data.pad else []
        if data.crops:
            crop = [transforms.RandomResizedCrop(data.crops.size, data.crops.scale, data.crops.ratio)]
        flip = [transforms.RandomHorizontalFlip()] if data.flip else []
        self.transform = transforms.Compose(
            [*crop, *flip, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if isinstance(self.images, ImageFiles):
            with Image.open(self.images.path(index)) as file:
                image = file.convert("RGB")
        else:
            image = Image.fromarray(self.images[index])
        return self.transform(image), self.labels[index]


class Reference:
    """One method in the plain loop; its student keeps learning from turn to turn."""

    def __init__(self, setting: Setting, name: str) -> None:
        self.device, self.protocol = setting.device, setting.protocol()
        teacher = setting.network(setting.teacher).to(self.device) if setting.taught(name) else None
        self.method: Method = setting.method(name, self.protocol, teacher).to(self.device)
        self.images = Images(setting.dataset)
        self.teacher = teacher
        shape = setting.dataset.spec.shape
        self.student_taps = probe("student", self.method.student, shape).resolve(self.method.taps.student)
        self.teacher_taps = probe("teacher", teacher, shape).resolve(self.method.taps.teacher) if teacher else ()
        assert self.method._weights is not None  # bind has seen to that
        self.weights = {term: ramp.at(0, 1) for term, ramp in self.method._weights.items()}
        self.optimizer = torch.optim.SGD(self.method.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.losses: list[float] = []

    def loader(self) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            self.images,
            self.protocol.batch_size,
            shuffle=True,
            num_workers=WORKERS,
            pin_memory=self.device.type == "cuda",
            drop_last=True,  # so that every step is of a full batch, as the engine's timed steps are
        )

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted loss of a batch, and the student's logits."""
        s, t = Out(self.method.student.tap(x, self.student_taps)), None  # type: ignore[operator]
        if self.teacher is not None:
            with torch.no_grad():
                t = Out(self.teacher.tap(x, self.teacher_taps))  # type: ignore[operator]
        terms = self.method.losses(s, t, Batch.of((x, y)))  # type: ignore[arg-type]
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum(), s.logits

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step; returns the accuracy on its batch."""
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        loss, logits = self.loss(x, y)
        accuracy = (logits.argmax(1) == y).float().mean().item()
        self.losses.append(loss.item())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return accuracy

    def turn(self, steps: int) -> float:
        """Seconds per step over `steps` steps, waiting for data included, the first `WARM` left out."""
        batches: Iterator[tuple[Tensor, Tensor]] = iter(self.loader())
        for _ in range(WARM):
            self.step(*next(batches))
        synchronise(self.device)
        began = time.perf_counter()
        for _ in range(steps):
            self.step(*next(batches))
        synchronise(self.device)
        return (time.perf_counter() - began) / steps


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
