"""The command line, one module for each command or for those that belong together.

``kdbench run | methods | teacher | student | data | report | compare | show | reproduce | bench``.
The modules import only what a parser needs; what a command does is imported when it is done.
"""

from kdbench.cli.program import main

__all__ = ["main"]
