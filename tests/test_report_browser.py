"""The page of results as a browser shows it; without one, tests/test_report.py reads its HTML."""

import pytest
from browser import chromium, find_chromium
from synthetic_runs import configure, finish, write_run

from bootstrap.report import write_report

pytestmark = [pytest.mark.long, pytest.mark.browser]
CELLS = "[...document.querySelectorAll('#runs tbody tr')].map(row => row.cells[%d].dataset.value)"
FINAL_GAP = 10
PHONE = (390, 844)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The page of three runs: of a long name and model, of another batch size, and an empty one."""
    root = tmp_path_factory.mktemp("results")
    long = finish(write_run(root / ("a-long-name-" * 6).strip("-"), n_every_step=16))
    model = "my_own_architecture_of_a_long_name(width=256, depth=2)"
    configure(long.path, recipe={"model": model, "batch_size": 10, "n_steps": 32})
    write_run(root / "noisy", seeds=(0, 1), noise=0.02)
    (root / "empty").mkdir()
    (root / "empty" / "pair.json").write_text('{"schema": 1, "run": "empty"}')
    return write_report(root)


@pytest.fixture(scope="module")
def browser():
    if (program := find_chromium()) is None:
        pytest.skip("CHROMIUM=none: there is to be no browser here")
    with chromium(program) as page:
        yield page


@pytest.fixture
def page(browser, path):
    browser.resize(1280, 900)
    browser.emulate()
    browser.problems.clear()
    browser.open(path)
    return browser


def test_nothing_is_wrong_on_the_console_and_nothing_is_asked_for(page):
    page.click("#runs th:nth-child(2) button")
    page.evaluate("document.getElementById('left').dispatchEvent(new Event('change'))")
    assert page.problems == []


def test_a_click_on_a_heading_sorts_by_number_and_a_second_one_turns_it_round(page):
    gaps = [float(value) for value in page.evaluate(CELLS % FINAL_GAP) if value]
    heading = f"#runs th:nth-child({FINAL_GAP + 1})"
    page.click(f"{heading} button")
    assert page.evaluate(CELLS % FINAL_GAP) == [*map(str, sorted(gaps)), ""]
    assert page.evaluate(f"document.querySelector('{heading}').ariaSort") == "ascending"
    page.click(f"{heading} button")
    assert page.evaluate(CELLS % FINAL_GAP) == [*map(str, sorted(gaps, reverse=True)), ""]
    assert page.evaluate(f"document.querySelector('{heading}').ariaSort") == "descending"


def test_a_click_on_a_heading_of_words_sorts_by_words(page):
    page.click("#runs th:nth-child(2) button")
    statuses = page.evaluate(CELLS % 1)
    assert statuses == sorted(statuses)
    assert len(set(statuses)) == 3


def test_every_figure_is_seen_at_its_full_shape(page):
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure > div > svg')].map(svg => {"
        " const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;"
        " return [box.width, box.height * view.width / view.height / box.width] })"
    )
    assert len(boxes) == 4
    assert all(width > 300 and abs(shape - 1) < 0.01 for width, shape in boxes)


@pytest.mark.parametrize("width", [320, 390, 768, 1040])
def test_a_screen_of_any_width_does_not_scroll_sideways(page, path, width):
    page.resize(width, PHONE[1], is_phone=True)
    page.open(path)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    right_ends = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('svg'))"
        ".map(e => e.getBoundingClientRect().right)"
    )
    assert max(right_ends) <= width


def test_two_runs_stand_side_by_side_with_what_differs(page):
    page.evaluate(
        "(([left, right]) => { left.value = '0'; right.value = '2';"
        " left.dispatchEvent(new Event('change')) })"
        "(['left', 'right'].map(id => document.getElementById(id)))"
    )
    rows = page.evaluate(
        "[...document.querySelectorAll('#compared tr:not(.group)')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["recipe.model"][1] == "\u2013"
    assert by_name["status"] == ["complete", "partial"]
    assert "recipe.batch_size" not in by_name  # they agree
    assert page.evaluate("document.querySelectorAll('#pair svg').length") == 2


def test_a_dark_page_draws_its_figures_light_on_dark(page):
    page.emulate(scheme="dark")
    first = "getComputedStyle(document.querySelector('figure svg %s')).%s.match(/[\\d.]+/g)"
    axis = page.evaluate(first % ('[id$="patch_3"] path', "stroke"))
    text = page.evaluate(first % ('[id$="text_1"] use', "fill"))
    assert min(float(channel) for channel in text[:3]) > 200  # of 255
    assert min(float(channel) for channel in axis[:3]) > 0.8  # color-mix gives fractions


def test_a_print_leaves_out_what_paper_cannot_do(page):
    page.emulate(media="print", scheme="dark")
    shown = "getComputedStyle(document.getElementById('side-by-side')).display"
    assert page.evaluate(shown) == "none"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_print_fits_the_width_of_a_sheet(page):
    page.resize(718, 1_000)  # A4 without margins of 1 cm, at 96 px an inch
    page.emulate(media="print")
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0
