"""Jobs of a Slurm cluster that keeps no accounts.

submitit asks ``sacct`` what became of a job. Where that has no database behind it, a cancelled job is one of unknown
state, and would be waited for without end. ``squeue`` is part of every Slurm, but soon forgets what has ended.
"""

from __future__ import annotations

import getpass
import subprocess
from contextlib import suppress

SECONDS = 60
"""Between two questions at most."""


def watch() -> None:
    """Have submitit ask ``squeue`` where ``sacct`` fails."""
    import submitit
    from submitit.slurm.slurm import SlurmInfoWatcher

    class QueueWatcher(SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            if not self._registered - self._finished:
                return None
            fields = ("--noheader", "--array", "--states=all", "--format=%i|%T")
            return ["squeue", *fields, f"--user={getpass.getuser()}"]

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            return states(string if isinstance(string, str) else string.decode(), self._registered)

    if not has_accounts():
        submitit.SlurmJob.watcher = QueueWatcher(delay_s=SECONDS)


def has_accounts() -> bool:
    """Whether ``sacct`` can be asked here."""
    with suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run(["sacct", "--noheader", "--jobs=1"], capture_output=True, timeout=60, check=False)
        return asked.returncode == 0
    return False


def states(listed: str, registered: set[str]) -> dict[str, dict[str, str]]:
    """Job id -> its state, from lines ``ID|STATE``; a job that is not listed has ended some time ago."""
    known = dict(line.strip().split("|", 1) for line in listed.splitlines() if "|" in line)
    return {job: {"JobID": job, "State": known.get(job, "GONE")} for job in registered}
