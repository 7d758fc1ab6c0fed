"""The page in a real browser: no errors, no requests, for mouse and keyboard, accessible, as wide as the screen."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from lightning_failures.data.pin_check import PinCheck
from lightning_failures.report.html.render import render
from tests.report.html.a_run import a_run

pytest_plugins = ["tests.helpers.browser"]
pytestmark = pytest.mark.slow

RUN = a_run()
NARROW, WIDE = (360, 800), (1600, 1000)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(RUN), encoding="utf-8")
    return path


@pytest.fixture
def seen(visit, path):
    """The page at 1600 px; what goes wrong in a test is found at its end."""
    seen = visit(path)
    yield seen
    assert (seen.errors, seen.refused, len(seen.requested)) == ([], [], 1)


def rows(page):
    """Id, label, prediction, outcome, confidence, value, flagged of the examples that are shown."""
    return page.evaluate(
        "[...document.querySelectorAll('#browse tbody tr')].map(r => [...r.cells].slice(1).map(c => c.textContent))"
    )


def field(page, name):
    return page.locator(f"#filters [name={name}]")


def all_drawn(page):
    """As for printing: all cards are opened, all charts drawn."""
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(
        "[...document.querySelectorAll('.chart')].every(c => c.dataset.drawn && c.querySelector('svg'))"
    )


# ---------------------------------------------------------------------------------------------------- what is there


def test_page__charts_and_pictures_load(seen):
    page = seen.page
    all_drawn(page)
    assert page.locator(".chart").count() == 2 + 4  # scatter, diary, a curve for each class that fails
    page.wait_for_function("[...document.images].every(i => i.complete)")
    images = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.alt, i.src.slice(0, 11)])")
    assert len(images) > 100
    assert all(width > 0 and alt and source == "data:image/" for width, alt, source in images)
    marks = page.evaluate("[...document.querySelectorAll('[data-chart=scatter] .mark-symbol path')].length")
    assert marks >= 8


def test_page__the_theme_changes_also_in_charts(seen):
    page = seen.page
    all_drawn(page)
    page.evaluate("scrollTo(0, 0)")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark theme").click()
    page.wait_for_function("[...document.querySelectorAll('.chart')].every(c => c.dataset.drawn === 'dark')")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.keyboard.press("Enter")  # the button still has the focus, and now a new name
    page.wait_for_function("[...document.querySelectorAll('.chart')].every(c => c.dataset.drawn === 'light')")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light


def test_page__follows_the_system(visit, path):
    page = visit(path, dark=True).page
    assert page.get_by_role("button", name="Light theme").is_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


# ---------------------------------------------------------------------------------------------------- examples


def test_examples__filters(seen):
    page = seen.page
    everything = len(RUN.gallery.thumbnails.ids)
    assert page.locator("#count").inner_text() == f"{everything} of {everything} rows"
    field(page, "label").select_option("dog")
    field(page, "failed").select_option("wrong")
    found = rows(page)
    assert found
    assert all(
        label == "dog" and prediction != "dog" and outcome == "wrong" for _, label, prediction, outcome, *_ in found
    )
    field(page, "flagged").select_option("flagged")
    assert all(row[5].startswith("\u2212") and row[6] == "flagged" for row in rows(page))
    first = found[0][2]
    field(page, "flagged").select_option("all")
    field(page, "prediction").select_option(first)
    assert {row[2] for row in rows(page)} == {first}
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function(f"document.getElementById('count').textContent.startsWith('{everything} of')")
    field(page, "text").fill("fire TRUCK")
    assert all("fire truck" in (row[1], row[2]) for row in rows(page))
    field(page, "text").fill("nothing has this")
    assert rows(page) == []
    assert page.locator("#count").inner_text().startswith("0 of")
    assert page.locator("#place").inner_text() == "Page 1 of 1"


def test_examples__counts_are_those_of_the_table(seen):
    table = RUN.table
    wrong = int(table.failed[[int(i) // 3 for i in RUN.gallery.thumbnails.ids]].sum())
    field(seen.page, "failed").select_option("wrong")
    assert seen.page.locator("#count").inner_text() == f"{wrong} of {len(RUN.gallery.thumbnails.ids)} rows"


def test_examples__sort_and_turn_by_mouse(seen):
    page = seen.page
    head = page.locator("#browse thead")
    head.get_by_role("button", name="Decision value").click()
    page.locator("#pager select").select_option("100")
    values = [row[5] for row in rows(page)]
    numbers = [float(value.replace("\u2212", "-")) for value in values if value != "\u2013"]
    assert numbers == sorted(numbers, reverse=True)
    head.get_by_role("button", name="Decision value").click()
    assert head.locator("[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.locator("#pager select").select_option("25")
    before = rows(page)
    page.get_by_role("button", name="Next").click()
    assert page.locator("#place").inner_text().startswith("Page 2 of")
    assert not {row[0] for row in before} & {row[0] for row in rows(page)}
    last = -(-len(RUN.gallery.thumbnails.ids) // 25)
    for _ in range(last - 2):
        page.get_by_role("button", name="Next").click()
    assert page.get_by_role("button", name="Next").is_disabled()
    assert rows(page)[-1][5] == "\u2013"  # undefined ones come last, whichever way


def test_examples__by_keyboard_alone(seen):
    page = seen.page
    field(page, "failed").focus()
    page.keyboard.press("ArrowDown")
    assert {row[3] for row in rows(page)} == {"wrong"}
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("owl")
    assert all("owl" in (row[1], row[2]) for row in rows(page))
    for _ in range(3):  # the button that clears, the scrolling table, the first header
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    ids = [int(row[0]) for row in rows(page)]
    assert ids == sorted(ids, reverse=True)
    page.keyboard.press("Space")
    assert [int(row[0]) for row in rows(page)] == sorted(ids)


# ---------------------------------------------------------------------------------------------------- the rest


def test_page__skip_link_and_focus_rings(seen):
    page = seen.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"


def test_classes__sort_by_error_rate(seen):
    page = seen.page
    button = page.locator("#classes").get_by_role("button", name="Error rate")

    def values(column):
        cells = f"[...document.querySelectorAll('#classes tbody td:nth-child({column}) > data:first-of-type')]"
        return page.evaluate(f"{cells}.map(d => Number(d.value))")

    def rates():
        return values(2)

    gains = values(8)
    assert gains
    assert gains == sorted(gains, reverse=True)  # most to gain first, without a click
    button.click()
    button.click()
    assert rates() == sorted(rates())


def test_classes__search_and_statistics(seen):
    page = seen.page
    shown = "[...document.querySelectorAll('#classes tbody tr')].filter(r => r.checkVisibility())"
    rows = f"{shown}.map(r => r.cells[0].innerText)"
    assert len(page.evaluate(rows)) == 5
    page.locator("form.find input").fill("TRUCK")
    assert page.evaluate(rows) == ["fire truck"]
    page.locator("form.find input").fill("")
    head = page.locator("#classes thead").get_by_role("button", name="CV score")
    assert not head.is_visible()
    page.get_by_role("button", name="Show the statistics").click()
    assert head.is_visible()
    page.get_by_role("button", name="Hide the statistics").click()
    assert not head.is_visible()


def test_classes__show_some_of_their_failures(seen):
    shown = seen.page.evaluate(
        "[...document.querySelectorAll('.seen-failures img')].map(i => [i.dataset.label, i.className])"
    )
    assert shown
    assert {kind.split()[0] for _, kind in shown} == {"is-wrong"}


def test_images__lightbox_selection_and_slice(seen):
    page = seen.page
    first = page.locator("#finding-0 .wrong img").first
    first.click()
    box = page.locator("#lightbox")
    assert box.is_visible()
    text = " ".join(box.inner_text().split())
    assert f"Id {first.get_attribute('data-id')}" in text
    assert "Label cat" in text
    assert "\u2717 wrong" in text
    page.keyboard.press("ArrowRight")
    second = page.locator("#finding-0 .wrong img").nth(1).get_attribute("data-id")
    assert f"Id {second}" in " ".join(box.inner_text().split())
    box.get_by_role("button", name="Select").click()
    page.keyboard.press("Escape")
    bar = page.locator("#selection")
    assert "1 image selected" in bar.inner_text()
    with page.expect_download() as saved:
        bar.get_by_role("button", name="Save JSON").click()
    (record,) = json.loads(saved.value.path().read_text())
    assert record["id"] == int(second)
    assert record["label"] == "cat"
    assert record["failed"] is True
    with page.expect_download() as saved:
        bar.get_by_role("button", name="Save CSV").click()
    assert saved.value.path().read_text().splitlines()[1].startswith(f'{second},"cat",')
    bar.get_by_role("button", name="Clear").click()
    assert not bar.is_visible()
    first.click()
    box.get_by_role("button", name="All failures of this slice").click()
    page.wait_for_function("!document.getElementById('lightbox').open")
    found = rows(page)
    assert found
    assert all(row[1] == "cat" and row[3] == "wrong" for row in found)


def picked(page, of):
    """The line above the picked images, and the label and outcome of each."""
    place = page.locator(f".picked[data-of={of}]")
    images = place.locator("img").evaluate_all(
        "all => all.map(i => [i.dataset.label, i.dataset.predicted, i.className])"
    )
    return " ".join(place.locator("p").inner_text().split()), images


def test_confusions__a_cell_shows_its_images_and_filters_the_table(seen):
    page = seen.page
    cell = page.locator(".cell[data-label='1'][data-prediction='2']")
    cell.click()
    text, images = picked(page, "matrix")
    assert text.startswith("dog predicted as fire truck, among the examples of this page: ")
    assert images
    assert {(*names, kind.split()[0]) for *names, kind in images} == {("dog", "fire truck", "is-wrong")}
    table = RUN.table
    shown = {int(i) for i in RUN.gallery.thumbnails.ids}
    truth = [int(i) for i, k, p in zip(table.ids, table.labels, table.predictions, strict=True) if (k, p) == (1, 2)]
    assert cell.inner_text() == str(len(truth))
    assert len(images) == len(shown & set(truth))
    page.locator(".picked[data-of=matrix]").get_by_role("button", name="Show in the table").click()
    expect(page.locator("#browse tbody tr")).to_have_count(len(images))
    assert {(row[1], row[2]) for row in rows(page)} == {("dog", "fire truck")}
    page.get_by_role("button", name="Clear").first.click()
    expect(page.locator("#browse tbody tr")).to_have_count(25)


def test_map__a_frame_shows_its_images_by_mouse_and_keyboard(seen):
    page = seen.page
    view = page.locator("#map-view")
    assert page.locator("#map-view path").count() == len(RUN.gallery.thumbnails.ids) - 3
    box = view.bounding_box()
    view.hover(position={"x": 8, "y": 8})
    page.mouse.down()
    view.hover(position={"x": box["width"] / 2, "y": box["height"] - 8})
    page.mouse.up()
    left = int((RUN.gallery.thumbnails.places[:, 0] < 0.5).sum())
    text, images = picked(page, "map")
    assert text.startswith(f"In the frame: {left} images")
    assert len(images) == min(left, 36)
    page.locator(".picked[data-of=map]").get_by_role("button", name="Select all").click()
    assert f"{left} images selected" in page.locator("#selection").inner_text()
    page.locator("#map-form [name=label]").select_option("dog")
    assert {one[0] for one in picked(page, "map")[1]} == {"dog"}
    page.locator("#map-form [name=colour]").select_option("value")
    assert page.locator(".legend[data-colour=value]").is_visible()
    values = RUN.table.values[[int(i) // 3 for i in RUN.gallery.thumbnails.ids][3:]]
    assert page.locator("#map-view path.low").count() == int((values < 0).sum())
    assert page.locator("#map-view path.unknown").count() == int(values.isnan().sum())
    view.focus()
    page.keyboard.press("Shift+ArrowLeft")
    narrower, _ = picked(page, "map")
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert picked(page, "map")[0] != narrower


def test_selection__copies_ids_and_saves_csv(seen):
    page = seen.page
    image = page.locator("#finding-0 .wrong img").first
    image.click()
    page.locator("#lightbox").get_by_role("button", name="Select").click()
    page.keyboard.press("Escape")
    bar = page.locator("#selection")
    bar.get_by_role("button", name="Copy ids").click()
    assert "1 ids copied" in bar.inner_text()
    box = page.locator("form.find input")
    box.click()
    page.keyboard.press("Control+V")
    assert box.input_value() == image.get_attribute("data-id")


def test_findings__lead_to_the_labels_to_review(visit, tmp_path):
    first, *rest = RUN.report.classes
    doubted = dataclasses.replace(first, doubted_ids=(9, 3))
    of_labels = dataclasses.replace(RUN.report.findings[0], cause="label noise", remedy="classes[0].doubted_ids")
    report = dataclasses.replace(RUN.report, classes=(doubted, *rest), findings=(of_labels,))
    path = tmp_path / "review.html"
    path.write_text(render(dataclasses.replace(RUN, report=report), charts=False), "utf-8")
    page = visit(path).page
    page.locator("#finding-0 .next").get_by_role("link", name="Labels to review").click()
    review = page.locator("#review-0")
    expect(review).to_be_in_viewport()
    assert "ids 9, 3." in review.inner_text()
    review.get_by_role("button", name="Select them").click()
    with page.expect_download() as saved:
        page.locator("#selection").get_by_role("button", name="Save CSV").click()
    assert [line.split(",")[:2] for line in saved.value.path().read_text().splitlines()[1:]] == [
        ["9", '"cat"'],
        ["3", '"cat"'],
    ]


def test_pins__are_shown(visit, tmp_path):
    check = PinCheck(
        "cat 1", "cat", "reopened", 40, 20, 0.5, (0.35, 0.65), 38, 2, 1, 0, 0.1, 0.125, "slice", 0.001, 0.001
    )
    path = tmp_path / "pins.html"
    path.write_text(
        render(dataclasses.replace(RUN, report=dataclasses.replace(RUN.report, pins=(check,))), charts=False)
    )
    page = visit(path).page
    cells = page.locator("#pins tbody tr").first.locator("th, td").all_inner_texts()
    assert [" ".join(cell.split()) for cell in cells[:4]] == [
        "cat 1",
        "reopened",
        "50.0\u202f% 35.0\u202f% to 65.0\u202f%".replace("\u202f", " "),
        "12.5 %",
    ]
    assert "cat 1 has reopened: 20 of 40 images fail" in cells[-1]


def test_sections__fold(seen):
    page = seen.page
    part = page.locator("#slices details.part")
    assert part.locator("table").is_visible()
    part.locator("summary").first.click()
    assert not part.locator("table").is_visible()
    features = page.locator("#features .feature").first
    assert not features.is_visible()
    page.locator("nav a[href='#features']").click()
    expect(features).to_be_visible()


def test_images__right_and_wrong_have_a_colour_and_a_sign(seen):
    both = "[t.querySelector('img').className, t.querySelector('.sign')?.textContent]"
    signs = seen.page.evaluate(f"[...document.querySelectorAll('#cards .tile')].map(t => {both})")
    assert {tuple(one) for one in signs if one[1]} == {("is-wrong", "\u2717"), ("is-right", "\u2713")}


def test_links__open_the_card_that_they_lead_to(seen):
    page = seen.page
    card = page.locator("details.card:not([open])[id^=class-]").first
    name = card.get_attribute("id")
    page.locator(f"#classes a[href='#{name}']").click()
    page.wait_for_function(f"document.getElementById('{name}').open")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    targets = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    assert len(ids) == len(set(ids))
    assert set(targets) <= set(ids)


@pytest.mark.parametrize(
    ("size", "dark"), [(WIDE, False), (NARROW, True)], ids=["light on a wide screen", "dark on a narrow one"]
)
def test_page__is_accessible_and_fits(visit, path, size, dark):
    """Widths do not depend on the theme, nor colours on the width."""
    seen = visit(path, width=size[0], height=size[1], dark=dark)
    all_drawn(seen.page)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    found = Axe().run(seen.page).response["violations"]
    shown = [(v["id"], v["impact"], [n["target"] for n in v["nodes"][:3]]) for v in found]
    assert [item for item in shown if item[1] in ("serious", "critical")] == []
    assert (seen.errors, seen.refused) == ([], [])


def test_page__of_a_report_alone(visit, tmp_path):
    path = tmp_path / "bare.html"
    report = dataclasses.replace(RUN.report, groups=(), features=(), modes=(), classes=())
    path.write_text(render(dataclasses.replace(RUN, report=report, history=(), table=None, gallery=None)), "utf-8")
    assert path.stat().st_size < 80_000  # without charts there is no library
    seen = visit(path)
    assert "This analysis has no pictures" in seen.page.locator("#examples").inner_text()
    assert (seen.errors, seen.refused) == ([], [])


def test_page__prints_light_with_all_cards_open(visit, path):
    page = visit(path, dark=True).page
    assert page.locator("details:not([open])").count() > 0
    all_drawn(page)
    page.emulate_media(media="print")
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 33, 39)"
    assert not page.get_by_role("navigation").is_visible()


def test_page__prints_a_summary_of_two_pages(visit, path):
    page = visit(path).page
    all_drawn(page)
    printed = page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) <= 2
    page.evaluate("document.documentElement.dataset.print = 'all'")
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) > 2


# ---------------------------------------------------------------------------------------------------- bounds


def test_page__of_a_thousand_classes(visit, tmp_path):
    many = a_run(tuple(f"class number {k}" for k in range(1000)), size=10, pictured=40, thumbnails=1000, analyses=2)
    path = tmp_path / "many.html"
    path.write_text(render(many), "utf-8")
    assert path.stat().st_size < 8_000_000
    seen = visit(path)
    page = seen.page
    ready = page.evaluate("performance.getEntriesByType('navigation')[0].domComplete")
    assert ready < 30_000  # ms, on a machine with other work
    visible = "[...document.querySelectorAll('#classes tbody tr')].filter(r => !r.hidden).length"
    assert page.evaluate(visible) == 25
    page.locator("#classes").get_by_role("button", name="Show all 1,000").click()
    assert page.evaluate(visible) == 1000
    field(page, "label").select_option("class number 7")
    assert {row[1] for row in rows(page)} == {"class number 7"}
    assert seen.errors == []


# ---------------------------------------------------------------------------------------------------- hostile words

HOSTILE = (
    "<script>window.hurt = 1</script>",
    "</script><script>window.hurt = 2</script>",
    "<img src=x onerror='window.hurt = 3'>",
    "\" onmouseover=\"window.hurt = 4\" x=\"",
    "'><svg onload=window.hurt=5>",
    "<!--<script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:window.hurt=6",
    "http://evil.example/x.png",
    "two\u2028lines\u2029\r\n\x00\x1b[31m",
    "lone \udcff surrogate",
    "left\u202eright",
    "x" * 10_000,
    "constructor",
    "__proto__",
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["</script><script>window.hurt = 7</script>", "\udcff<b>&amp;</b>", "y" * 10_000],
    ids=["script", "surrogate", "long"],
)
def test_page__hostile_words_are_shown(visit, tmp_path, text):
    run = a_run(HOSTILE, text=text, pictured=15, size=8, thumbnails=60)
    html = render(run)
    path = tmp_path / "hostile.html"
    path.write_text(html, encoding="utf-8")  # no lone surrogate is left
    seen = visit(path, width=360)
    page = seen.page
    all_drawn(page)
    assert page.evaluate("window.hurt") is None
    assert (seen.errors, seen.refused, len(seen.requested)) == ([], [], 1)
    assert page.evaluate("[...document.scripts].length") == 3
    assert (
        page.evaluate("document.querySelectorAll('[onerror], [onload], [onmouseover], iframe, object, base').length")
        == 0
    )
    links = page.evaluate("[...document.querySelectorAll('[href]')].map(a => a.getAttribute('href'))")
    assert all(link.startswith("#") for link in links)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shown = page.locator("#classes").inner_text()
    assert "<script>window.hurt = 1</script>" in shown
    assert "{{ 7 * 7 }}" in shown
    options = field(page, "label").locator("option").all_inner_texts()
    assert "<script>window.hurt = 1</script>" in options
    assert json.loads(page.locator("#data").text_content())["examples"]["names"][6] == HOSTILE[6]
    for option in ("constructor", "__proto__"):
        field(page, "label").select_option(option)
        assert {row[1] for row in rows(page)} == {option}


def test_page__a_policy_stops_what_gets_through(visit, tmp_path):
    """The policy is real: a script that is not ours, and any request, is refused."""
    html = render(RUN).replace(
        "</main>", "<script>window.hurt = 1</script><img src='http://evil.example/x.png'></main>"
    )
    path = tmp_path / "broken_into.html"
    path.write_text(html, "utf-8")
    seen = visit(path)
    assert seen.page.evaluate("window.hurt") is None
    assert any("Content Security Policy" in error for error in seen.errors)
    assert seen.refused == []  # not even asked for


def test_trees__thresholds_of_failure_leaves(seen):
    page, shown = seen.page, "#trees .leaf .valid:not([hidden])"
    before = page.locator(shown).count()
    said = page.locator("#validity [aria-live]")
    assert before > 0
    page.locator("#validity [name=delta]").fill("0.6")
    expect(page.locator(shown)).to_have_count(0)
    expect(said).to_contain_text(re.compile(r"^0 of \d+ leaves, in 0 of \d+ trees"))
    page.locator("#validity [name=delta]").fill("0")
    page.locator("#validity [name=tau]").fill("0")
    expect(page.locator("#validity output").first).to_have_text("0 points")
    assert page.locator(shown).count() > before
    page.locator("#validity [type=reset]").click()
    expect(said).to_contain_text(re.compile(r"leaves, in"))
