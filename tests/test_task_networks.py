"""Networks for maps (segmentation, depth) and for policies: shapes, sizes and numbers against their definitions."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model_weights

from kdbench.errors import DoesNotFit, UserError
from kdbench.models import ZOOS, create, known, names
from kdbench.taps import probe
from kdbench.tasks.lookup import OURS

PYRAMIDS = {"fpn-resnet8": 8, "fpn-resnet20": 20}
TORCHVISION = (
    "torchvision/fcn_resnet50",
    "torchvision/deeplabv3_mobilenet_v3_large",
    "torchvision/lraspp_mobilenet_v3_large",
)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def pyramid(
    name: str = "fpn-resnet8", outputs: int = 5, task: str = "segmentation", size: tuple[int, int] = (24, 24)
) -> Any:
    torch.manual_seed(0)
    return create(name, (3, *size), outputs, task)


def test_every_task_has_its_own_zoo() -> None:
    assert names("segmentation") == names("depth") == list(PYRAMIDS)
    assert all(name.startswith("mlp-") for name in names("policy"))
    assert not {*names("segmentation"), *names("policy")} & {*names()}
    assert names() == names("classification")
    assert known("fpn-resnet8")
    assert known("resnet8")
    assert not known("fpn-resnet9")


def test_every_task_names_the_zoo_that_serves_it() -> None:
    own = {"segmentation": "segmentation", "depth": "depth", "policy": "policy", "gaussian-policy": "policy"}
    assert {name: task.zoo for name, task in OURS.items()} == {name: own.get(name, "classification") for name in OURS}
    assert {task.zoo for task in OURS.values()} == ZOOS.keys()


# --- maps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramids_have_the_parameters_of_their_definition(name: str) -> None:
    """3x3 convolutions and norms of a ResNet with projections, three laterals, one 3x3 convolution, the head."""
    n = (PYRAMIDS[name] - 2) // 6
    trunk = 9 * 3 * 16 + 2 * 16
    for c_in, c in ((16, 16), (16, 32), (32, 64)):
        trunk += 9 * c_in * c + (2 * n - 1) * 9 * c * c + 2 * n * 2 * c
        trunk += 0 if c_in == c else c_in * c + 2 * c
    decoder = sum((c + 1) * 32 for c in (16, 32, 64)) + 9 * 32 * 32 + 2 * 32
    for task, outputs in (("segmentation", 11), ("depth", 1)):
        assert sum(p.numel() for p in pyramid(name, outputs, task).parameters()) == trunk + decoder + 33 * outputs


@pytest.mark.parametrize("name", PYRAMIDS)
@pytest.mark.parametrize("size", [(8, 8), (24, 24), (33, 47), (120, 160), (180, 240)])
def test_maps_have_the_size_of_the_image_and_stages_halve_it(name: str, size: tuple[int, int]) -> None:
    spec = probe(name, pyramid(name, 11, size=size), (3, *size))
    halves = [size]
    for _ in range(3):
        halves.append(((halves[-1][0] + 1) // 2, (halves[-1][1] + 1) // 2))
    expected: dict[str, tuple[int, ...]] = {"stem": (16, *halves[1])}
    for i, (width, half) in enumerate(zip((16, 32, 64), halves[1:], strict=True), start=1):
        expected |= {f"pre{i}": (width, *half), f"stage{i}": (width, *half)}
    expected |= {"decoded": (32, *halves[1]), "logits": (11, *size)}
    assert list(spec.shapes.items()) == list(expected.items())
    assert spec.resolve(("stage*", "decoded")) == ("stage1", "stage2", "stage3", "decoded")


@torch.no_grad()
def test_the_decoder_adds_what_lies_below_and_enlarges() -> None:
    net, x = pyramid(size=(20, 28)).eval(), images(2, 3, 20, 28)
    taps = net.tap(x)
    one = {i: F.conv2d(taps[f"stage{i}"], net.laterals[i - 1].weight, net.laterals[i - 1].bias) for i in (1, 2, 3)}
    assert [tuple(value.shape[2:]) for value in one.values()] == [(10, 14), (5, 7), (3, 4)]
    rows, columns = torch.arange(5) * 3 // 5, torch.arange(7) * 4 // 7  # the nearest pixel above and to the left
    two = one[2] + one[3][:, :, rows][:, :, :, columns]
    finest = one[1] + two.repeat_interleave(2, 2).repeat_interleave(2, 3)
    conv, norm, _ = net.smooth
    decoded = F.relu(norm(F.conv2d(finest, conv.weight, padding=1)))
    torch.testing.assert_close(taps["decoded"], decoded)
    scores = F.conv2d(decoded, net.head.weight, net.head.bias)
    # Bilinear enlargement by two: inside the image each new pixel lies a quarter off an old one.
    inner = (
        9 * scores[:, :, :-1, :-1] + 3 * scores[:, :, 1:, :-1] + 3 * scores[:, :, :-1, 1:] + scores[:, :, 1:, 1:]
    ) / 16
    torch.testing.assert_close(taps["logits"][:, :, 1:-2:2, 1:-2:2], inner)
    assert torch.equal(net(x), taps["logits"])
    assert list(net.tap(x, ["stage2"])) == ["stage2", "logits"]
    with pytest.raises(KeyError):
        net.tap(x, ["embed"])


def test_depth_is_positive_and_its_logarithm_is_the_map() -> None:
    maps, depth, x = pyramid(outputs=1).eval(), pyramid(outputs=1, task="depth").eval(), images(2, 3, 24, 24)
    depth.load_state_dict(maps.state_dict())
    torch.testing.assert_close(depth(x), maps(x).exp())
    assert torch.equal(depth.tap(x)["logits"], depth(x))
    nn.init.zeros_(depth.head.weight)
    nn.init.constant_(depth.head.bias, -2.0)
    torch.testing.assert_close(depth(x), torch.full((2, 1, 24, 24), 0.1353353))  # exp(-2)


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_a_loss_on_the_map_reaches_every_parameter(task: str) -> None:
    net: Any = pyramid(task=task)
    net(images(4, 3, 24, 24)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_memory_format_changes_nothing() -> None:
    net, x = pyramid(size=(33, 47)).double().eval(), images(2, 3, 33, 47).double()
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for tap, value in other.tap(x.contiguous(memory_format=torch.channels_last)).items():
        torch.testing.assert_close(value, net.tap(x)[tap])


def test_names_in_the_state_dict_stay() -> None:
    keys = [key for key, _ in pyramid().named_parameters()]
    assert keys[:3] == ["stem.0.weight", "stem.1.weight", "stem.1.bias"]
    assert keys[-11:] == [
        *(f"laterals.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")),
        "smooth.0.weight",
        "smooth.1.weight",
        "smooth.1.bias",
        "head.weight",
        "head.bias",
    ]


def test_a_pyramid_cannot_be_cut() -> None:
    with pytest.raises(DoesNotFit, match="image classifiers"):
        pyramid().tail("stage2")


# --- torchvision's -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_networks_for_segmentation(name: str) -> None:
    shape = (3, 36, 48)  # 18, 9, 5, 3 rows and 24, 12, 6, 3 columns: ratios that round
    state = torch.get_rng_state()
    net: Any = create(name, shape, 11, "segmentation")
    assert net.training
    assert not torch.equal(state, torch.get_rng_state())
    spec = probe(name, net, shape)
    last = [] if "resnet" in name else ["stage3"]  # dilated: layers 2 to 4 have one resolution
    assert list(spec.shapes) == ["stem", "stage1", "stage2", *last, "logits"]
    sizes = {tap: size[1:] for tap, size in spec.shapes.items()}
    halves = {"stem": (18, 24), "stage1": (9, 12), "stage2": (5, 6)} | dict.fromkeys(last, (3, 3))
    assert sizes == halves | {"logits": (36, 48)}
    assert not any(getattr(module, "inplace", False) for module in net.modules())
    net.eval()
    x = images(2, *shape)
    taps = net.tap(x, ["stage2"])
    assert list(taps) == ["stage2", "logits"]
    assert torch.equal(taps["logits"], net(x))
    assert torch.equal(net(x), net.net(x)["out"])
    taps["stage2"].square().mean().backward()
    assert next(net.parameters()).grad.abs().sum() > 0
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(DoesNotFit, match="zoo"):
        net.tail("stage1")


@pytest.mark.parametrize("name", TORCHVISION)
def test_they_have_the_published_parameters_without_the_auxiliary_classifier(name: str) -> None:
    with_aux = {"fcn_resnet50": (1024, 256), "deeplabv3_mobilenet_v3_large": (40, 10)}
    plain = name.partition("/")[2]
    published = get_model_weights(plain).DEFAULT.meta["num_params"]  # type: ignore[attr-defined]
    c_in, mid = with_aux.get(plain, (0, 0))
    aux = 9 * c_in * mid + 2 * mid + (mid + 1) * 21 if mid else 0  # 3x3 convolution, norm, 1x1 convolution
    net = create(name, (3, 32, 32), 21, "segmentation")
    assert sum(p.numel() for p in net.parameters()) == published - aux


def test_torchvisions_network_for_depth_gives_the_exponential() -> None:
    net: Any = create("torchvision/lraspp_mobilenet_v3_large", (3, 32, 32), 1, "depth").eval()
    x = images(2, 3, 32, 32)
    assert net(x).shape == (2, 1, 32, 32)
    torch.testing.assert_close(net(x), net.net(x)["out"].exp())


# --- policies ------------------------------------------------------------------------------------------------------


def widths(name: str) -> list[int]:
    return [int(width) for width in name.split("-")[1:]]


@pytest.mark.parametrize("name", names("policy"))
def test_policies_are_tanh_layers_and_a_head(name: str) -> None:
    net: Any = create(name, (4,), 2, "policy").double()
    x = images(5, 4).double()
    found, hidden = net.tap(x), x
    for i, width in enumerate(widths(name), start=1):
        layer = net.stages[i - 1]
        hidden = torch.tanh(hidden @ layer.weight.T + layer.bias)
        assert hidden.shape == (5, width)
        torch.testing.assert_close(found[f"stage{i}"], hidden)
    torch.testing.assert_close(found["embed"], hidden)
    torch.testing.assert_close(found["logits"], hidden @ net.head.weight.T + net.head.bias)
    assert torch.equal(net(x), found["logits"])
    sizes = [4, *widths(name), 2]
    assert sum(p.numel() for p in net.parameters()) == sum((a + 1) * b for a, b in pairwise(sizes))
    shapes = {f"stage{i}": (width,) for i, width in enumerate(widths(name), start=1)}
    assert dict(probe(name, net, (4,)).shapes) == shapes | {"embed": (widths(name)[-1],), "logits": (2,)}


def test_policies_start_orthogonal_and_almost_uniform() -> None:
    torch.manual_seed(0)
    net: Any = create("mlp-64-64", (4,), 2, "policy")
    first, second = (layer.weight for layer in net.stages)
    torch.testing.assert_close(first.T @ first, 2 * torch.eye(4))
    torch.testing.assert_close(second @ second.T, 2 * torch.eye(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(net.head.weight @ net.head.weight.T, 1e-4 * torch.eye(2), atol=1e-9, rtol=0)
    assert not any(p.any() for key, p in net.named_parameters() if key.endswith("bias"))


def test_a_policy_can_be_cut_behind_each_layer() -> None:
    net: Any = create("mlp-64-64", (4,), 2, "policy").double()
    taps = net.tap(images(5, 4).double())
    for stage, later in (("stage1", ["stage2", "embed", "logits"]), ("stage2", ["embed", "logits"])):
        tail = net.tail(stage)
        assert list(tail.tap(taps[stage])) == later
        assert torch.equal(tail(taps[stage]), taps["logits"])
    with pytest.raises(DoesNotFit, match="stage1"):
        net.tail("stage2").tail("stage1")


# --- user errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "task", "sentence"),
    [
        ("resnet8", (3, 32, 32), "segmentation", "no network for segmentation: choose from fpn-resnet8, fpn-resnet20"),
        ("timm/resnet18", (3, 32, 32), "depth", "no network for depth: choose from fpn-resnet8"),
        ("torchvision/resnet18", (3, 32, 32), "segmentation", "did you mean torchvision/fcn_resnet"),
        ("torchvision/fcn_resnet50", (1, 32, 32), "segmentation", "3 channels"),
        ("fpn-resnet2", (3, 32, 32), "depth", "did you mean fpn-resnet20"),
        ("fpn-resnet8", (3, 4, 4), "depth", "at least 8x8"),
        ("fpn-resnet8", (4,), "depth", "not vectors of 4"),
        ("resnet8", (4,), "policy", "no network for policy: choose from mlp-8"),
        ("mlp-3", (4,), "policy", "did you mean mlp-"),
        ("mlp-64", (3, 8, 8), "policy", "not 3x8x8"),
        ("resnet8", (3, 8, 8), "chess", "choose from classification, segmentation, depth, policy"),
    ],
)
def test_a_users_mistake_is_one_sentence_with_the_mend(
    name: str, shape: tuple[int, ...], task: str, sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        create(name, shape, 5, task)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
