"""Networks that know nothing of kdbench, behind its taps: whoever made them, and however."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import DoesNotFit, UserError
from kdbench.taps import UNCUT

OTHER = "take another size or another network"


class Foreign(nn.Module, ABC):
    """A foreign network `net` as a `kdbench.taps.Net`; the state dict is that of `net` with the prefix ``net.``

    Args:
        head: its last layer, a module of `net`; None where it does not end in one.
    """

    def __init__(self, net: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        for module in net.modules():
            if getattr(module, "inplace", False):  # would overwrite what a tap has recorded
                module.inplace = False  # type: ignore[assignment]
        self.net = net
        # A path and not the module: the head must appear once in the state dict.
        self.head_path = next((path for path, module in net.named_modules() if module is head), None)

    @property
    def head(self) -> nn.Module:
        """Raises `DoesNotFit` where there is none."""
        if self.head_path is None:
            raise DoesNotFit("this network does not end in one linear layer: choose a method that does not ask for it.")
        return self.net.get_submodule(self.head_path)

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The taps called `names` (all when None) and ``logits``; KeyError for a name that the network has not."""
        taps: dict[str, Tensor] = {}
        taps["logits"] = self.run(x, taps)
        return taps if names is None else {name: taps[name] for name in (*names, "logits")}

    def tail(self, after: str) -> nn.Module:
        """Only the zoo's networks can be cut: DoesNotFit."""
        raise DoesNotFit(UNCUT)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def run(self, x: Tensor, taps: dict[str, Tensor]) -> Tensor:
        """Logits of `x`; writes the other taps into `taps`."""


class Wrapped(Foreign):
    """A classifier; ``embed`` is what its head reads."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def run(self, x: Tensor, taps: dict[str, Tensor]) -> Tensor:
        def keep_embed(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            taps["embed"] = args[0]

        handle = self.head.register_forward_pre_hook(keep_embed)
        try:
            return self.maps(x, taps)
        finally:
            handle.remove()

    @abstractmethod
    def maps(self, x: Tensor, taps: dict[str, Tensor]) -> Tensor:
        """Logits of `x`; writes the feature maps into `taps`."""


class Hooked(Wrapped):
    """Feature maps are the outputs of submodules: `points` maps tap names to module paths."""

    def __init__(self, net: nn.Module, head: nn.Linear, points: Mapping[str, str]) -> None:
        super().__init__(net, head)
        self.points = dict(points)

    def maps(self, x: Tensor, taps: dict[str, Tensor]) -> Tensor:
        with recorded(self.net, self.points, taps):
            logits: Tensor = self.net(x)
            return logits


class Bare(Foreign):
    """Nothing but ``logits``."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def run(self, x: Tensor, taps: dict[str, Tensor]) -> Tensor:
        return self(x)


@torch.no_grad()
def plain(label: str, net: nn.Module, shape: Sequence[int], mend: str = OTHER) -> nn.Module:
    """Any module as a `kdbench.taps.Net`: as it is if it has a ``tap`` of its own, else behind ``logits`` and, where it
    ends in one linear layer, ``embed``.

    Which layer makes the logits is seen in a forward pass in eval mode on two random inputs of `shape`, which leaves no
    trace, not even in the global random state.

    Args:
        label: calls it in messages.
        mend: what to do where it cannot take such inputs.

    Raises:
        UserError: it cannot take such inputs, has nothing to train, or gives something else than logits (B, K, ...).
    """
    modes = [(module, module.training) for module in net.modules()]
    like = next(iter(net.parameters()), None)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(None if like is None else like.device)
    seen: dict[str, tuple[nn.Linear, Tensor]] = {}

    def keep(path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.Linear) and args and isinstance(args[0], Tensor):
                seen.pop(path, None)  # a layer that runs twice stands where it ran last
                seen[path] = (module, args[0])

        return hook

    layers = [(path, module) for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(keep(path)) for path, module in layers]
    try:
        with torch.random.fork_rng(devices=[]), refused(label, shape, mend):
            net.eval()
            taps = net.tap(x) if tapped(net) else {"logits": net(x)}  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    logits = taps.get("logits") if isinstance(taps, Mapping) else None
    if not isinstance(logits, Tensor) or logits.ndim < 2 or len(logits) != 2:
        what = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        where = "in the 'logits' of its tap()" if tapped(net) else "from its forward()"
        raise UserError(f"{label} gives {what} for two inputs, not logits (2, classes): return them {where}.")
    if next(iter(net.parameters()), None) is None:
        raise UserError(f"{label} has no parameters, so there is nothing to train: take another network.")
    if tapped(net):
        return net
    ends = [layer for layer, embed in seen.values() if embed.ndim == 2 and _gives(layer, embed, logits)]
    return Hooked(net, ends[-1], {}) if ends else Bare(net, None)


def tapped(net: nn.Module) -> bool:
    """Whether a network has taps of its own."""
    return callable(getattr(net, "tap", None))


@contextmanager
def refused(label: str, shape: Sequence[int], mend: str = OTHER) -> Iterator[None]:
    """What a foreign network raises when it cannot take inputs of `shape`, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        size = "x".join(map(str, shape))
        what = "images" if len(shape) == 3 else "vectors"
        raise UserError(f"{label} cannot take {what} of {size} ({reason}): {mend}.") from error


@contextmanager
def recorded(net: nn.Module, points: Mapping[str, str], into: dict[str, Tensor]) -> Iterator[None]:
    """While open, keeps the outputs of `points` (name -> module path) in `into`, in order of execution."""

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            into[name] = output

        return hook

    handles = [net.get_submodule(path).register_forward_hook(keep(name)) for name, path in points.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reads_embed(net: Wrapped, taps: Mapping[str, Tensor], logits: Tensor) -> bool:
    """Whether the head makes the logits of the tap ``embed``."""
    embed = taps.get("embed")
    return embed is not None and embed.ndim == 2 and _gives(net.head, embed, logits)


def _gives(layer: nn.Module, embed: Tensor, logits: Tensor) -> bool:
    """Whether a layer makes these logits of that input."""
    made: Tensor = layer(embed)
    return made.shape == logits.shape and torch.allclose(made, logits, rtol=1e-4, atol=1e-4)
