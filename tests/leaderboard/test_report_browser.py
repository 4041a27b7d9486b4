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
        ("evil", hostile),
        ("proved", make_record("proved", "ccrrrrrbbm")),
        ("masked", make_record("masked", "rrrbbbbbmm", flags=[masked])),
        ("farther", make_record("proved", "cbbbbbbbbm", eps=0.3)),
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


def names(page: Any) -> list[str]:
    return [
        " ".join(text.split()) for text in page.locator("#leaderboard tbody th").all_inner_texts()
    ]


def robust(page: Any) -> list[float]:
    cells = page.locator("#leaderboard tbody tr td:nth-child(5)").all_inner_texts()
    return [float(text.split()[0]) for text in cells]


def test_it_opens_and_draws_every_plot(visit: Callable[..., Any]) -> None:
    page = visit()
    assert page.title() == EVIL
    assert page.locator("#trouble").is_hidden()
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    boxes = page.locator(".plot")
    assert boxes.count() == 3 * 3 + 1 + 5  # three groups of three, the curves, the classes of each
    for i in range(boxes.count()):
        boxes.nth(i).scroll_into_view_if_needed()
        boxes.nth(i).locator(".main-svg").first.wait_for(timeout=20_000)


def test_a_heading_sorts_by_mouse_and_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    assert page.locator("#leaderboard tbody tr").count() == 5
    head = page.locator("#leaderboard thead th", has_text="robust")
    head.locator(".dt-column-title").click()
    playwright.expect(head).to_have_attribute("aria-sort", "ascending")
    assert robust(page) == sorted(robust(page))
    head.locator(".dt-column-order").focus()
    page.keyboard.press("Enter")
    playwright.expect(head).to_have_attribute("aria-sort", "descending")
    assert robust(page) == sorted(robust(page), reverse=True)
    assert len(set(robust(page))) > 2


def test_it_filters_all_columns_and_one(visit: Callable[..., Any]) -> None:
    page = visit()
    box = page.get_by_label("Filter all columns:")
    rows = page.locator("#leaderboard tbody tr")
    box.fill("black_box")
    playwright.expect(rows).to_have_count(1)
    assert names(page) == ["masked"]
    box.fill("")
    playwright.expect(rows).to_have_count(5)
    page.get_by_label("Filter by defense").click()
    page.locator(".dtcc-dropdown input").fill("proved")
    playwright.expect(rows).to_have_count(2)
    assert names(page) == ["proved", "proved"]


def test_the_list_of_a_filter_shows_names_as_they_are(visit: Callable[..., Any]) -> None:
    page = visit()
    page.get_by_label("Filter by suite").click()
    choices = page.locator(".dtcc-list-buttons button")
    choices.first.wait_for()
    shown = [" ".join(text.split()) for text in choices.all_inner_texts()]
    assert EVIL in shown
    choices.nth(shown.index(EVIL)).click()
    playwright.expect(page.locator("#leaderboard tbody tr")).to_have_count(1)
    assert names(page) == [EVIL]


def test_no_name_has_become_markup(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    page.locator(".plot .main-svg").first.wait_for()
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("main b").count() == 0
    assert EVIL in names(page)
    drawn = page.locator(".plot svg .annotation-text").all_text_contents()
    assert any(text.startswith("</script><script>window.hit") for text in drawn)
    page.locator("summary", has_text=EVIL).first.scroll_into_view_if_needed()


def test_flags_and_intervals_explain_themselves(visit: Callable[..., Any]) -> None:
    page = visit()
    flag = page.get_by_role("button", name="black_box")
    balloon = page.get_by_text("Gradients are masked, beware.", exact=True).first
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
    interval = page.locator(".tip.interval").first
    interval.hover()
    said = page.locator(".balloon:popover-open")
    assert "95% interval" in said.inner_text()
    box, room = said.bounding_box(), DESK["viewport"]
    assert 0 <= box["x"] <= box["x"] + box["width"] <= room["width"]
    assert 0 <= box["y"] <= box["y"] + box["height"] <= room["height"]


def test_a_link_opens_an_evaluation_with_its_pictures(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("#leaderboard a", has_text="linear").click()
    page.locator(".gallery img").first.wait_for(state="visible")
    assert page.locator(".gallery figure").count() == 6
    for image in page.locator(".gallery img").all()[:3]:
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 6
    again = visit("#record-2")
    assert again.locator("#record-2").get_attribute("open") is not None


def test_details_and_downloads_of_many_records_are_unpacked(visit: Callable[..., Any]) -> None:
    page = visit("#record-2", name="many.html")
    assert page.locator("#record-2").get_attribute("open") is not None
    page.locator("#record-2 .plot .main-svg").first.wait_for(timeout=20_000)
    assert page.locator("#details details.record").count() == 5
    with page.expect_download() as started:
        page.locator("a[download='leaderboard.csv']").click()
    text = Path(started.value.path()).read_text("utf-8")
    assert len(list(csv.reader(io.StringIO(text)))) == 6


def test_the_skip_link_comes_first(visit: Callable[..., Any]) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the leaderboard"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_on_a_phone_nothing_but_tables_is_wider_than_the_screen(visit: Callable[..., Any]) -> None:
    page = visit(**PHONE)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    flag = page.get_by_role("button", name="black_box")
    flag.scroll_into_view_if_needed()
    flag.tap()
    assert page.get_by_text("Gradients are masked, beware.", exact=True).first.is_visible()


def test_in_the_dark_it_is_dark_and_follows_the_system(visit: Callable[..., Any]) -> None:
    page = visit(**DESK, color_scheme="dark")
    light = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    page.locator("#tradeoff").scroll_into_view_if_needed()
    page.locator(".plot .xtick text").first.wait_for()
    dark = page.evaluate(light), page.evaluate(ink)
    assert dark == ("rgb(20, 23, 26)", "rgb(230, 232, 234)")
    page.emulate_media(color_scheme="light")
    tick = page.locator(".plot .xtick text").first
    playwright.expect(tick).to_have_css("fill", "rgb(27, 31, 36)")
    assert page.evaluate(light) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_no_barrier(
    visit: Callable[..., Any], device: dict[str, Any], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit(**device, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    page.locator("#tradeoff").scroll_into_view_if_needed()
    page.locator(".plot .main-svg").first.wait_for()
    found = axe.Axe().run(page).response["violations"]
    assert not found, [(v["id"], v["help"], [n["html"][:200] for n in v["nodes"]]) for v in found]


def test_without_javascript_every_number_is_there(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False, **DESK)
    page = context.new_page()
    page.goto(report.as_uri())
    assert len(robust(page)) == 5
    assert page.locator("noscript p").count() == 1  # parsed only where scripts do not run
    context.close()
