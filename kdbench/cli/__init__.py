"""The command line: ``kdbench run | methods | teacher | data | report | compare | bench``, one module per command.

The modules import only what a parser needs; what a command does is imported when it is done.
"""

from kdbench.cli.program import main

__all__ = ["main"]
