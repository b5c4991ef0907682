"""Models that grow without moving the ids and seals of what was written before."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer


class Sparse(BaseModel):
    """A model whose dump leaves out the fields named in `ADDED` that have their default.

    The ids of cells and the seals of records are hashes of such dumps. So a field that comes later is named in `ADDED`,
    with a default that means what was done before there was such a field, and everything older keeps its hash.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after the first records."""

    @model_serializer(mode="wrap")
    def _sparse(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        left_out = {
            name for name in self.ADDED if getattr(self, name) == fields[name].get_default(call_default_factory=True)
        }
        return {key: value for key, value in handler(self).items() if key not in left_out}
