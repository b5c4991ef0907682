"""Checkpoints that know what they are of: undamaged, and of just this training, or not gone on with."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdbench.errors import UserError
from kdbench.results.record import canonical_json

MAGIC = b"kdbench checkpoint 1\n"
"""The first line of the file. The second is the BLAKE2b sum of all that follows: the identity, as a line of JSON, and
what `torch.save` wrote (whose own sums `torch.load` does not check)."""
SUM = 128
"""Hexadecimal digits of that sum."""


class Unusable(Exception):
    """Why a training cannot be gone on with from a checkpoint, as a clause."""


def pack(identity: Mapping[str, Any], state: Mapping[str, Any]) -> bytes:
    """The content of a checkpoint's file.

    Args:
        identity: of the training: all that must be the same again when it goes on; whatever JSON can hold.
        state: tensors, and plain values.
    """
    line, payload = canonical_json(dict(identity)).encode() + b"\n", io.BytesIO()
    torch.save(dict(state), payload)
    return b"".join((MAGIC, _sum(line, payload.getbuffer()), b"\n", line, payload.getbuffer()))


def unpack(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The state in a checkpoint's file, on the CPU.

    Raises:
        Unusable: the file is damaged, or of a training with another identity.
        UserError: it cannot be read at all.
        FileNotFoundError: there is none.
    """
    try:
        content = memoryview(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({error.strerror}): make it readable, or remove it to begin anew."
        ) from error
    if content[: len(MAGIC)] != MAGIC:
        raise Unusable("its checkpoint is damaged or of another version of kdbench")
    rest = content[len(MAGIC) + SUM + 1 :]
    if content[len(MAGIC) : len(MAGIC) + SUM + 1] != _sum(rest) + b"\n":
        raise Unusable("its checkpoint is damaged")
    line, _, _ = bytes(rest[:100_000]).partition(b"\n")
    _compare(json.loads(line), json.loads(canonical_json(dict(identity))))
    state: dict[str, Any] = torch.load(io.BytesIO(rest[len(line) + 1 :]), map_location="cpu", weights_only=True)
    return state


def _sum(*parts: bytes | memoryview) -> bytes:
    total = hashlib.blake2b()
    for part in parts:
        total.update(part)
    return total.hexdigest().encode()


def _compare(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key in (*now, *was):
        if (then := was.get(key)) != (today := now.get(key)):
            raise Unusable(f"its checkpoint was made with another {key} ({_short(then)}, now {_short(today)})")


def _short(value: Any) -> str:
    """A value in a sentence: of a long hash the beginning."""
    text = "none" if value is None else str(value)
    return text[:12] if len(text) >= 40 and " " not in text else text
