"""What configurations name by its path."""

from __future__ import annotations

import importlib
from typing import Any

from kdbench.errors import UserError


def imported(path: str, what: str) -> Any:
    """The object at ``module.attribute``.

    Args:
        what: that names it, for the sentence about what is wrong.

    Raises:
        UserError: it cannot be imported.
    """
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except UserError:
        raise
    except Exception as error:  # of whatever the module does when it is imported
        told = next(iter(str(error).strip().splitlines()), "").rstrip(".:!")
        raise UserError(
            f"{what}: cannot import {path} ({type(error).__name__}: {told}): correct its path, or put the file's "
            "folder on PYTHONPATH."
        ) from None
