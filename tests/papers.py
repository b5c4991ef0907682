"""Papers that include generated tables, set by pdfTeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdbench.report.latex import PACKAGES


@dataclass(frozen=True)
class Paper:
    """What TeX said, and how large the file is that it made."""

    log: str
    pages: int

    @property
    def overfull(self) -> list[str]:
        """What did not fit into its column or page."""
        return re.findall(r"^Overfull \\hbox.*", self.log, re.MULTILINE)

    @property
    def undefined(self) -> list[str]:
        """References and citations that lead nowhere."""
        return re.findall(r"^LaTeX Warning: (?:Reference|Citation).*undefined.*", self.log, re.MULTILINE)


def needed() -> str:
    """The path of pdflatex; skips the test where it, or a package that tables need, is not installed."""
    program, find = shutil.which("pdflatex"), shutil.which("kpsewhich")
    if not program or not find:
        pytest.skip("pdflatex is not installed: the tests of the text check the structure")
    for package in re.findall(r"\w+", PACKAGES.partition("{")[2]):
        if not subprocess.run([find, f"{package}.sty"], capture_output=True, text=True).stdout:
            pytest.skip(f"the LaTeX package {package} is not installed")
    return program


def typeset(folder: Path, body: str, files: Mapping[str, str], options: str = "10pt,twocolumn") -> Paper:
    """An article with `body`, which may \\input `files`, by name; twice, and BibTeX where it has a bibliography."""
    program = needed()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    preamble = rf"\documentclass[{options}]{{article}}" + "\n" + PACKAGES + "\n" + r"\extrafloats{100}" + "\n"
    (folder / "paper.tex").write_text(preamble + "\\begin{document}\n" + body + "\n\\end{document}\n", encoding="utf-8")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    tex = (program, "-halt-on-error", "-interaction=nonstopmode", "paper.tex")
    log = run(*tex)
    if r"\bibliography{" in body:
        bibtex = shutil.which("bibtex")
        assert bibtex
        assert "Warning" not in run(bibtex, "paper")
        run(*tex)
    if r"\ref{" in body or r"\bibliography{" in body:
        log = run(*tex)
    (pages,) = re.findall(r"Output written on paper.pdf \((\d+) pages?", log)
    return Paper(log, int(pages))
