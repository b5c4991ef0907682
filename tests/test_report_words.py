"""What titles say, and the names of files that stay."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from factories import make_record, rendered
from rich.console import Console

from kdbench import shipped
from kdbench.data.privileged import EXPERIMENTS
from kdbench.measures import further
from kdbench.models import ZOOS
from kdbench.report import build_tables, load_records, render, render_terminal
from kdbench.report.words import DATA, network_name
from kdbench.results.record import Record

CONF = Path(__file__).parents[1] / "conf"
RESULTS = Path(__file__).parents[1] / "results"


def title(*records: Record) -> str:
    (table,) = build_tables(records)
    return table.title


def protocol(name: str, **values: Any) -> dict[str, Any]:
    return {"cell": {"protocol": name}, "config": {"protocol": {"name": name, **values}}}


# ---- titles ---------------------------------------------------------------------------------------------------------


def test_a_changed_protocol_says_its_deviation_wherever_a_title_stands() -> None:
    changed = make_record("kd", 0, **protocol("lite", epochs=3, batch_size=64))
    assert title(changed) == "cifar100, resnet56-resnet20, lite, epochs=3"
    texts = rendered([changed])
    name = "tables/cifar100-resnet56-resnet20-lite"
    assert "# cifar100, resnet56-resnet20, lite, epochs=3" in texts[f"{name}.md"]
    assert "3 epochs (protocol lite, epochs=3)" in texts[f"{name}.tex"]
    assert '"protocol":"lite, epochs=3"' in texts["leaderboard.html"]
    assert "protocol.name=NAME gives it a name of its own" in texts[f"{name}.md"]
    console = Console(width=120)
    with console.capture() as shown:
        console.print(render_terminal(build_tables([changed])))
    assert shown.get().startswith("cifar100, resnet56-resnet20, lite, epochs=3\n")


def test_a_protocol_as_it_ships_has_its_name_alone() -> None:
    assert title(make_record("kd", 0, **protocol("lite", epochs=12))) == "cifar100, resnet56-resnet20, lite"
    # a key that came later has the value that ships, and whole numbers have no fraction
    flat = {"epochs": 12.0, "schedule": {"kind": "multistep", "milestones": [0.625, 0.75, 0.875], "warmup": 0}}
    assert title(make_record("kd", 0, **protocol("lite", **flat))) == "cifar100, resnet56-resnet20, lite"


def test_protocols_of_one_name_that_does_not_ship_are_told_apart() -> None:
    records = [make_record("kd", 0, **protocol("mine", epochs=e, batch_size=8)) for e in (5, 60)]
    assert {table.title for table in build_tables(records)} == {
        "cifar100, resnet56-resnet20, mine, epochs=5",
        "cifar100, resnet56-resnet20, mine, epochs=60",
    }
    assert title(records[0]) == "cifar100, resnet56-resnet20, mine"


def test_tables_of_one_title_say_what_differs() -> None:
    def posed(told: bool) -> dict[str, Any]:
        scenario = {"_target_": "kdbench.scenarios.Incremental", "tasks": 5, "told": told}
        return {"config": {"dataset": {"scenario": scenario}}}

    def taught(sha: str, accuracy: float) -> dict[str, Any]:
        return {"teacher": {"sha256": sha * 64, "accuracy": accuracy}}

    records = [make_record("kd", seed, **posed(told)) for seed, told in enumerate((True, False))]
    start = "cifar100 Incremental, resnet56-resnet20, crd240"
    assert {table.title for table in build_tables(records)} == {f"{start}, told=true", f"{start}, told=false"}
    start = "cifar100, resnet56-resnet20, crd240"
    teachers = (("a", 22.6), ("b", 66.4), ("c", 66.4))
    tables = build_tables([make_record("kd", seed, **taught(*teacher)) for seed, teacher in enumerate(teachers)])
    assert {table.title for table in tables if table.teacher == 22.6} == {f"{start}, teacher 22.60 %"}
    alike = [table for table in tables if table.teacher == 66.4]
    assert [table.title for table in alike] == [f"{start}, teacher 66.40 %, {table.name[-8:]}" for table in alike]


def test_no_two_committed_tables_have_one_title() -> None:
    titles = [table.title for table in build_tables(load_records(RESULTS))]
    assert len(titles) > 20
    assert len(set(titles)) == len(titles)


def test_what_ships_is_composed_as_hydra_does() -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONF), version_base=None):
        for name in shipped.names("protocol"):
            composed = compose(overrides=[f"+protocol={name}"])
            assert shipped.composed("protocol", name) == OmegaConf.to_container(composed.protocol), name


def test_a_part_of_the_data_stands_in_the_title() -> None:
    part = {"config": {"dataset": {"classes": [0, 3], "per_class": 50}}, "dataset": {"num_classes": 2}}
    assert title(make_record("kd", 0, **part)).startswith("cifar100 (2 classes, 50 images each), ")
    few = {"config": {"dataset": {"classes": None, "per_class": 50}}}
    assert title(make_record("kd", 0, **few)).startswith("cifar100 (50 images a class), ")
    published = {"subset": {"n": 9, "order": "last", "seed": 0}, "size": 28, "affine": {"rotate": 15.0, "zoom": 0.0}}
    counted = {"config": {"dataset": published}}
    assert title(make_record("kd", 0, **counted)).startswith("cifar100 (9 images, last, 28×28, rotate 15), ")
    crops = {"config": {"dataset": {"views": {"size": 64, "jitter": None, "cycle": 4}}}}
    assert title(make_record("kd", 0, **crops)).startswith("cifar100 (crops of 64×64 cycle 4), ")
    views = {"size": 64, "jitter": None, "cycle": None, "randaugment": {"ops": 2, "magnitude": 9}}
    changed = {"config": {"dataset": {"views": views, "mix": {"mixup": 0.2, "cutmix": None}}}}
    assert title(make_record("kd", 0, **changed)).startswith("cifar100 (crops of 64×64 RandAugment 2×9, mixup 0.2), ")


def test_networks_and_data_sets_that_ship_have_their_written_names() -> None:
    names = {name: network_name(name) for zoo in ZOOS.values() for name in zoo}
    assert {name: text for name, text in names.items() if text == name} == {}
    assert len(set(names.values())) == len(names)
    assert [names[name] for name in ("resnet8x4", "wrn-40-2", "vgg13", "mobilenetv2-0.5", "shufflenetv1")] == [
        "ResNet-8×4", "WRN-40-2", "VGG-13", "MobileNetV2×0.5", "ShuffleNetV1",
    ]  # fmt: skip
    assert network_name("torchvision/resnet50") == "ResNet-50"
    assert network_name("my.Net") == "my.Net"
    assert set(shipped.names("dataset")) - {"folder", "streamed"} | EXPERIMENTS.keys() == set(DATA)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_files_are_not_renamed_when_others_come() -> None:
    first = make_record("kd", 0)
    others = [
        make_record("kd", 0, teacher={"sha256": "b" * 64}, config={"pair": {"teacher": "again"}}),
        make_record("kd", 0, config={"protocol": {"epochs": 3}}),
        make_record("kd", 0, dataset={"sha256": "e" * 64}, config={"dataset": {"root": "elsewhere"}}),
    ]
    before, after = set(render([first])), set(render([first, *others]))
    assert before < after
    names = {name for name in after if re.search(r"/cifar100-resnet56-resnet20-crd240-[0-9a-f]{8}\.md", name)}
    assert len(names) == 4
    assert len({name.lower() for name in after}) == len(after)


# ---- gaps -----------------------------------------------------------------------------------------------------------


def small_gap(*scratch: float) -> list[Record]:
    """A teacher of 72.34 % above students from scratch."""
    control = {"leaf": "controls", "control": "scratch"}
    return [
        *(make_record("scratch", s, top1, info=control, teacher=None) for s, top1 in enumerate(scratch)),
        *(make_record("kd", s, 70.0) for s in range(len(scratch))),
    ]


def test_a_gap_inside_the_interval_of_scratch_is_not_shown() -> None:
    (table,) = build_tables(small_gap(72.0, 72.2, 72.4))  # 72.20 ± 0.50, and the gap is 0.14
    assert [row.gap for row in table.rows] == [None, None]
    assert "within the interval of the student from scratch, so no gap is shown." in table.header[0]
    (table,) = build_tables(small_gap(71.6, 71.8, 72.0))  # 71.80 ± 0.50, and the gap is 0.54
    assert table.rows[1].gap == pytest.approx(-1.8 / 0.54)
    assert "no gap" not in table.header[0]
    (table,) = build_tables(small_gap(72.2))  # one seed says nothing of chance
    assert table.rows[1].gap is not None


# ---- further measures -----------------------------------------------------------------------------------------------


def test_further_measures_say_their_unit_and_where_lower_is_better() -> None:
    assert [further(name).quantity for name in ("nll", "ece", "RMSE", "top5", "delta1", "mine")] == [
        "nll nats ↓", "ece % ↓", "RMSE m ↓", "top-5 %", "delta1 %", "mine",
    ]  # fmt: skip
