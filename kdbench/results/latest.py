"""Files of what was measured on machines: a list in JSON, with the latest of each key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kdbench.errors import UserError
from kdbench.files import probe, write_atomic, writing_to

Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Entry(Strict):
    """What such a file is a list of."""

    @property
    def key(self) -> Any:
        """What later figures of the same key replace, and by which they are sorted."""
        raise NotImplementedError


E = TypeVar("E", bound=Entry)


def rounded(value: float) -> float:
    """To four significant digits: more than a clock on a shared machine can tell."""
    return float(f"{value:.4g}")


class Latest(Generic[E]):
    """Reads and writes the files of one kind of figures.

    Args:
        kind: of figures.
        command: what measures them, for messages.
    """

    def __init__(self, kind: type[E], command: str) -> None:
        self._list: TypeAdapter[list[E]] = TypeAdapter(list[kind])  # type: ignore[valid-type]
        self._command = command

    def load(self, path: Path) -> list[E]:
        """The figures in a file, by key; none where there is no file.

        Raises:
            UserError: it cannot be read, or holds something else.
        """
        try:
            return sorted(self._list.validate_json(path.read_bytes()), key=lambda each: each.key)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): name a file that you may read.") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(
                f"{path} holds no figures of {self._command} ({where}: {first['msg']}): restore or remove it."
            ) from None

    def save(self, path: Path, new: Iterable[E]) -> list[E]:
        """Enter figures in a file, in place of older ones of the same keys; returns all that it holds now.

        Raises:
            UserError: the file holds something else, or cannot be written.
        """
        together = {each.key: each for each in (*self.load(path), *new)}
        kept = [together[key] for key in sorted(together)]
        with writing_to(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, self.dump(kept), overwrite=True)
        return kept

    def check(self, path: Path) -> None:
        """Whether figures can be entered in a file.

        Raises:
            UserError: as `save`.
        """
        self.load(path)
        with writing_to(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            probe(path.parent)

    def dump(self, figures: Sequence[E]) -> str:
        """As a file holds them."""
        return json.dumps([each.model_dump(mode="json") for each in figures], indent=1, ensure_ascii=False) + "\n"
