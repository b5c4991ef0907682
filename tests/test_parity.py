"""Our losses and their gradients against values of the public reference implementations (``golden/SOURCES.json``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_families import FAMILIES
from parity_teachers import TEACHERS
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, kl
from kdbench.method import Method
from kdbench.taps import Out
from methods.data_free.dafl import activation_loss, information_entropy_loss, one_hot_loss
from methods.intermediate.at import AT, at_loss
from methods.intermediate.fitnet import Regressor, hint_loss
from methods.intermediate.pkt import PKT
from methods.intermediate.sp import SP, sp_loss
from methods.intermediate.vid import VariationalLayer
from methods.logits.dkd import DKD, dkd_terms
from methods.logits.kd import KD
from methods.logits.label_smoothing import LabelSmoothing
from methods.logits.logits_mse import LogitsMSE, logits_mse_loss
from methods.logits.noisy_teacher import noisy_logits
from methods.logits.rkd import RKD
from methods.online.dml import mutual_loss
from methods.teacher_free.byot import BYOT

GOLDEN = Path(__file__).parent / "golden"
SOURCES: dict[str, Any] = json.loads((GOLDEN / "SOURCES.json").read_text(encoding="utf-8"))["cases"]

# Arrays of the files that no test needs, with the reason; everything else must be read or reproduced.
UNUSED = {
    "fitnet": {
        "buffer_regressor.bn.running_mean": "not used in train mode",
        "buffer_regressor.bn.running_var": "not used in train mode",
    },
    "gkd": {"target": "no edge is left out by class in this case"},
    "irg_caffe": {
        "grad_student_embed": "of the authors' hand-written backward pass: half of the next",
        "grad_autodiff_maxconst__student_embed": "takes the largest distance for a constant, ours has its gradient",
        "grad_transform__student_vec_0": "the same",
        "grad_transform__student_vec_1": "the same",
    },
}


class Arrays:
    """One golden file as tensors; remembers what was read, and whose gradients are asked for."""

    def __init__(self, values: Mapping[str, np.ndarray], dtype: torch.dtype) -> None:
        self.values, self.dtype = values, dtype
        self.leaves: dict[str, Tensor] = {}
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        """An input; float arrays in the dtype under test."""
        self.read.add(name)
        value = torch.from_numpy(self.values[name])
        return value.to(self.dtype) if value.is_floating_point() else value

    def leaf(self, name: str) -> Tensor:
        """An input that gradients are taken of."""
        return self.leaves.setdefault(name, self[name].requires_grad_())

    def load(self, module: nn.Module, names: Mapping[str, str]) -> None:
        """Copy the reference's parameters into ours; `names`: each name of ours -> the reference's."""
        module.to(self.dtype)
        parameters = dict(module.named_parameters())
        assert set(names) == set(parameters)
        for ours, theirs in names.items():
            value = self[f"param_{theirs}"]
            assert parameters[ours].shape == value.shape
            parameters[ours].data.copy_(value)
            self.leaves[f"param_{theirs}"] = parameters[ours]

    def layers(self, side: str) -> list[str]:
        return sorted(name for name in self.values if name.startswith(f"{side}_feat_"))


def terms_of(method: Method, s: Mapping[str, Tensor], t: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    """A method's own terms, for given taps."""
    batch = Batch(x=torch.zeros(len(y), 0), y=y, index=torch.arange(len(y)), view=torch.zeros(len(y), 3).long())
    return method.losses(Out(s), Out(t), batch)


# ---- the cases: golden name of each loss -> ours ------------------------------------------------------------------


def kd(v: Arrays) -> dict[str, Tensor]:
    terms = terms_of(
        KD(temperature=4.0), {"logits": v.leaf("student_logits")}, {"logits": v["teacher_logits"]}, v["target"]
    )
    return {"loss": terms["kd"], "loss_ce": terms["ce"], "loss_total": 0.1 * terms["ce"] + 0.9 * terms["kd"]}


def logits_mse(v: Arrays) -> dict[str, Tensor]:
    s, t = {"logits": v.leaf("student_logits")}, {"logits": v["teacher_logits"]}
    return {"loss": terms_of(LogitsMSE(variant="mean"), s, t, torch.zeros(8).long())["mimic"]}


def noisy_teacher(v: Arrays) -> dict[str, Tensor]:
    s, temperature = v.leaf("student_logits"), 20.0
    t, ce = noisy_logits(v["teacher_logits"], v["noise"], variance=0.1), cross_entropy(s, v["target"])
    # the library takes the squared difference of unlike things by default, its mean over classes, too, in both
    odd = ((s / temperature).log_softmax(1) - (t / temperature).softmax(1)).square().mean()
    return {
        "out_noisy_teacher_logits": t,
        "loss": 0.5 * ce + 0.5 * temperature**2 * odd,
        "loss_kl": 0.5 * ce + 0.5 * kl(s, t, temperature) / s.shape[1],
        "loss_mimic": logits_mse_loss(s, t, "mean"),
    }


def label_smoothing(v: Arrays) -> dict[str, Tensor]:
    method = LabelSmoothing(epsilon=0.1, variant="wrong_classes")
    return {"loss": terms_of(method, {"logits": v.leaf("student_logits")}, {}, v["target"])["ce"]}


def label_smoothing_uniform(v: Arrays) -> dict[str, Tensor]:
    method = LabelSmoothing(epsilon=0.1, variant="uniform")
    return {"loss": terms_of(method, {"logits": v.leaf("student_logits")}, {}, v["target"])["ce"]}


def dkd(v: Arrays) -> dict[str, Tensor]:
    s, t, y = v.leaf("student_logits"), v["teacher_logits"], v["target"]
    tckd, nckd = dkd_terms(s, t, y, temperature=4.0)
    method = DKD(alpha=1.0, beta=8.0, temperature=4.0)
    loss = terms_of(method, {"logits": s}, {"logits": t}, y)["dkd"]
    return {"loss": loss, "loss_tckd": tckd, "loss_nckd": nckd}


def fitnet(v: Arrays, use_relu: bool = True) -> dict[str, Tensor]:
    s, t = v.leaf("student_feat_0"), v["teacher_feat_0"]
    regressor = Regressor(tuple(s.shape[1:]), tuple(t.shape[1:]), use_relu)
    v.load(
        regressor,
        {
            "0.weight": "regressor.conv.weight",
            "0.bias": "regressor.conv.bias",
            "1.weight": "regressor.bn.weight",
            "1.bias": "regressor.bn.bias",
        },
    )
    guided = regressor.train()(s)
    return {"loss": hint_loss(guided, t), "out_regressed": guided}


def fitnet_no_relu(v: Arrays) -> dict[str, Tensor]:
    return fitnet(v, use_relu=False)


def at(v: Arrays, p: float = 2.0) -> dict[str, Tensor]:
    s = {name: v.leaf(f"student_{name}") for name in ("feat_0", "feat_1")}
    t = {name: v[f"teacher_{name}"] for name in ("feat_0", "feat_1")}
    method = AT(p=p)
    method.pairs = [("feat_0", "feat_0"), ("feat_1", "feat_1")]
    batch = len(s["feat_0"])
    loss = terms_of(method, {**s, "logits": s["feat_0"].mean((2, 3))}, t, torch.zeros(batch).long())["at"]
    return {"loss": loss, **{f"loss_layer_{i}": at_loss(s[f"feat_{i}"], t[f"feat_{i}"], p) for i in range(2)}}


def at_p3(v: Arrays) -> dict[str, Tensor]:
    return at(v, p=3.0)


def at_p4(v: Arrays) -> dict[str, Tensor]:
    return at(v, p=4.0)


def sp(v: Arrays) -> dict[str, Tensor]:
    s, t = v.leaf("student_feat_0"), v["teacher_feat_0"]
    method = SP()
    method.own = method.taught = "stage"
    loss = terms_of(method, {"stage": s, "logits": s.mean((2, 3))}, {"stage": t}, torch.zeros(8).long())["sp"]
    return {"loss": loss, "loss_layer_0": sp_loss(s, t)}


def rkd(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_embed")
    terms = terms_of(RKD(), {"embed": s, "logits": s}, {"embed": v["teacher_embed"]}, torch.zeros(8).long())
    distance, angle = terms["distance"], terms["angle"]
    return {"loss": 25 * distance + 50 * angle, "loss_distance": distance, "loss_angle": angle}


def pkt(v: Arrays) -> dict[str, Tensor]:
    s = v.leaf("student_embed")
    return {
        "loss": terms_of(PKT(), {"embed": s, "logits": s}, {"embed": v["teacher_embed"]}, torch.zeros(8).long())["pkt"]
    }


def vid_layer(v: Arrays, i: int, middle: int | None = None) -> Tensor:
    s, t = v.leaf(f"student_feat_{i}"), v[f"teacher_feat_{i}"]
    layer = VariationalLayer(s.shape[1], t.shape[1], variance=5.0, middle=middle)
    names = {f"mean.{k}.weight": f"vid_{i}.regressor.{k}.weight" for k in (0, 2, 4)}
    v.load(layer, {**names, "rho": f"vid_{i}.log_scale"})
    loss: Tensor = layer(s, t)
    return loss


def vid_middle(v: Arrays) -> dict[str, Tensor]:
    return {"loss": vid_layer(v, 0, middle=9)}


def vid(v: Arrays) -> dict[str, Tensor]:
    layers = [vid_layer(v, i) for i in range(2)]
    return {"loss": layers[0] + layers[1], "loss_layer_0": layers[0], "loss_layer_1": layers[1]}


def dml(v: Arrays) -> dict[str, Tensor]:
    a, b, y = v.leaf("peer_logits_0"), v.leaf("peer_logits_1"), v["target"]
    ce = cross_entropy(a, y) + cross_entropy(b, y)
    mutual = mutual_loss(a, [b], temperature=3.0) + mutual_loss(b, [a], temperature=3.0)
    return {"loss": ce + mutual, "loss_cls": ce, "loss_div": mutual}


def dml_official(v: Arrays) -> dict[str, Tensor]:
    # The authors add 1e-8 to p_0 and inside the logarithm, so a class with probability p moves by 1e-8 / p: with the
    # smallest p of this case, 7e-5, the values agree to about 1e-6 only, whatever the precision.
    a = v.leaf("peer_logits_0")
    ce, mutual = cross_entropy(a, v["target"]), mutual_loss(a, [v["peer_logits_1"]])
    return {"loss": ce + mutual, "loss_cls": ce, "loss_kl": mutual}


class Given(nn.Module):
    """Stands for an exit whose outputs are inputs of the case."""

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.outputs


def byot(v: Arrays) -> dict[str, Tensor]:
    method = BYOT(temperature=3.0)
    method.inner = ["stage1", "stage2", "stage3"]
    method.exits = nn.ModuleList(Given(v.leaf(f"middle{i}_feature"), v.leaf(f"middle{i}_logits")) for i in (1, 2, 3))
    final = {"logits": v.leaf("final_logits"), "embed": v.leaf("final_feature")}
    s = {**final, **{name: torch.zeros(5, 1) for name in method.inner}}
    terms = terms_of(method, s, {}, v["target"])
    loss = 0.9 * terms["ce"] + 0.1 * terms["kd"] + 1e-6 * terms["feature"]
    return {"loss": loss, "loss_kd": terms["kd"], "loss_feature": terms["feature"]}


def dafl(v: Arrays) -> dict[str, Tensor]:
    t = v.leaf("teacher_logits")
    one_hot, entropy = one_hot_loss(t), information_entropy_loss(t, "log10")
    activation = activation_loss(v.leaf("teacher_feature"))
    student = kl(v.leaf("student_logits"), t.detach())
    generator = one_hot + 5 * entropy + 0.1 * activation
    return {
        "loss": generator + student,
        "loss_generator": generator,
        "loss_one_hot": one_hot,
        "loss_information_entropy": entropy,
        "loss_activation": activation,
        "loss_kd": student,
    }


def data_free_onehot_balance(v: Arrays) -> dict[str, Tensor]:
    t = v.leaf("teacher_logits")
    one_hot, balance = one_hot_loss(t), information_entropy_loss(t, "ln")
    return {"loss": one_hot + 5 * balance, "loss_onehot": one_hot, "loss_balance": balance}


CASES: dict[str, Callable[[Arrays], dict[str, Tensor]]] = (
    {
        f.__name__: f
        for f in (
            *(kd, logits_mse, noisy_teacher, label_smoothing, label_smoothing_uniform, dkd, rkd),
            *(fitnet, fitnet_no_relu, at, at_p3, at_p4, sp, pkt, vid, vid_middle),
            *(dml, dml_official, byot, dafl, data_free_onehot_balance),
        )
    }
    | TEACHERS
    | FAMILIES
)


# ---- the check ----------------------------------------------------------------------------------------------------


def split_gradient(key: str) -> tuple[str, str]:
    """(loss, input) of ``grad_INPUT``, ``grad_TERM__INPUT`` or ``grad_loss_TERM__INPUT``."""
    term, _, name = key.removeprefix("grad_").rpartition("__")
    return ("loss" if not term else f"loss_{term.removeprefix('loss_')}"), name


def gradients_of(case: str, values: Mapping[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    """The stored gradients that are compared: key -> (loss, input), as SOURCES.json says where the key does not."""
    told = {key: (loss, name) for key, (loss, name) in SOURCES[case].get("gradients", {}).items()}
    keys = [key for key in values if key.startswith("grad_") and key not in UNUSED.get(case, {})]
    return {key: told.get(key) or split_gradient(key) for key in keys}


def load(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        return dict(file)


def check(case: str, values: Mapping[str, np.ndarray], dtype: torch.dtype) -> None:
    """Raises AssertionError unless every stored array is an input that is read, or reproduced."""
    assert sorted(values) == SOURCES[case]["arrays"]
    tolerance = SOURCES[case]["tolerance"][str(dtype).removeprefix("torch.")]
    arrays = Arrays(values, dtype)
    ours = CASES[case](arrays)
    gradients = gradients_of(case, values)
    results = [key for key in values if key.startswith(("loss", "out_"))]
    assert sorted(ours) == sorted(results)
    assert set(values) == arrays.read | set(results) | set(gradients) | set(UNUSED.get(case, {}))
    # every leaf has a stored gradient
    assert {name for _, name in gradients.values()} == set(arrays.leaves)

    for key in results:
        expected = torch.from_numpy(np.asarray(values[key]))
        error = (ours[key].detach().double() - expected).abs().max() / expected.abs().max()
        assert error <= tolerance["loss"], f"{key}: relative error {error:.1e}"
    for loss in {loss for loss, _ in gradients.values()}:
        keys = [key for key in gradients if gradients[key][0] == loss]
        largest = max(np.abs(values[key]).max() for key in keys)
        leaves = [arrays.leaves[gradients[key][1]] for key in keys]
        found = torch.autograd.grad(ours[loss], leaves, retain_graph=True, allow_unused=True)
        for key, gradient in zip(keys, found, strict=True):
            expected = torch.from_numpy(values[key])
            gradient = torch.zeros_like(expected) if gradient is None else gradient.double()
            error = (gradient - expected).abs().max() / largest
            assert error <= tolerance["gradient"], f"{key}: error {error:.1e} of the largest gradient"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", SOURCES)
def test_losses_and_gradients_are_the_references(case: str, dtype: torch.dtype) -> None:
    check(case, load(case), dtype)


def test_every_file_has_a_source_and_a_case() -> None:
    files = {path.stem for path in GOLDEN.glob("*.npz")}
    assert files == set(SOURCES) == set(CASES)
    assert set(UNUSED) <= files
    for case, source in SOURCES.items():
        assert hashlib.sha256((GOLDEN / f"{case}.npz").read_bytes()).hexdigest() == source["sha256"], case
        assert source["formula"]
        assert source["reduction"]
        for reference in source["reference"]:
            assert len(reference["commit"]) == 40
            assert reference["repository"].count("/") == 1
            assert reference["path"]
            assert reference["symbol"]


@pytest.mark.parametrize("case", SOURCES)
def test_a_key_that_is_missing_fails(case: str) -> None:
    values = load(case)
    for key in values:
        with pytest.raises((AssertionError, KeyError)):
            check(case, {name: value for name, value in values.items() if name != key}, torch.float64)


@pytest.mark.parametrize("case", SOURCES)
def test_a_wrong_expectation_fails(case: str) -> None:
    """The comparison has teeth: one entry of any expected array, off by 1 %, is found."""
    values = load(case)
    for key in values:
        if key.startswith(("loss", "out_")) or key in gradients_of(case, values):
            wrong = np.array(values[key])
            index = np.unravel_index(np.abs(wrong).argmax(), wrong.shape)
            # the gradient of a constant side, or of a bias in front of batch norm, is zero: then 1 % of the others
            alike = [np.abs(values[k]).max() for k in values if k.startswith("grad_")] if "grad" in key else [0]
            whole = np.issubdtype(wrong.dtype, np.integer)
            wrong[index] += 1 if whole else 0.01 * max(np.abs(wrong[index]), *alike)
            with pytest.raises(AssertionError, match=key):
                check(case, {**values, key: wrong}, torch.float64)
