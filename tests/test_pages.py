"""The pages of the documentation that are made from the code; `make docs` builds them all."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from factories import make_record

from kdbench.construct import method_identity
from kdbench.paths import conf_dir
from kdbench.registry import shipped_settings
from kdbench.reproductions import files
from kdbench.results.store import Store
from kdbench.taxonomy import load_taxonomy
from methods.intermediate.fitnet import FitNet

SHIPPED = {"name": "fitnet", **method_identity(FitNet, shipped_settings("fitnet", {}))}
METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    store = tmp_path_factory.mktemp("store")
    for seed in range(2):
        Store(store).write(make_record("scratch", seed, 69.0, info={"control": "scratch"}, teacher=None))
        Store(store).write(make_record("kd", seed, 70.5, info={"control": "kd"}))
        fitnet = {"cls": "methods.intermediate.fitnet.FitNet", "leaf": "intermediate/features"}
        made = make_record("fitnet", seed, 71.5 + seed / 2, info=fitnet, config={"method": SHIPPED})
        Store(store).write(made)
        Store(store).write(make_record("fitnet", seed, 73.0, info=fitnet))  # with other settings
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        from pages import Pages

        texts = dict(Pages(store))
    sys.modules.pop("pages")
    return texts


def test_every_leaf_and_method_has_a_page(pages: dict[str, str]) -> None:
    assert {f"survey/{leaf.id}.md" for leaf in load_taxonomy().leaves} <= pages.keys()
    assert {f"methods/{name}.md" for name in METHODS} <= pages.keys()
    assert {f"reproductions/{name}.md" for name in files()} <= pages.keys()
    indices = {"survey.md": "survey/", "methods.md": "methods/", "reproductions.md": "reproductions/"}
    for index, folder in indices.items():
        linked = re.findall(rf"\]\(({folder}[^)]*)\)", pages[index])
        assert sorted(set(linked)) == sorted(page for page in pages if page.startswith(folder))


def test_links_between_them_lead_somewhere(pages: dict[str, str]) -> None:
    top = Path("/")
    for page, text in pages.items():
        for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
            target = (top / page).parent.joinpath(link).resolve().relative_to(top).as_posix()
            assert target in pages or target.startswith("results/tables/"), (page, link)


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_those_of_the_yaml_with_their_sources(pages: dict[str, str], name: str) -> None:
    text = (conf_dir() / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    untuned = yaml.safe_load(re.sub(r"\$\{tuned:(.*?)\}", r"\1", text))
    settings = {key: value for key, value in untuned.items() if key not in ("_target_", "search")}
    shown = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| ", pages[f"methods/{name}.md"], re.M))
    for key, value in settings.items():
        for inner, each in value.items() if isinstance(value, dict) and key not in shown else ():
            assert yaml.safe_load(shown[f"{key}.{inner}"]) == each
        if key in shown:
            assert yaml.safe_load(shown[key]) == value


def test_a_method_page_says_where_it_stands(pages: dict[str, str]) -> None:
    page = pages["methods/fitnet.md"]
    assert page.startswith("# FitNet\n\nTwo stages: the student up to the guided layer learns the hint;")
    assert "[FitNets: hints for thin deep nets](https://arxiv.org/abs/1412.6550), Romero et al., ICLR 2015" in page
    assert "| `weights.hint` | `100.0` | RepDistiller, scripts/run_cifar_distill.sh, -b 100 (for the mean" in page
    # 71.5 - 70.5 and 72 - 70.5: mean 1.25, and 12.706 · 0.25 as the half width of two seeds
    assert "| best Δ KD | +1.25 ± 3.18 in [" in page
    assert "| `hint_share` | `choice(0.125,0.25)` |" in page


def test_a_leaf_page_says_what_is_open(pages: dict[str, str]) -> None:
    leaf = load_taxonomy().find("applications/detection-tracking")
    assert leaf
    assert leaf.open
    page = pages["survey/applications/detection-tracking.md"]
    assert page.startswith("# 10.2 Detection and tracking\n\nHow are boxes, tracks, faces and poses distilled?")
    assert "No method stands here yet. What is open: planned: boxes are known" in page
    assert all(f"(`{work}`)" in page for work in leaf.cited)
    found = "- Tian et al.: [Contrastive Representation Distillation](https://arxiv.org/abs/1910.10699), 2020 ("
    assert found in pages["survey/theory.md"]
    assert "- Buciluă et al.: Model compression, 2006 (`bucilua2006model`)" in pages["survey/logits/softened-labels.md"]


def test_commands_are_those_of_the_program(pages: dict[str, str]) -> None:
    heads = re.findall(r"^## `(.*)`$", pages["commands.md"], re.M)
    assert {"kdbench", "kdbench run", "kdbench data prepare", "kdbench teacher train", "kdbench compare"} <= {*heads}
    assert "--reference SETTING" in pages["commands.md"]
    assert str(Path.home()) not in pages["commands.md"]
