"""The leaderboard in a browser: from a file, by keyboard, on a phone's width, in both themes, with 10000 records."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from factories import make_measured, make_record

from kdbench.measures import Measure
from kdbench.report.leaderboard import render
from kdbench.report.model import build_tables
from kdbench.results.record import Record, cell_id
from kdbench.taxonomy import load_taxonomy

pytestmark = pytest.mark.browser

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 360, "height": 740}
EVIL = "</script><script>window.pwned=1</script><img src=x onerror=\"window.pwned=1\"><svg onload='window.pwned=1'>"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a file; the test fails where the page wrote to its console, threw, or asked for anything else."""
    contexts, complaints = [], []

    def visit(path: Path, address: str = "", init: str = "", **settings: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, **settings})
        contexts.append(context)
        if init:
            context.add_init_script(init)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        wanted = path.as_uri()
        page.on("request", lambda r: None if r.url.split("#")[0] in (wanted, "data:,") else complaints.append(r.url))
        page.goto(wanted + address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def store() -> list[Record]:
    """Two pairs; scratch, kd, a cited method, an extension, a third party's of one seed, one that diverged."""
    records = []
    for student, gain in (("resnet20", 0.0), ("resnet8", -8.0)):
        pair = {"pair": f"resnet56-{student}", "student": student}
        cost = {"student_macs": 41_000_000 if student == "resnet20" else 12_000_000}

        def add(method: str, leaf: str, tops: list[float], **more: Any) -> None:
            control = method if method in ("scratch", "kd") else None
            info = {"leaf": leaf, "control": control, "extension": method == "dkd"}
            cell = {**pair, "teacher": more.get("teacher", "resnet56")}  # noqa: B023
            config = {"pair": pair, "method": {"name": method}}  # noqa: B023
            for seed, top in enumerate(tops):
                seconds = 60 * (100 + 10 * len(method) + seed)
                records.append(
                    make_record(
                        method,
                        seed,
                        top + gain,  # noqa: B023
                        info=info,
                        cell=cell,
                        config=config,
                        cost={**cost, "train_seconds": seconds},  # noqa: B023
                        **more,
                    )
                )

        add("scratch", "controls", [69.0, 69.2, 69.4], teacher=None)
        add("kd", "logits/softened-labels", [70.5, 71.3, 71.2])
        add("at", "intermediate/features", [69.1, 69.0, 69.7])
        add("dkd", "logits/softened-labels", [71.4, 71.7, 71.8])
        add("mine", "my/leaf", [71.1])
        add("lost", "multi-teacher/peers", [50.0], status="diverged")
    return records


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("small"), store())


def written(folder: Path, records: list[Record]) -> Path:
    path = folder / "leaderboard.html"
    path.write_text(render(build_tables(records), []), encoding="utf-8", newline="\n")
    return path


def methods(page: Any) -> list[str]:
    return page.locator(".row .fold b").all_inner_texts()


def values(page: Any, column: str) -> list[str]:
    return page.locator(f".row td.{column}").all_inner_texts()


# ---- the table ------------------------------------------------------------------------------------------------------


def test_rows_stand_with_those_they_compare_with(visit: Open, small: Path) -> None:
    page = visit(small)
    assert page.locator("tr.group").count() == 2
    assert methods(page)[:6] == ["dkd", "mine", "kd", "at", "scratch", "lost"]
    kd = page.locator(".row", has=page.get_by_text("kd", exact=True)).first
    assert kd.locator(".reached .value").inner_text() == "71.00"
    assert "one seed" in page.locator(".row").nth(1).locator(".reached").inner_text()
    assert page.locator(".row").nth(5).locator(".reached").inner_text().strip() == "–"
    assert page.locator(".row").nth(5).locator(".diverged").inner_text() == "1"
    assert page.locator("tr.foot").first.inner_text().startswith("protocol crd240")


def test_the_lowest_error_is_the_best(visit: Open, tmp_path: Path) -> None:
    """A cheap method, a better and dearer one, and a worse one that is dearer still."""
    error, records = Measure("AbsRel", higher=False, unit=""), []
    for method, value, forwards in (("kd", 0.17, 1), ("at", 0.15, 2), ("sp", 0.19, 3)):
        info = {"control": method if method == "kd" else None}
        for seed in range(3):
            reached, cost = (
                value + 0.001 * seed + 1e-4 * (method == "at") * seed**2,
                {"student_forwards": forwards * 10**5},
            )
            more = {"metrics": {"others": {"RMSE": 10 * reached}}, "teacher": {"accuracy": 0.1}}
            records.append(make_measured(method, seed, reached, error, info=info, cost=cost, **more))
    page = visit(written(tmp_path, records))
    assert methods(page) == ["at", "kd", "sp"]
    assert page.locator("th.reached").inner_text().startswith("AbsRel (lower is better)")
    assert page.locator("th.reached").get_attribute("aria-sort") == "ascending"
    assert page.locator("th.other").inner_text() == "RMSE"
    assert page.locator(".row td.reached .value").first.inner_text() == "0.1512"
    assert page.locator(".row").first.locator(".dk b").get_attribute("class") == "sure up"
    page.click("th.reached button")
    assert methods(page) == ["sp", "kd", "at"]
    page.click("#tab-plots")
    plot = page.locator("#plot-cost .plot")
    assert "AbsRel against training cost" in page.locator("#plot-cost h2").inner_text()
    front = plot.locator("desc").first.text_content()
    assert front == "Pareto front, from cheap to dear: kd 0.1710 at 2.00; at 0.1512 at 3.00."


def test_tables_of_several_measures_say_which(visit: Open, tmp_path: Path) -> None:
    error = Measure("AbsRel", higher=False, unit="m")
    records = [make_measured("kd", seed, 0.1 + seed, error, cell={"dataset": "room"}) for seed in range(2)]
    page = visit(written(tmp_path, [*records, *store()]))
    heads = page.locator("tr.group").all_inner_texts()
    assert [text.count("AbsRel m (lower is better)") for text in heads] == [0, 0, 1]
    assert page.locator("th.reached").inner_text().startswith("Measured")
    assert page.locator("th.reached").get_attribute("aria-sort") == "other"
    page.check("#flat")
    assert set(values(page, "measure")) == {"Top-1 %", "AbsRel m (lower is better)"}


def test_bold_only_where_the_test_says_so(visit: Open, small: Path) -> None:
    page = visit(small)
    data = dict(zip(methods(page)[:6], page.locator(".row").all()[:6], strict=True))
    assert data["kd"].locator(".ds b").count() == 1  # p = 0.018 after Holm
    assert data["at"].locator(".ds b").count() == 0
    assert "not distinguishable" in data["at"].locator(".ds").get_attribute("title")
    assert data["mine"].locator(".ds b").count() == 0


def test_every_column_sorts_both_ways_and_gaps_come_last(visit: Open, small: Path) -> None:
    page = visit(small, "#flat=1")
    for index in range(page.locator("thead button").count()):
        button = page.locator("thead button").nth(index)
        for _ in range(2):
            button.click()
            order = page.locator("thead th").nth(index).get_attribute("aria-sort")
            key = button.get_attribute("data-key")
            shown = page.evaluate(
                """key => [...document.querySelectorAll('.row')].map(tr => tr.querySelector(
                    key === 'method' ? 'th b' : 'td.' + key).innerText.replace('−', '-').split('±')[0].trim())""",
                key,
            )
            if key in ("reached", "ds", "dk", "gap", "n", "minutes"):
                there = [float(text.split()[0]) for text in shown if text not in ("–", "reference")]
                assert set(shown[len(there) :]) <= {"–", "reference"}, key
                assert there == sorted(there, reverse=order == "descending"), (key, order)
            elif key in ("dataset", "pair", "protocol", "teacher"):
                assert shown == sorted(shown, reverse=order == "descending"), (key, order)
        assert page.locator("th[aria-sort=ascending], th[aria-sort=descending]").count() == 1


def test_filters_choose_rows_and_reset_brings_them_back(visit: Open, small: Path) -> None:
    page = visit(small)
    page.fill("#q", "DKD resnet8")
    assert methods(page) == ["dkd"]
    assert page.locator("#status").inner_text() == "1 of 12 rows in 1 table"
    page.click("#reset")
    assert len(methods(page)) == 12
    page.select_option("#pair", "resnet56-resnet8")
    assert len(methods(page)) == 6
    page.select_option("#chapter", label="4 Distillation from one teacher (6)")
    assert methods(page) == ["dkd", "kd", "at"]
    page.select_option("#leaf", "intermediate/features")
    assert methods(page) == ["at"]
    page.click("#reset")
    page.fill("#seeds", "2")
    assert "mine" not in methods(page)
    page.fill("#seeds", "4")
    assert "Nothing matches" in page.locator("#table").inner_text()


def test_address_holds_the_view(visit: Open, small: Path) -> None:
    page = visit(small)
    page.fill("#q", "kd")
    page.select_option("#pair", "resnet56-resnet8")
    page.check("#flat")
    page.click("[data-key=minutes]")
    page.locator(".fold").first.click()
    address = "#" + page.url.split("#")[1]
    other = visit(small, address)
    assert methods(other) == methods(page) == ["kd", "dkd"]
    assert other.locator("[aria-expanded=true]").count() == 1
    assert other.locator(".detail").count() == 1
    assert other.locator("th.minutes").get_attribute("aria-sort") == "ascending"
    other.evaluate("location.hash = '#view=taxonomy'")
    other.wait_for_selector("#panel-taxonomy .leaf")


def test_nonsense_in_the_address_is_passed_over(visit: Open, small: Path) -> None:
    page = visit(
        small, "#data=nowhere&seeds=x&sort=-nothing&view=__proto__&cost=toString&open=1,2&chapter=%3Cb%3E&pair=%"
    )
    assert len(methods(page)) == 12


def test_row_opens_to_its_runs_by_keyboard(visit: Open, small: Path) -> None:
    page = visit(small)
    button = page.locator(".fold").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    sheet = page.locator(".detail")
    assert sheet.locator(".data tbody tr").count() == 3
    assert "Oracle % (unranked)" in sheet.inner_text()
    record = next(record for record in store() if record.cell.method == "dkd")
    assert record.cell.id in sheet.inner_text()
    assert sheet.locator("svg.curve").count() == 3  # ce, kd and the accuracy
    for curve in sheet.locator("svg.curve").all():
        assert curve.locator(".line").count() == 3  # one for each seed
        assert curve.locator("title").count() == curve.locator("desc").count() == 1
    assert "protocol.batch_size" in sheet.inner_text()
    assert "a" * 12 in sheet.inner_text()
    page.keyboard.press("Enter")
    assert page.locator(".detail").count() == 0
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "false"


def test_diverged_run_tells_why(visit: Open, small: Path) -> None:
    page = visit(small, "#q=lost")
    page.locator(".fold").first.click()
    assert "Seed 0 diverged: the loss term 'kd' was not finite" in page.locator(".detail").inner_text()


# ---- plots and taxonomy ---------------------------------------------------------------------------------------------


def test_plots_show_one_data_set_and_protocol_with_its_front(visit: Open, small: Path) -> None:
    page = visit(small, "#view=plots")
    for figure in ("#plot-macs", "#plot-cost", "#plot-gap"):
        plot = page.locator(f"{figure} svg.plot")
        assert plot.get_attribute("role") == "img"
        assert plot.locator("> title").count() == plot.locator("> desc").count() == 1
    # cheap: the best of resnet8 (dkd, 63.63); dear: the best of resnet20 (dkd, 71.63)
    assert page.locator("#plot-macs .ring").count() == 2
    page.locator("#plot-macs summary").click()
    page.wait_for_selector("#plot-macs tbody tr")
    table = [row.split("\t") for row in page.locator("#plot-macs tbody tr").all_inner_texts()]
    assert len(table) == 10
    front = [(row[0], row[1], row[2]) for row in table if row[5] == "yes"]
    assert front == [("dkd", "resnet56-resnet20", "71.63"), ("dkd", "resnet56-resnet8", "63.63")]
    gaps = page.locator("#plot-gap desc").first.text_content()
    assert "dkd, resnet56-resnet20 77.5 %" in gaps  # (71.6333 - 69.2) / (72.34 - 69.2)
    assert page.locator("#plot-gap .gapline").count() == 6  # three methods of three seeds, in two tables
    page.select_option("#cost", "tf")
    assert "teacher forwards per image" in page.locator("#plot-cost svg").inner_html()
    page.locator("#plot-macs tbody button").first.click()
    assert page.locator("#tab-results").get_attribute("aria-selected") == "true"
    assert page.locator(".detail").count() == 1


def test_taxonomy_shows_every_leaf(visit: Open, small: Path) -> None:
    page = visit(small)
    page.locator("#tab-results").focus()
    page.keyboard.press("ArrowLeft")  # around to the last
    assert page.evaluate("document.activeElement.id") == "tab-taxonomy"
    leaves = len(load_taxonomy().leaves)
    assert page.locator(".leaf").count() == leaves + 1  # and the third party's
    assert page.locator(".overview .cell").count() == leaves + 1
    assert page.locator(".leaf.measured").count() == 5
    assert page.locator(".leaf.open").count() == leaves - 4
    card = page.locator(".leaf", has_text="4.1.1")
    assert "dkd" in card.inner_text()
    card.get_by_role("button").click()
    assert set(methods(page)) == {"kd", "dkd"}


# ---- safe, readable, usable -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["results", "plots", "taxonomy"])
def test_markup_in_names_is_shown_and_does_nothing(visit: Open, tmp_path: Path, view: str) -> None:
    cell = {"pair": EVIL, "dataset": EVIL, "protocol": EVIL, "student": EVIL}
    more: dict[str, Any] = {
        "cell": cell,
        "config": {"note": EVIL, "method": {EVIL: EVIL}},
        "environment": {"device": EVIL},
    }
    records = [
        make_record(method, seed, 70.0 + seed + len(method) / 100, info=info, curves={EVIL: [1.0, 2.0]}, **more)
        for method, info in (
            ("scratch", {"leaf": "controls", "control": "scratch"}),
            (EVIL, {"leaf": EVIL, "control": None, "paper": EVIL, "cls": EVIL}),
        )
        for seed in range(2)
    ]
    records.append(make_record(EVIL, 5, info={"leaf": EVIL, "control": None}, status="diverged", reason=EVIL, **more))
    page = visit(written(tmp_path, records), f"#view={view}")
    if view == "results":
        for fold in page.locator(".fold").all():
            fold.click()
        assert EVIL in page.locator(".detail").first.inner_text()
    if view == "plots":
        for summary in page.locator(".equivalent summary").all():
            summary.click()
        page.wait_for_selector(".equivalent tbody tr")
        page.locator("#plot-macs svg.plot").hover()
    assert EVIL in page.locator(f"#panel-{view}").inner_text()
    page.wait_for_timeout(100)
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.querySelectorAll('img, [onload], [onerror]').length") == 0


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [[r, .2126], [g, .7152], [b, .0722]].reduce((sum, [c, w]) => {
    c /= 255; return sum + w * (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4); }, 0);
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color[3] === 255) return color;
    }
    return rgb('white');
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    if (!text || !node.getClientRects().length || node.closest('.skip, script, option')) continue;
    const style = getComputedStyle(node);
    const [a, b] = [luminance(rgb(node.closest('svg') ? style.fill : style.color)), luminance(back(node))];
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), text.slice(0, 30)]);
  }
  return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", ["results", "plots", "taxonomy"])
def test_text_has_contrast(visit: Open, small: Path, theme: str, view: str) -> None:
    page = visit(small, f"#view={view}", color_scheme=theme)
    if view == "results":
        page.locator(".fold").first.click()
        page.hover(".row:nth-child(4)")
    page.locator("#legend summary").click()
    found = page.evaluate(CONTRAST)
    assert len(found) > 50
    assert [each for each in found if each[0] < 4.5] == []
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (theme == "dark")


@pytest.mark.parametrize("view", ["results", "plots", "taxonomy"])
def test_phone_never_scrolls_sideways(visit: Open, small: Path, view: str) -> None:
    page = visit(small, f"#view={view}", viewport=PHONE, is_mobile=True, has_touch=True)
    page.locator("#legend summary").tap()
    if view == "results":
        page.locator(".fold").first.tap()
        page.locator(".detail summary").first.tap()
        assert page.locator(".detail").count() == 1
    if view != "taxonomy":
        page.locator("#more summary").tap()
        assert page.locator("#chapter").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("innerWidth") == 360
    if view == "results":
        page.select_option("#order", "reached")
        assert methods(page)[0] == "scratch"


def test_theme_is_kept(visit: Open, small: Path) -> None:
    page = visit(small, color_scheme="light")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(paper)
    page.click("#theme")
    page.click("#theme")
    assert page.locator("#theme").inner_text() == "Theme: dark"
    assert page.evaluate(paper) != light
    page.reload()
    page.wait_for_selector(".row")
    assert page.locator("#theme").inner_text() == "Theme: dark"


def test_works_where_storage_and_history_are_refused(visit: Open, small: Path) -> None:
    refuse = """
      Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });
      history.replaceState = () => { throw new DOMException('no', 'SecurityError'); };
    """
    page = visit(small, init=refuse)
    page.click("#theme")
    assert page.locator("#theme").inner_text() == "Theme: light"
    page.fill("#q", "dkd")
    assert methods(page) == ["dkd", "dkd"]


def test_keyboard_reaches_the_results_and_shows_where_it_is(visit: Open, small: Path) -> None:
    page = visit(small)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "scroller"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.key") == "method"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.key") == "method"  # drawing anew must not lose the place
    unnamed = page.evaluate(
        """[...document.querySelectorAll('input, select')].filter(n => !n.closest('label')?.innerText.trim()).length"""
    )
    assert unnamed == 0


def test_motion_is_left_out_where_it_is_unwanted(visit: Open, small: Path) -> None:
    moves = "getComputedStyle(document.getElementById('skip')).transitionDuration"
    assert visit(small, reduced_motion="reduce").evaluate(moves) == "0s"
    assert visit(small, reduced_motion="no-preference").evaluate(moves) != "0s"


def test_empty_store_opens(visit: Open, tmp_path: Path) -> None:
    page = visit(written(tmp_path, []))
    assert "no records yet" in page.locator("main").inner_text()
    page.click("#theme")


# ---- ten thousand ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10000 records: 4 data sets, 5 pairs, 167 methods, 3 seeds, and 4 curves of 60 points each."""
    rng = random.Random(0)
    leaves = [leaf.id for leaf in load_taxonomy().leaves]
    records: list[Record] = []
    for index in range(10_000):
        seed, place = index % 3, index // 3
        method, table = place % 167, place // 167
        names = ("scratch", "smoothing", "kd")
        name = names[method] if method < 3 else f"method{method:03d}"
        base = TEMPLATE if method else SCRATCH
        config = {**base.config, "seed": seed, "method": {"name": name}, "pair": {"name": table}}
        cell = {"id": cell_id(config), "method": name, "seed": seed, "pair": f"teacher{table % 5}-student{table % 5}"}
        cell |= {"student": f"student{table % 5}", "dataset": f"data{table // 5}"}
        noise = [rng.random() for _ in range(60)]
        curves = {
            key: [x + level for x in noise]
            for key, level in (("loss/a", 1), ("loss/b", 2), ("loss/c", 3), ("test/top1", 60))
        }
        info = {"leaf": leaves[method % len(leaves)], "control": name if method < 3 else None}
        macs = 10_000_000 * (1 + table % 5)
        records.append(
            base.model_copy(
                update={
                    "cell": base.cell.model_copy(update=cell),
                    "config": config,
                    "method": base.method.model_copy(update=info),
                    "metrics": base.metrics.model_copy(update={"last": 65 + 5 * rng.random()})
                    if base.metrics
                    else None,
                    "cost": base.cost.model_copy(update={"train_seconds": 9000 * rng.random(), "student_macs": macs}),
                    "curves": curves,
                }
            )
        )
    return written(tmp_path_factory.mktemp("large"), records)


TEMPLATE = make_record("kd", 0, 70.0)
SCRATCH = make_record("scratch", 0, 69.0, teacher=None, cell={"teacher": None})


def test_ten_thousand_records_open_and_filter_quickly(visit: Open, large: Path) -> None:
    opened = []
    for _ in range(3):
        page = visit(large)
        opened.append(page.evaluate("performance.getEntriesByName('kdbench-ready')[0].startTime"))
    assert page.locator("#summary").inner_text().startswith("10,000 records · 167 methods")
    assert page.locator("#status").inner_text().startswith("3,334 rows")
    assert min(opened) < 2000  # ms, the least disturbed of three

    # The main thread's own time, all of script, style, layout and paint: what the clock shows where nothing else runs.
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy() -> float:
        return next(m["value"] for m in session.send("Performance.getMetrics")["metrics"] if m["name"] == "ThreadTime")

    for element, event, value in [
        ("q", "input", "method1"),
        ("q", "input", "kd"),
        ("q", "input", ""),
        ("pair", "change", "teacher2-student2"),
        ("pair", "change", ""),
        ("seeds", "input", "2"),
    ]:
        spent = []
        for _ in range(3):
            before = busy()
            clock = page.evaluate(
                """([id, event, value]) => {
                    const start = performance.now();
                    const control = document.getElementById(id);
                    control.value = value;
                    control.dispatchEvent(new Event(event, { bubbles: true }));
                    document.body.getBoundingClientRect();
                    return performance.now() - start;
                }""",
                [element, event, value],
            )
            spent.append(min(1000 * (busy() - before), clock))
        assert min(spent) < 100, (element, value, spent)
    assert page.locator(".row").count() < 200  # rows are drawn as they are reached


def test_ten_thousand_records_can_all_be_reached(visit: Open, large: Path) -> None:
    page = visit(large, "#flat=1")
    first = page.locator(".row").count()
    page.evaluate("document.getElementById('scroller').scrollTop = 1e6")
    page.locator(".row").nth(first).wait_for()
    page.evaluate("for (let i = 0; i < 100; i++) document.getElementById('grow').click()")
    assert page.locator(".row").count() == 3334
    assert page.locator("#grow").is_hidden()
    page.click("#tab-plots")
    assert page.locator("#plot-cost svg.plot").count() == 1


# ---- the same numbers everywhere ------------------------------------------------------------------------------------


CELLS = """() => [...document.querySelectorAll('.row')].map(tr => Object.fromEntries([
    ['method', [tr.querySelector('th b').innerText, tr.querySelector('th .setting')?.innerText]],
    ...[...tr.querySelectorAll('td')].map(td => [td.className.split(' ')[0], td.innerText.trim()])]))"""


def test_every_cell_is_that_of_the_markdown(visit: Open) -> None:
    results = Path(__file__).parents[1] / "results"
    page = visit(results / "leaderboard.html", "#flat=1")
    while page.locator("#grow").is_visible():
        page.locator("#grow").click()
    rows = page.evaluate(CELLS)
    assert len(rows) == 45
    columns = ["n", "reached", "ds", "dk", "gap", "minutes", "sf", "tf", "extra", "diverged"]
    for row in rows:
        text = (results / "tables" / f"{row['dataset']}-{row['pair']}-{row['protocol']}.md").read_text("utf-8")
        name, setting = row["method"]
        label = f"{name} ({setting})" if setting else name
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
        shown = [" ".join(row[key].replace("−", "-").replace("–", "-").split()) for key in columns]
        assert shown == line.replace("**", "").removesuffix(" |").split(" | ")[1:], label
