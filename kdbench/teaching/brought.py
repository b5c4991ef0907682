"""Teachers' weights from elsewhere: a file of one's own, or what torchvision and timm have trained.

No code of a file is ever run: safetensors hold none, and pickles are read as weights alone.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdbench.data.imagenet import synsets
from kdbench.errors import DoesNotFit, Unreadable, UserError, nearest
from kdbench.foreign import Foreign
from kdbench.models.resized import Resized
from kdbench.networks import sized
from kdbench.targets import first_line
from kdbench.teaching.teachers import Origin
from kdbench.text import some

PLACES = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Where training scripts put the weights into what they save."""
SHOWN = 3
"""How many names stand in a sentence."""


@dataclass(frozen=True)
class Brought:
    """Weights from elsewhere.

    Attributes:
        label: calls them in messages.
        weights: of a network for images of so many channels.
        name: of the network, if it is said; it sees images at `size`, (H, W).
        mean, std: of the pixels that they learned from, per channel, on the scale 0..1; None where nothing says so.
        classes: what each logit means, by all names that it has; empty where nothing says so.
    """

    label: str
    origin: Origin
    weights: Callable[[int], Mapping[str, Tensor]]
    name: str | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[tuple[str, ...], ...] = ()

    def rows(self, classes: Sequence[str]) -> list[int] | None:
        """The logits of these classes, in their order; None: all as they are, or nobody knows.

        Raises:
            UserError: they are as many as the weights know, and others.
        """
        place = {name: row for row, names in enumerate(self.classes) for name in names}
        found = [place.get(name) for name in classes]
        rows = [row for row in found if row is not None]
        if len(rows) == len(classes):
            return None if rows == list(range(len(self.classes))) else rows
        if len(classes) == len(self.classes):
            k = found.index(None)
            raise UserError(
                f"{self.label} has a class for each of the data's, but none called '{classes[k]}' (it has "
                f"{_some([names[0] for names in self.classes])}): name the class folders so, as ImageNet's are by "
                "their synsets, or give it a new head with head=replace."
            )
        return None


def brought(source: str) -> Brought:
    """The weights that `source` names: ``FILE``, ``torchvision/NAME[.WEIGHTS]`` or ``timm/NAME[.TAG]``, the latter two
    with ``@SIZE`` where images are to be seen at another size than the weights' own.

    Raises:
        UserError: there are none, or they are not to be had without running code.
    """
    library, _, rest = source.partition("/")
    if rest and library == "torchvision" and not Path(source).exists():
        return _torchvision(rest)
    if rest and library == "timm" and not Path(source).exists():
        return _timm(rest)
    return _file(Path(source))


# ---- files -------------------------------------------------------------------------------------------------------


def _file(path: Path) -> Brought:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}: give one with weights, or torchvision/NAME or timm/NAME for pretrained ones."
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name the file with the weights.") from None
    except OSError as error:
        raise Unreadable(path, error) from None
    begin = raw[:200].lstrip().lower()
    if begin.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page and holds no weights: download the file itself, not the page about it.")
    if begin.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is Git LFS's pointer to the weights: get them with git lfs pull.")
    state = state_in(_tensors(path, raw), str(path))
    return Brought(path.name, Origin(source=path.name, sha256=hashlib.sha256(raw).hexdigest()), lambda channels: state)


def _tensors(path: Path, raw: bytes) -> Any:
    """What a file holds.

    Raises:
        UserError: it is damaged, of another format, or needs code.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(raw)
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file ({first_line(error)}): bring the whole file.") from None
    except Exception as error:  # torch has many, of its own and of pickle's
        code = re.search(r"(?:GLOBAL|class|function|type) ([\w.]+\.[\w.]+)", str(error))
        if code and "nsupported" in str(error):
            raise UserError(
                f"{path} holds more than weights, and would run code when it is read ({code[1]}): where it was made, "
                "save the weights alone with torch.save(net.state_dict(), FILE), or as safetensors."
            ) from None
        raise UserError(
            f"{path} cannot be read as weights ({type(error).__name__}): bring a whole file, as torch.save or "
            "safetensors wrote it."
        ) from None


def state_in(content: Any, label: str) -> dict[str, Tensor]:
    """The state dict in what was saved: at one of `PLACES`, at the only place that holds one, or all of it.

    Raises:
        UserError: there is none.
    """
    if isinstance(content, Mapping):
        inside = {key: value for key, value in content.items() if isinstance(value, Mapping) and _holds(value)}
        place = next((key for key in PLACES if key in inside), next(iter(inside)) if len(inside) == 1 else None)
        if place is not None:
            return state_in(inside[place], label)
        if state := {key: value for key, value in content.items() if isinstance(value, Tensor)}:
            return state
    has = f"has {_some(list(map(str, content)))}" if isinstance(content, Mapping) else f"is a {type(content).__name__}"
    raise UserError(f"{label} holds no weights by name, but {has}: save net.state_dict() in it.")


def _holds(value: Any) -> bool:
    """Whether tensors by name lie somewhere in there, and not an optimiser's, which are numbered."""
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(key, str) and (isinstance(each, Tensor) or _holds(each)) for key, each in value.items())


# ---- libraries ---------------------------------------------------------------------------------------------------


def _torchvision(rest: str) -> Brought:
    from torchvision import models  # slow to import

    rest, size = sized(rest)
    name, _, tag = rest.partition(".")
    known = models.list_models(module=models)
    if name not in known:
        hint = nearest(name, known, "look it up in that library's list of models.")
        raise UserError(f"torchvision has no network '{name}': {hint}")
    every = models.get_model_weights(name)
    if tag and tag not in every.__members__:
        raise UserError(f"torchvision has no weights '{tag}' of {name}: choose from {', '.join(every.__members__)}.")
    weights = every[tag] if tag else every.DEFAULT
    label, preset = f"torchvision/{name}.{weights.name}", weights.transforms()

    def load(channels: int) -> Mapping[str, Tensor]:
        with _downloading(label, "the folder hub/checkpoints of TORCH_HOME"):
            state: Mapping[str, Tensor] = weights.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, weights_only=True, map_location="cpu"
            )
        return state

    (side,) = preset.crop_size
    mean, std = tuple(map(float, preset.mean)), tuple(map(float, preset.std))
    classes = _imagenet(weights.meta["categories"])
    return Brought(label, Origin(source=label), load, f"torchvision/{name}", size or (side, side), mean, std, classes)


def _timm(rest: str) -> Brought:
    import timm  # slow to import
    from timm.data import infer_imagenet_subset

    rest, size = sized(rest)
    name = rest.partition(".")[0]
    known = timm.list_models()
    if name not in known:
        raise UserError(f"timm has no network '{name}': {nearest(name, known, 'timm.list_models() has them all.')}")
    tags = timm.list_pretrained(f"{name}.*") or timm.list_pretrained(name)
    if not tags:
        raise UserError(f"timm has no weights of {name}: choose another of timm.list_models(pretrained=True).")
    if rest != name and rest not in tags:
        raise UserError(f"timm has no weights {rest}: choose from {', '.join(tags)}.")
    config: Any = timm.get_pretrained_cfg(rest)
    label = f"timm/{name}" + (f".{config.tag}" if config.tag else "")

    def load(channels: int) -> Mapping[str, Tensor]:
        with _downloading(label, "its cache of the Hugging Face hub (HF_HOME)"):
            net: nn.Module = timm.create_model(rest, pretrained=True, in_chans=channels)
        return net.state_dict()

    mean, std = tuple(map(float, config.mean)), tuple(map(float, config.std))
    classes = _imagenet() if infer_imagenet_subset(config.to_dict()) == "imagenet-1k" else ()
    return Brought(label, Origin(source=label), load, f"timm/{name}", size or config.input_size[1:], mean, std, classes)


def _imagenet(categories: Sequence[str] | None = None) -> tuple[tuple[str, ...], ...]:
    """ImageNet's classes by their synsets and, where a library has words for them, `categories`."""
    if categories is None:
        return tuple((synset,) for synset in synsets())
    return tuple(zip(synsets(), categories, strict=True)) if len(categories) == len(synsets()) else ()


@contextmanager
def _downloading(label: str, place: str) -> Iterator[None]:
    """What a library raises when its weights are not to be had, as one sentence."""
    try:
        yield
    except Exception as error:  # of sockets, of HTTP, of hashes, of torch.load, and each library's own
        raise UserError(
            f"the weights {label} cannot be had ({type(error).__name__}: {first_line(error)}): see to the network, or "
            f"put their file into {place} yourself."
        ) from error


# ---- into a network ----------------------------------------------------------------------------------------------


def fitted(
    weights: Mapping[str, Tensor],
    net: nn.Module,
    name: str,
    label: str,
    *,
    new_head: bool = False,
    rows: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Brought weights as those of `net`: by the keys of its state dict, in its dtypes.

    What all keys begin with and `net` does not know, as ``module.`` or ``backbone.``, is taken off.

    Args:
        name: of the network.
        label: calls the weights in messages.
        new_head: leave the head out, which may then have any size, or be missing.
        rows: of the head, take these alone, in this order; None: all.

    Raises:
        UserError: keys or shapes are not the network's.
    """
    inner, prefix = net, ""
    while isinstance(inner, (Foreign, Resized)):
        inner, prefix = inner.net, f"{prefix}net."
    want = inner.state_dict()
    given = _without_prefix(weights, want)
    head = _head(net, inner)
    if new_head and not head:
        raise UserError(f"{name} does not end in one layer that could be replaced: leave out head=replace.")
    if rows is not None and not new_head:
        given = {key: value[rows] if key in head else value for key, value in given.items()}
    missing = [key for key in want if key not in given and not key.endswith("num_batches_tracked")]
    unlike = [key for key in want if key in given and given[key].shape != want[key].shape]
    if new_head:
        given = {key: value for key, value in given.items() if key not in head}
        missing, unlike = ([key for key in keys if key not in head] for keys in (missing, unlike))
    extra = [key for key in given if key not in want]
    if not missing and not extra and unlike and {*unlike} <= head:
        ours, theirs = want[unlike[0]].shape[0], given[unlike[0]].shape[0]
        raise UserError(
            f"the head of {label} has {theirs} outputs, and the data have {ours} classes: head=replace gives it a new "
            "one and fine-tunes by the protocol, or choose data of its classes."
        )
    faults = [f"{_some(missing)} missing"] if missing else []
    faults += [f"{_some(extra)} not known to it"] if extra else []
    faults += [f"{key} of {_size(given[key])} where it has {_size(want[key])}" for key in unlike[:1]]
    if faults:
        raise UserError(
            f"{label} does not fit {name} ({'; '.join(faults)}): name the network that it is of with "
            "pair.teacher=NETWORK."
        )
    return {f"{prefix}{key}": value.to(want[key].dtype) for key, value in given.items()}


def _without_prefix(weights: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what all of their keys begin with, as soon as one of `want` is among them."""
    given = dict(weights)
    while not given.keys() & want.keys():
        common = _common(given)
        if not common:
            return dict(weights)  # they are of another network
        given = {key.removeprefix(common): value for key, value in given.items()}
    return given


def _common(keys: Mapping[str, Any]) -> str:
    """What all keys begin with up to the first point, or nothing."""
    first = {key.partition(".")[0] for key in keys}
    return f"{first.pop()}." if len(first) == 1 and all("." in key for key in keys) else ""


def _head(net: nn.Module, inner: nn.Module) -> set[str]:
    """The keys of a network's head, as `inner` calls them."""
    try:
        head: Any = net.head
    except (DoesNotFit, AttributeError):
        return set()
    return {f"{path}.{key}" for path, module in inner.named_modules() if module is head for key in module.state_dict()}


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"


def _some(names: Sequence[str]) -> str:
    return some(names, SHOWN)
