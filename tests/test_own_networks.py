"""Networks of the user's own, by dotted path: what they are called, what they are told, what taps they have."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Kdbench
from test_cli import one_sentence
from torch import nn

from kdbench import models
from kdbench.errors import DoesNotFit, UserError
from kdbench.networks import is_own, read, sized, spelled
from kdbench.source import network_hash
from kdbench.taps import probe

NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    """Convolution, pooling, one linear layer."""

    def __init__(self, num_classes=10, in_channels=3, width=4):
        super().__init__()
        self.conv, self.spare = nn.Conv2d(in_channels, width, 3), nn.Linear(width, width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.spare(torch.relu(self.conv(x)).mean((2, 3)))))


class Scaled(Net):
    """Its last layer does not make the logits."""

    def forward(self, x):
        return 2 * super().forward(x)


class Tapped(Net):
    def tap(self, x, names=None):
        h = torch.relu(self.conv(x))
        taps = {"stage1": h, "logits": self.fc(torch.relu(self.spare(h.mean((2, 3)))))}
        return taps if names is None else {name: taps[name] for name in (*names, "logits")}


def fixed():
    return Net(7, 3)


def timmish(in_chans=3, **kwargs):
    return Net(in_channels=in_chans, **kwargs)


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


def broken():
    raise ValueError("no such thing")


nothing = nn.Flatten
there = Net()
'''


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("nets", None)


def rewrite(path: Path, text: str) -> None:
    """Edit a module that was imported; Python may take its bytecode for that of a text of the same size and second."""
    sys.modules.pop(path.stem, None)
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    path.write_text(text)


def test_a_network_has_one_name_whatever_way_it_is_said() -> None:
    name = spelled({"_target_": "mynet.Net", "width": 2, "act": "relu", "depths": [1, 2], "norm": None})
    assert name == "mynet.Net(act='relu', depths=[1, 2], norm=None, width=2)"
    assert spelled("mynet.Net( width=2,norm=None , depths=[1,2], act='relu')") == name
    assert spelled(name + "@64x48") == name + "@64x48"
    assert read(name) == ("mynet.Net", {"act": "relu", "depths": [1, 2], "norm": None, "width": 2})
    assert spelled({"_target_": "mynet.Net"}) == "mynet.Net"
    assert sized("torchvision/resnet18@64") == ("torchvision/resnet18", (64, 64))
    assert sized("mynet.Net(width=2)@64x48") == ("mynet.Net(width=2)", (64, 48))
    assert sized("mynet.Net(way='a@2')") == ("mynet.Net(way='a@2')", None)
    assert [name for name in models.names() if is_own(name) or spelled(name) != name] == []  # as resnet8x0.25
    assert not is_own("timm/resnet18.a1_in1k")
    assert is_own("mynet.Net(width=2)@8")


@pytest.mark.parametrize(
    "bad",
    [
        {"width": 2},
        {"_target_": "Net"},
        {"_target_": "mynet.Net", "_partial_": True},
        "mynet.Net(2)",
        "mynet.Net(width=__import__('os'))",
        "mynet.Net(**{'width': 2})",
        "mynet.Net(width=2",
    ],
)
def test_what_cannot_be_a_name_is_refused_in_a_sentence(bad: Any) -> None:
    with pytest.raises(UserError, match=r"_target_: mynet.Net, width: 2"):
        spelled(bad)


def test_a_constructor_is_told_classes_and_channels(nets: None) -> None:
    net: Any = models.create("nets.Net", (1, 8, 8), 5)
    assert net.net.conv.in_channels == 1
    assert net.net.fc.out_features == 5
    assert models.create("nets.Net(width=6)", (1, 8, 8), 5).net.conv.out_channels == 6  # type: ignore[union-attr]
    told: Any = models.create("nets.timmish", (2, 8, 8), 3)
    assert told.net.conv.in_channels == 2
    assert told.net.fc.out_features == 3
    assert models.create("nets.fixed", (3, 8, 8), 7)


def test_a_plain_network_has_logits_and_what_its_last_layer_reads(nets: None) -> None:
    net: Any = models.create("nets.Net(width=6)", (3, 8, 8), 5).eval()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert probe("net", net, (3, 8, 8)).shapes == {"embed": (6,), "logits": (5,)}
    taps = net.tap(x, ("embed",))
    by_hand = torch.relu(net.net.spare(torch.relu(net.net.conv(x)).mean((2, 3))))
    torch.testing.assert_close(taps["embed"], by_hand)
    torch.testing.assert_close(taps["logits"], by_hand @ net.net.fc.weight.T + net.net.fc.bias)
    assert net.head is net.net.fc
    with pytest.raises(DoesNotFit, match=r"nets.Net has no tap 'stage-1' \(it has embed, logits\)"):
        probe("nets.Net", net, (3, 8, 8)).resolve(("stage-1",))
    other: Any = models.create("nets.Scaled", (3, 8, 8), 5)
    assert probe("other", other, (3, 8, 8)).shapes == {"logits": (5,)}
    with pytest.raises(DoesNotFit, match="does not end in one linear layer"):
        _ = other.head


def test_a_network_may_have_taps_of_its_own(nets: None) -> None:
    net = models.create("nets.Tapped", (3, 8, 8), 5)
    assert type(net).__name__ == "Tapped"
    assert probe("net", net, (3, 8, 8)).shapes == {"stage1": (4, 6, 6), "logits": (5,)}


def test_the_trial_leaves_no_trace(nets: None) -> None:
    models.create("nets.Net", (3, 8, 8), 5)  # imports the file, which draws weights
    torch.manual_seed(0)
    state = torch.get_rng_state()
    nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 5)  # as the constructor draws
    want = torch.rand(3)
    torch.set_rng_state(state)
    net = models.create("nets.Net", (3, 8, 8), 5)
    assert torch.equal(torch.rand(3), want)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("nets.fixed", (3, 8, 8), "gives 7 logits, and the data have 10 classes: have its constructor take"),
        ("nets.fixed", (1, 8, 8), "have its constructor take in_channels"),
        ("nets.Net(wdith=2)", (3, 8, 8), "no setting 'wdith': did you mean width"),
        ("nets.Net(width='a')", (3, 8, 8), "cannot be made with width='a', num_classes=10, in_channels=3"),
        ("nets.Pair", (3, 8, 8), "gives a tuple for two inputs, not logits"),
        ("nets.broken", (3, 8, 8), "ValueError: no such thing"),
        ("nets.nothing", (3, 8, 8), "has no parameters"),
        ("nets.there", (3, 8, 8), "no class or function that makes a network, but a Net"),
        ("nets.missing", (3, 8, 8), "has no attribute 'missing'"),
        ("no_such_file.Net", (3, 8, 8), "PYTHONPATH"),
        ("builtins.dict", (3, 8, 8), "makes a dict, no torch.nn.Module"),
        ("resnet21", (3, 32, 32), "or one of your own, as mynet.Net"),
    ],
)
def test_what_is_wrong_with_a_network_is_one_sentence(
    nets: None, name: str, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(UserError) as error:
        models.create(name, shape, 10)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_network_may_see_images_at_its_own_size() -> None:
    net: Any = models.create("resnet8@16x24", (3, 8, 8), 10).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    larger = F.interpolate(x, (16, 24), mode="bilinear", align_corners=False)  # what enlarges needs no antialiasing
    with torch.no_grad():
        want, got = net.net.tap(larger), net.tap(x)
        assert got.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(x), want["logits"], rtol=1e-4, atol=1e-5)
    smaller: Any = models.create("resnet8@8", (1, 64, 64), 10)
    columns = (torch.arange(64) % 8 == 0).float().expand(1, 1, 64, 64)  # one of eight is white: samples see 0 or 1
    torch.testing.assert_close(smaller._seen(columns).mean(), torch.tensor(1 / 8), rtol=0.1, atol=0)
    with pytest.raises(UserError, match="only image classifiers"):
        models.create("fpn-resnet8@16", (3, 8, 8), 10, "segmentation")


def test_the_hash_is_that_of_the_code(nets: None, tmp_path: Path) -> None:
    assert network_hash("resnet20") is network_hash("torchvision/resnet18@64") is None
    before = network_hash("nets.Net(width=2)")
    assert before
    assert before == network_hash("nets.Net@64") == network_hash("nets.fixed")

    def changed(text: str) -> str | None:
        rewrite(tmp_path / "nets.py", text)
        return network_hash("nets.Net")

    assert changed(NETS.replace('"""Convolution, pooling, one linear layer."""', '"""Another docstring."""')) == before
    assert changed(NETS.replace("torch.relu(self.conv(x)).mean", "torch.tanh(self.conv(x)).mean")) != before


def test_an_own_network_is_student_and_teacher(kd: Kdbench) -> None:
    (kd.root / "nets.py").write_text(NETS)
    student = "pair.student={_target_: nets.Net, width: 3}"
    result = kd.run("method=[kd,at]", student, "pair.teacher=nets.Net")
    assert result.messages == [
        "left out: at nets.Net-nets.Net(width=3) digits seed 0: nets.Net(width=3) has no tap 'stage*' (it has embed, "
        "logits): choose another pair or tap."
    ]
    record = kd.record("kd")
    assert record.cell.pair == "nets.Net-nets.Net(width=3)"
    assert record.config["student"] == "nets.Net(width=3)"
    assert record.cost.student_params == 3 * 1 * 9 + 3 + 2 * (3 * 3) + 3 + 3 * 7 + 10
    code = network_hash("nets.Net")
    assert record.networks == {"nets.Net": code, "nets.Net(width=3)": code}
    assert "1 already done" in kd.run("method=kd", "pair.student='nets.Net(width=3)'", "pair.teacher=nets.Net").out

    rewrite(kd.root / "nets.py", NETS.replace("torch.relu(self.spare", "torch.tanh(self.spare"))
    changed = kd.run("method=kd", student, "pair.teacher=nets.Net")
    one_sentence(changed, "made by other code of the network nets.Net", "force=true")
