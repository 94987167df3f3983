"""The page in Chromium: every chart is drawn and tells its numbers; it works by keyboard, in the dark, on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_so.report.page import page
from lightning_so.report.run import Run
from lightning_so.report.sections import sections
from tests.report.test_page import evil
from tests.support import recorded

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    faulty = recorded.healthy(4, 1200, seed=3)
    recorded.units(faulty, "dead", "blocks.1.mlp.0", 0.93)
    recorded.lossy(faulty, lambda step, loss: loss + 2 if 800 <= step < 900 else loss)
    return [Run("faulty", faulty), Run("healthy", recorded.healthy(1, 400, method=None))]


@pytest.fixture
def opened(browser, tmp_path):
    """Opens runs; what the browser complains of, and what it asks of a network, fails the test."""
    complaints, contexts = [], []

    def open_(runs, viewport=WIDE, **options):
        path = Path(tmp_path / "report.html")
        path.write_text(page(runs))
        contexts.append(browser.new_context(viewport=viewport, **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda said: complaints.append(said.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]", timeout=PATIENCE)
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def heights(tab) -> dict[str, float]:
    measure = "each => each.querySelector('svg, canvas')?.getBoundingClientRect().height ?? 0"
    return {place.get_attribute("id"): place.evaluate(measure) for place in tab.locator(".chart").all()}


@pytest.mark.slow
def test_every_chart_is_there_and_of_the_right_height(opened, runs):
    tab = opened(runs[:1])
    found = heights(tab)
    wanted = {f"chart-{chart.name}": chart.spec["height"] for part in sections(runs[:1], []) for chart in part.charts}
    assert set(found) == set(wanted)
    assert all(wanted[name] <= height <= wanted[name] + 140 for name, height in found.items()), found
    assert min(found.values()) > 50
    widths = tab.evaluate(
        "[...document.querySelectorAll('.chart')].map(c => c.firstElementChild.clientWidth / c.clientWidth)"
    )
    assert min(widths) > 0.9


@pytest.mark.slow
def test_two_runs_and_strings_that_would_like_to_run(opened):
    tab = opened([Run("<script>alert(1)</script>", evil()), Run("</script>", evil())])
    assert min(heights(tab).values()) > 40
    tab.locator("#chart-trust-0").hover(position={"x": 400, "y": 60})
    tab.locator("#vg-tooltip-element").wait_for(state="visible")
    assert tab.locator("script").count() == 3
    assert tab.locator("img").count() == 0


@pytest.mark.slow
def test_hover_tells_numbers(opened, runs):
    tab = opened(runs[:1])
    tip = tab.locator("#vg-tooltip-element")
    for name, words in (("loss", "step"), ("trust", "layer"), ("gantt", "stage"), ("memory", "MiB")):
        place = tab.locator(f"#chart-{name}")
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        for part in (0.35, 0.45, 0.55, 0.65):
            tab.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] * 0.45)
            tab.wait_for_timeout(60)
            if tip.is_visible() and words in tip.inner_text():
                break
        else:
            raise AssertionError(f"{name} tells nothing: {tip.inner_text()!r}")
        assert any(sign.isdigit() for sign in tip.inner_text())
        tab.mouse.move(0, 0)


@pytest.mark.slow
def test_dark_is_dark_and_switches_while_it_is_open(opened, runs):
    tab = opened(runs[:1], color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    axis = "document.querySelector('#chart-rate svg text, #chart-memory svg text').getAttribute('fill')"
    light = tab.evaluate(colour), tab.evaluate(axis)
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function(
        "[...document.querySelectorAll('.chart')].every(c => c.dataset.drawn === 'dark')", timeout=PATIENCE
    )
    dark = tab.evaluate(colour), tab.evaluate(axis)
    assert dark[0] != light[0]
    assert dark[1] != light[1]


#: The least contrast of a text and what is behind it (WCAG 2), and of which element it is.
CONTRAST = """() => {
  const bend = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(bend);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (each) => {
    for (; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (!colour.endsWith(", 0)")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = "p, li, a, summary, h1, h2, h3, dt, dd, th, td, figcaption, footer, b, .tag";
  const seen = [...document.querySelectorAll(texts)].filter((each) => each.offsetParent && each.textContent.trim());
  return seen.map((each) => {
    const [dim, bright] = [light(getComputedStyle(each).color), light(behind(each))].sort((a, b) => a - b);
    return [(bright + 0.05) / (dim + 0.05), each.className || each.tagName];
  }).sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(opened, runs, scheme):
    least, where = opened(runs[:1], color_scheme=scheme).evaluate(CONTRAST)
    assert least >= 4.5, where


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(opened, runs):
    tab = opened(runs, PHONE, is_mobile=True, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert min(heights(tab).values()) > 50


@pytest.mark.slow
def test_the_keyboard_reaches_everything(opened, runs):
    tab = opened(runs[:1])
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "verdict"
    reached, outlines = set(), []
    for _ in range(140):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.tagName"))
        outlines.append(tab.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    assert {"A", "SUMMARY", "INPUT"} <= reached
    assert "none" not in outlines[:20]
    summary = tab.locator("#loss summary")
    summary.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#loss table").is_visible()


@pytest.mark.slow
def test_a_slider_moves_the_gantt_chart(opened, runs):
    tab = opened(runs[:1])
    before = tab.locator("#chart-gantt canvas, #chart-gantt svg").screenshot()
    slider = tab.locator("#chart-gantt input[type=range]").first
    slider.focus()
    for _ in range(8):
        tab.keyboard.press("ArrowLeft")
    tab.wait_for_timeout(200)
    assert tab.locator("#chart-gantt canvas, #chart-gantt svg").screenshot() != before


@pytest.mark.slow
def test_a_screen_reader_finds_its_way(opened, runs):
    tab = opened(runs[:1])
    for role, least in (
        ("banner", 1),
        ("navigation", 1),
        ("main", 1),
        ("contentinfo", 1),
        ("heading", 20),
        ("img", 15),
    ):
        assert tab.get_by_role(role).count() >= least, role
    assert tab.get_by_role("heading", level=1).count() == 1
    names = tab.evaluate("[...document.querySelectorAll('[role=img]')].map(each => each.getAttribute('aria-label'))")
    assert all(any(sign.isdigit() for sign in name) for name in names)
    # Nobody is read thousands of marks.
    hidden = tab.evaluate("[...document.querySelectorAll('.chart svg, .chart canvas')].map(each => each.ariaHidden)")
    assert set(hidden) == {"true"}
