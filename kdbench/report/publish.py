"""Publish generated tables to Weights & Biases."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

ARTIFACT = "kdbench-report"


def publish(texts: Mapping[str, str], project: str, folder: Path) -> str:
    """Upload a report: every file in one versioned artifact, and every CSV as a ``wandb.Table`` to look at.

    Args:
        texts: relative path -> text, as `kdbench.report` generates them.
        project: name of the wandb project.
        folder: where wandb keeps its own files; with ``WANDB_MODE=offline`` nothing leaves it until ``wandb sync``.

    Returns:
        The folder of the run.
    """
    import wandb  # only here: nothing else of the report needs it

    folder.mkdir(parents=True, exist_ok=True)
    with wandb.init(project=project, job_type="report", dir=str(folder)) as run:
        artifact = wandb.Artifact(ARTIFACT, type="report")
        for name, text in sorted(texts.items()):
            with artifact.new_file(name, encoding="utf-8") as file:
                file.write(text)
        run.log_artifact(artifact)
        for name, text in sorted(texts.items()):
            if name.endswith(".csv"):
                frame = pd.read_csv(io.StringIO(text)).astype(object)
                table = wandb.Table(dataframe=frame.where(frame.notna(), None), allow_mixed_types=True)
                run.log({name.removesuffix(".csv"): table})
        return str(run.dir)
