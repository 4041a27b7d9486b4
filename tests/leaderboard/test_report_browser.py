"""The page in a real browser: it opens offline without an error, sorts, filters, and is usable.

Needs a Chromium or Chrome on PATH, or its path in ROBUSTKIT_BROWSER; skipped where there is none.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from robustkit import Record, Threat, evaluate, open_dataset
from robustkit.core.stats.paired import mcnemar
from robustkit.data.dataset import Dataset
from robustkit.leaderboard.report import html
from robustkit.leaderboard.report.html import write_page
from robustkit.record.schema import DataInfo, Stage
from robustkit.verify.flags import Flag

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = os.environ.get("ROBUSTKIT_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
EVIL = """</script><script>window.hit=1</script><img src=x onerror="window.hit=1"><b>'{{ 7*7 }}"""
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
DESK: dict[str, Any] = {"viewport": {"width": 1400, "height": 900}}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None,
        reason=f"no browser on PATH ({', '.join(NAMES)}) nor in ROBUSTKIT_BROWSER",
    ),
]


@pytest.fixture(scope="module")
def report(
    make_record: Callable[..., Record],
    blobs: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Records of two threat models, a hostile one among them, and one with a gallery."""
    room = tmp_path_factory.mktemp("browser")
    x, y = blobs.fetch(np.arange(len(blobs)))
    np.savez(room / "blobs.npz", x=x.numpy(), y=y.numpy(), classes=np.int64(4))
    data = open_dataset(f"npz:{room / 'blobs.npz'}")
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()
    with_pictures = evaluate(
        model, name="linear", data=data, threat=Threat("linf", 0.3), folder=room / "linear",
        attacks=["fgsm"], n=40, device="cpu", arguments={"data": data.name},
    )  # fmt: skip
    second = evaluate(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval(), name="second", data=data,
        threat=Threat("linf", 0.3), folder=room / "second", attacks=["fgsm"], n=40, device="cpu",
        arguments={"data": data.name},
    )  # fmt: skip
    masked = Flag(name="black_box", message="Gradients are masked, beware.")
    stage = Stage(attack=EVIL, jobs=1, entered=6, broken=3, forwards=9, backwards=9, seconds=1)
    hostile = make_record(
        EVIL, "rrrbbbm", suite=EVIL, attacks=[EVIL], stages=[stage], notes=[EVIL],
        flags=[Flag(name=EVIL, message=EVIL)],
        data=DataInfo(
            name="toys", digest="d", n=7, total=9, classes=3, shape=[1, 2, 2], note=EVIL,
            class_names=[EVIL, "ball", "kite"],
        ),
    )  # fmt: skip
    records: list[tuple[Path | str, Record]] = [
        (room / "linear" / "record.json", with_pictures),
        (room / "second" / "record.json", second),
        ("evil", hostile),
        ("proved", make_record("proved", "ccrrrrrbbm")),
        ("masked", make_record("masked", "rrrbbbbbmm", flags=[masked])),
        ("farther", make_record("proved", "cbbbbbbbbm", eps=0.3)),
        ("again", make_record("masked", "rrbbbbbbmm", suite="adaptive")),
    ]
    write_page(records, room / "report.html", title=EVIL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "MANY", 4)
        write_page(records, room / "many.html", title=EVIL)
    return room / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, headless=True, args=list(QUIET))
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Open the page offline; at the end there was no error and no request for anything."""
    complaints: list[str] = []
    asked: list[str] = []
    contexts: list[Any] = []

    def listen(page: Any) -> None:
        def said(message: Any) -> None:
            complaints.append(f"{message.type}: {message.text}")

        def failed(error: Any) -> None:
            complaints.append(str(error))

        def requested(request: Any) -> None:
            asked.append(request.url)

        page.on("console", said)
        page.on("pageerror", failed)
        page.on("request", requested)

    def opened(where: str = "", name: str = "report.html", **options: Any) -> Any:
        context = browser.new_context(offline=True, **(options or DESK))
        contexts.append(context)
        page = context.new_page()
        listen(page)
        page.goto(report.with_name(name).as_uri() + where)
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.hit") is None, "a name was run as a script"
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


UNFOLD = "for (const part of document.querySelectorAll('details:not(.chooser)')) part.open = true"
TOYS = r"#table-toys-linf-0\.1"


def names(page: Any, where: str = TOYS) -> list[str]:
    rows = page.locator(f"{where} tr.model:visible th a").all_inner_texts()
    return [" ".join(text.split()) for text in rows]


def opened(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_it_opens_with_a_tab_for_each_threat_model(visit: Callable[..., Any]) -> None:
    page = visit()
    assert page.title() == EVIL
    assert page.locator("#trouble").is_hidden()
    assert page.get_by_role("tab").count() == 3
    assert page.locator(".panel:visible").count() == 1
    page.get_by_role("tab").first.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    chosen = page.locator("[role=tab][aria-selected=true]")
    assert "eps = 0.3" in chosen.inner_text() and "toys" in chosen.inner_text()
    assert page.locator("#count").inner_text() == "1 of 1 rows"


def test_a_heading_sorts_by_mouse_and_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    opened(page, "toys, linf, eps = 0.1")
    assert names(page)[0] == "proved"
    head = page.locator(f"{TOYS} thead .c-robust")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    falling = names(page)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert names(page) == falling[::-1]
    assert names(page)[0] == "masked"


def test_the_runs_of_a_model_are_folded_beneath_it(visit: Callable[..., Any]) -> None:
    page = visit()
    opened(page, "toys, linf, eps = 0.1")
    runs = page.locator(f"{TOYS} tr.run:visible")
    assert runs.count() == 0
    page.get_by_role("button", name="Runs of masked").click()
    assert runs.count() == 2
    assert "adaptive" in runs.first.inner_text()
    verdict = page.locator(f"{TOYS} tr.model .c-verdict").all_inner_texts()
    assert "unreliable" not in verdict  # the flag is that of the weaker suite


def test_search_and_filters_narrow_the_plots_too(visit: Callable[..., Any]) -> None:
    page = visit()
    opened(page, "toys, linf, eps = 0.1")
    box, dots = page.get_by_label("Search"), page.locator(f"{TOYS} .tradeoff g[data-m]:visible")
    assert dots.count() == 3
    whole = page.locator(f"{TOYS} path.front").get_attribute("d")
    box.fill("masked")
    assert names(page) == ["masked"]
    assert (dots.count(), page.locator(f"{TOYS} .bars li:visible").count()) == (1, 1)
    assert page.locator(f"{TOYS} details.record:visible").count() == 2
    assert page.locator(f"{TOYS} path.front").get_attribute("d") != whole
    box.fill("robust>0.5")
    assert names(page) == ["proved"]
    box.fill("")
    page.locator("#suite").select_option(EVIL)
    assert names(page) == [EVIL]


def test_columns_can_be_chosen_and_fit_the_screen(visit: Callable[..., Any]) -> None:
    for device, heads in ((DESK, 7), (PHONE, 3)):
        page = visit(**device)
        opened(page, "toys, linf, eps = 0.1")
        table = page.locator(f"{TOYS} .board")
        assert table.locator("thead th:visible").count() == heads
        right = table.locator("thead .c-verdict").bounding_box()
        assert right["x"] + right["width"] <= device["viewport"]["width"]
        tall = "rows => rows.map(row => row.getBoundingClientRect().height)"
        assert max(page.locator(f"{TOYS} tbody tr:visible").evaluate_all(tall)) <= 36.5
        page.get_by_text("Columns", exact=True).click()
        page.get_by_label("forward passes per point").check()
        assert table.locator("thead .c-passes").is_visible()


def test_a_table_is_scrolled_by_keys(visit: Callable[..., Any]) -> None:
    page = visit(**PHONE)
    page.get_by_text("Columns", exact=True).click()
    for name in ("clean", "suite", "flags", "tail 30%"):
        for box in page.get_by_label(name, exact=True).all():
            box.check()
    page.locator(".chooser summary").click()
    opened(page, "toys, linf, eps = 0.1")
    scroll = page.locator(f"{TOYS} .scroll").first
    scroll.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("box => box.scrollLeft > 0", arg=scroll.element_handle())


def test_models_are_compared_point_by_point(visit: Callable[..., Any]) -> None:
    page = visit()
    opened(page, "toys, linf, eps = 0.1")
    for name in ("proved", "masked"):
        page.locator(TOYS).get_by_label(f"Compare {name}", exact=True).check()
    cells = page.locator(f"{TOYS} .compare tbody").first.locator("th, td")
    cells.first.wait_for()
    # ccrrrrrbbm against the lowest of rrrbbbbbmm and rrbbbbbbmm: 5 only of the first, p = 2 / 2^5.
    assert cells.all_inner_texts() == ["proved – masked", "0.500", "5", "0", f"{mcnemar(5, 0):.4f}"]
    alone = page.locator(f"{TOYS} .compare table").nth(1).locator("tbody tr").nth(1)
    assert "2 (kite), 3 (bear)" in alone.inner_text()


def test_the_same_images_stand_side_by_side(visit: Callable[..., Any]) -> None:
    page = visit()
    opened(page, "blobs")
    for box in page.locator(".panel:visible .pick").all():
        box.check()
    page.locator(".compare img").first.wait_for()
    assert page.locator(".compare table").last.locator("tbody tr").count() >= 6


def test_no_name_has_become_markup(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate(UNFOLD)
    opened(page, "toys, linf, eps = 0.1")
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("main b").count() == 0
    assert EVIL in names(page)
    drawn = page.locator("svg text").all_text_contents()
    assert any(text.startswith("</script><script>window") for text in drawn)
    page.locator("summary", has_text=EVIL).first.scroll_into_view_if_needed()


def test_flags_and_intervals_explain_themselves(visit: Callable[..., Any]) -> None:
    page = visit()
    opened(page, "toys, linf, eps = 0.1")
    flag = page.locator(f"{TOYS} .tip")
    balloon = page.locator(f"{TOYS} .balloon")
    assert balloon.is_hidden()
    flag.hover()
    assert balloon.is_visible()
    page.mouse.move(1, 1)
    assert balloon.is_hidden()
    page.keyboard.press("Tab")  # from the mouse to the keyboard
    flag.focus()
    assert balloon.is_visible()
    page.keyboard.press("Escape")
    assert balloon.is_hidden()
    flag.hover()
    box, room = balloon.bounding_box(), DESK["viewport"]
    assert 0 <= box["x"] <= box["x"] + box["width"] <= room["width"]
    assert 0 <= box["y"] <= box["y"] + box["height"] <= room["height"]


def test_a_link_opens_an_evaluation_with_its_pictures_every_time(visit: Callable[..., Any]) -> None:
    page = visit()
    opened(page, "blobs")
    details = page.locator("details.record:visible").first
    for _ in range(2):  # the second time the address does not change
        page.locator(".panel:visible .board a").first.click()
        page.locator(".gallery img").first.wait_for(state="visible")
        details.locator("summary").first.click()
    details.locator("summary").first.click()
    assert details.locator(".gallery figure").count() == 6
    image = details.locator(".gallery img").first
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 6
    assert image.bounding_box()["width"] == 18 * 6 + 2  # and a border
    assert "shown at 18 times that size" in details.inner_text()
    for name in ("report.html", "many.html"):
        again = visit("#run-proved-toys-linf-0.3-parity-s0", name=name)
        aim = again.locator("[id='run-proved-toys-linf-0.3-parity-s0']")
        assert aim.get_attribute("open") is not None
        assert aim.is_visible()


def test_details_and_downloads_of_many_records_are_unpacked(visit: Callable[..., Any]) -> None:
    page = visit("#run-proved-toys-linf-0.3-parity-s0", name="many.html")
    assert page.locator("details.record").count() == 7
    page.locator("a[download='leaderboard.csv'][href]").wait_for()
    with page.expect_download() as started:
        page.locator("a[download='leaderboard.csv']").click()
    text = Path(started.value.path()).read_text("utf-8")
    assert len(list(csv.reader(io.StringIO(text)))) == 1 + 6


def test_the_skip_link_comes_first(visit: Callable[..., Any]) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the leaderboard"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_on_a_phone_nothing_but_tables_is_wider_than_the_screen(visit: Callable[..., Any]) -> None:
    page = visit(**PHONE)
    page.evaluate(UNFOLD)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    opened(page, "toys, linf, eps = 0.1")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    flag = page.locator(f"{TOYS} .tip")
    flag.scroll_into_view_if_needed()
    flag.tap()
    assert page.locator(f"{TOYS} .balloon").is_visible()


def test_in_the_dark_it_is_dark_and_follows_the_system(visit: Callable[..., Any]) -> None:
    page = visit(**DESK, color_scheme="dark")
    opened(page, "toys, linf, eps = 0.1")
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.drawing .axis')).fill"
    state = "getComputedStyle(document.querySelector('rect.robust')).fill"
    dark = [page.evaluate(what) for what in (ground, ink, state)]
    assert dark == ["rgb(20, 23, 26)", "rgb(230, 232, 234)", "rgb(86, 180, 233)"]
    page.emulate_media(color_scheme="light")
    light = [page.evaluate(what) for what in (ground, ink, state)]
    assert light == ["rgb(255, 255, 255)", "rgb(27, 31, 36)", dark[2]]


def test_printed_every_table_and_plot_is_there(visit: Callable[..., Any]) -> None:
    page = visit()
    page.emulate_media(media="print")
    assert page.locator("tr.model:visible").count() == 6
    assert page.locator(".drawing:visible").count() >= 1
    assert page.locator(".tools:visible, .tabs:visible, .pick:visible").count() == 0


@pytest.mark.parametrize("device", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_no_barrier_in_the_light_and_in_the_dark(
    visit: Callable[..., Any], device: dict[str, Any]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit(**device)
    page.evaluate(UNFOLD)
    opened(page, "toys, linf, eps = 0.1")
    for name in ("proved", "masked"):
        page.locator(TOYS).get_by_label(f"Compare {name}", exact=True).check()
    page.locator(".compare table").first.wait_for()
    grounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found = axe.Axe().run(page).response["violations"]
        assert not found, [
            (v["id"], v["help"], [n["html"][:200] for n in v["nodes"]]) for v in found
        ]
    assert len(grounds) == 2


def test_without_javascript_every_number_is_there(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False, **DESK)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("tr.model:visible").count() == 6
    assert page.locator(".panel:visible").count() == 3
    assert page.locator("noscript p").count() == 1  # parsed only where scripts do not run
    context.close()
