"""Have weights from elsewhere teach: measured as they are, or fine-tuned with a new head."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from kdbench.compute.device import device_name
from kdbench.data.datasets import Dataset
from kdbench.engine.cell import known_to
from kdbench.engine.job import Job
from kdbench.engine.run import Bench
from kdbench.engine.seeding import seeded
from kdbench.errors import UserError
from kdbench.measures import TOP1
from kdbench.protocol import Protocol
from kdbench.tasks import task_for
from kdbench.teaching.agreement import PLAIN, judged, measure, measured_by_bits, percent
from kdbench.teaching.brought import Brought, brought, fitted
from kdbench.teaching.frozen import FrozenTeacher
from kdbench.teaching.recipe import TeacherConfig, dataset_identity, recipe_of
from kdbench.teaching.teachers import Teacher, create, serialized


def bring(bench: Bench, job: Job, source: str, *, new_head: bool) -> Teacher:
    """The teacher whose weights `source` names, for the data of a job; see `kdbench.teaching.brought`.

    Args:
        new_head: replace its head, and fine-tune it as the job says that teachers are trained.

    Raises:
        UserError: the weights are not to be had, or are of another network or of other classes.
    """
    weights, protocol = brought(source), Protocol.of(job.protocol)
    channels = bench.dataset(dataset_identity(job.dataset)).for_teacher.spec.shape[0]
    config = _config(job, weights, new_head, channels)
    recipe = recipe_of(config, job.dataset, protocol, known=known_to(job), pair=job.pair.teacher)
    data = bench.dataset(recipe["dataset"])
    if weights.size and weights.size != data.spec.shape[1:]:
        recipe["name"] += "@{}x{}".format(*weights.size) if len({*weights.size}) > 1 else f"@{weights.size[0]}"
    with seeded("brought"):
        net = create(recipe["name"], data.spec)
    rows = None if new_head else weights.rows(data.classes)
    state = weights.weights(data.spec.shape[0])
    state = fitted(state, net, recipe["name"], weights.label, new_head=new_head, rows=rows)
    if new_head:
        recipe["weights"] = hashlib.sha256(serialized(state)).hexdigest()
        return bench.teacher(recipe, start=(state, weights.origin))
    net.load_state_dict({**net.state_dict(), **state})
    whole = net.state_dict()
    recipe = {key: recipe[key] for key in ("name", "dataset")}
    recipe["weights"] = hashlib.sha256(serialized(whole)).hexdigest()
    if found := bench.teachers.find(recipe, data):
        return found
    bench.teachers.check_room(net)
    return bench.teachers.save(
        recipe,
        data,
        whole,
        accuracy=_reached(net, data, protocol, bench.device),
        curve=[],
        device=device_name(bench.device),
        torch=torch.__version__,
        measure=TOP1 if (task := task_for(data.spec)).cumulative else task.primary,
        origin=weights.origin,
    )


def _config(job: Job, weights: Brought, new_head: bool, channels: int) -> TeacherConfig:
    """What a job says of its teacher, with what the weights say of themselves.

    Of grey images the mean and std are the averages of those of colours, as weights for these are summed over them.

    Raises:
        UserError: it says something that nothing would read.
    """
    config = job.teacher
    unread = ("weights", "sha256", "teacher") if new_head else ("weights", "sha256", "teacher", "epochs")
    for key in unread:
        if getattr(config, key) is not None:
            raise UserError(f"teacher.{key} says nothing of a teacher that is brought: leave it out.")
    own = {}
    for key, values in {"mean": weights.mean, "std": weights.std}.items():
        if values and len(values) == channels:
            own[key] = list(values)
        elif values and channels == 1:
            own[key] = [sum(values) / len(values)]
    dataset = {**own, **(config.dataset or {})}
    return config.model_copy(update={"name": weights.name or config.name, "dataset": dataset or None})


def _reached(net: nn.Module, data: Dataset, protocol: Protocol, device: torch.device) -> float:
    """What the float32 network says of the test set, by the measure of the data's task."""
    frozen = FrozenTeacher(net, data.spec.shape, PLAIN, protocol.batch_size).to(device)
    if measured_by_bits(data):
        return percent(measure(frozen, data, "32-true").right)
    return judged(frozen.plain, data, device)
