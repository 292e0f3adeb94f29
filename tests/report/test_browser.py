"""The page in a real browser: Debian's Chromium, driven by Playwright, without a network."""

import dataclasses
import shutil
import time

import numpy as np
import pytest

from detofa.report.page import write_page
from detofa.report.report import report_of
from detofa.train.evaluate import PathFigures

pytest.importorskip("plotly")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
_MOST_SECONDS = 20  # ten times the aim: the machine of a test is shared


@pytest.fixture(scope="module")
def path(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, report_of(source))
    return path


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Give what opens a page; afterwards nothing was said on the console, and nothing asked for."""
    said, asked, contexts = [], [], []

    def visit(path, viewport=DESK, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.route("**/*", lambda route: route.continue_() if local(route) else route.abort())
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.locator("#front").scroll_into_view_if_needed()
        page.wait_for_selector("#front .main-svg")
        return page

    def local(route):
        return route.request.url.startswith(("file:", "data:"))

    yield visit
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(contexts)


def wait_until(page, expression):
    """Wait until JavaScript is true; Playwright's own way would need `eval`, which is forbidden."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never became true: {expression}")


def see_all(page):
    """Scroll through the whole page, so that every figure is drawn."""
    for chart in page.query_selector_all(".chart"):
        chart.scroll_into_view_if_needed()
        chart.wait_for_selector(".main-svg", state="attached")


def test_keys_move_the_budget_and_the_command_names_the_best_within_it(visit, path, source):
    page = visit(path)
    page.select_option("#cost", label="MACs")
    page.focus("#budget")
    page.keyboard.press("Home")
    commands, limit = set(), 0.0
    for key in ["ArrowRight", "PageUp", "ArrowRight", "ArrowLeft"] * 11 + ["End"]:
        page.keyboard.press(key)
        limit = float(page.inner_text("#budget-text").removesuffix("M MACs")) * 1e6
        within = [item for item in source.written if item.subnet.figures["macs"].value <= limit]
        command = page.inner_text("#command")
        commands.add(command)
        best = max(item.ap for item in within)  # the smallest path is always written
        assert command in {f"detofa export '{item.path}'" for item in within if item.ap == best}
        assert f"AP {best:.3f}" in page.inner_text("#choice")
    assert len(commands) > 1
    assert page.get_attribute("#budget", "aria-valuetext") == page.inner_text("#budget-text")
    shown = "document.getElementById('front').layout.shapes[0].x0"
    wait_until(page, f"Math.abs({shown} / {limit} - 1) < 0.01")


def test_another_cost_draws_the_same_detectors_at_other_places(visit, path, source):
    page = visit(path)
    places = "document.getElementById('front').data.map(trace => [...trace.x])"
    latency = page.evaluate(places)
    assert "ms predicted" in page.inner_text("#choice")
    page.select_option("#cost", label="MACs")
    wait_until(page, "document.getElementById('front').layout.xaxis.title.text[0] === 'm'")
    macs = page.evaluate(places)
    assert macs[2] == [item.subnet.figures["macs"].value for item in source.written]
    assert latency[2] == pytest.approx([value / 1e5 for value in macs[2]])


def test_the_copy_button_copies_the_command_and_says_so(visit, path):
    page = visit(path)
    page.focus("#copy")
    page.keyboard.press("Enter")
    wait_until(page, "document.getElementById('copied').textContent")
    assert page.inner_text("#copied") == "Copied."
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.inner_text("#command")
    assert copied.startswith("detofa export ")


def test_a_point_under_the_pointer_says_what_it_is(visit, path, source):
    page = visit(path)
    point = page.locator("#front .scatterlayer .trace").nth(2).locator(".point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#front .hovertext")
    assert "AP 0." in page.locator("#front .hovertext").first.text_content()


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_and_every_control_has_a_name(visit, path, viewport, scheme):
    page = visit(path, viewport, scheme)
    see_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    named = page.evaluate(
        "[...document.querySelectorAll('select, input, button, [role=img], .scroll, img')]"
        ".filter(e => !(e.labels?.length || e.ariaLabel || e.alt || e.textContent.trim())).length"
    )
    assert named == 0
    tables = page.evaluate(
        "[...document.querySelectorAll('.chart')].every(e => "
        "e.closest('figure').querySelector('details table tbody tr'))"
    )
    assert tables
    assert page.evaluate("window.harmed") is None
    low = page.evaluate(_CONTRASTS)
    assert low == []


_CONTRASTS = """(() => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const hex = style.getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const least = { "--ink": 7, "--faint": 4.5, "--accent": 4.5, "--muted": 3, "--first": 3,
                  "--second": 3, "--third": 3, "--fourth": 3, "--fifth": 3 };
  return Object.entries(least).flatMap(([name, wanted]) => ["--paper", "--raised"].flatMap((on) => {
    const [a, b] = [light(name), light(on)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    return ratio < wanted ? [`${name} on ${on}: ${ratio.toFixed(2)}`] : [];
  }));
})()"""


def test_two_thousand_candidates_open_at_once(visit, source, tmp_path):
    rng = np.random.default_rng(0)
    genes = np.unique(source.space.sample(rng, 8000), axis=0)[:2000]
    assert len(genes) == 2000
    figures = tuple(
        PathFigures(ap=ap, ap50=ap, seconds=1.0, halves=None)
        for ap in sorted(rng.random(2000).tolist(), reverse=True)
    )
    path = tmp_path / "many.html"
    write_page(path, report_of(dataclasses.replace(source, genes=genes, figures=figures)))
    begin = time.perf_counter()
    page = visit(path)
    wait_until(page, "document.querySelectorAll('#front .point').length >= 2000")
    assert time.perf_counter() - begin < _MOST_SECONDS
    assert page.evaluate("document.querySelectorAll('figure:has(#front) tbody tr').length") == 2000


def test_a_change_to_dark_draws_the_figures_again(visit, path):
    page = visit(path)
    paper = "document.getElementById('front').layout.paper_bgcolor"
    assert page.evaluate(paper) == "#ffffff"
    page.emulate_media(color_scheme="dark")
    wait_until(page, f"{paper} !== '#ffffff'")
