import sys

from kdbench.cli.program import main

sys.exit(main())
