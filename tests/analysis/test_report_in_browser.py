"""Reports of runs as Chromium shows them, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deflow_vision.analysis.report.run import write_run_report
from tests.analysis.conftest import FILM_SECONDS
from tests.analysis.test_report import EVIL, evil_run  # noqa: F401

PLAYED = """
new Promise((tell) => {
  const film = document.querySelector("video");
  film.addEventListener("timeupdate", () => {
    if (film.currentTime > 0.2) tell([film.duration, film.videoWidth, film.readyState]);
  });
  film.addEventListener("error", () => tell(film.error.message));
  film.play().catch((error) => tell(String(error)));
})
"""
OVER_THE_MIDDLE = """
(() => {
  const svg = document.querySelector("svg[data-lines]");
  const box = svg.getBoundingClientRect();
  const at = {clientX: box.left + 0.55 * box.width, clientY: box.top + 50};
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  const tip = svg.closest("figure").querySelector(".tip");
  const shown = [...tip.children].map((line) => line.textContent);
  svg.dispatchEvent(new PointerEvent("pointerleave"));
  return [shown, tip.hidden];
})()
"""
TYPE = """
(() => {
  const input = document.querySelector("#config input");
  input.value = WORDS;
  input.dispatchEvent(new Event("input"));
  return [...document.querySelectorAll("#config tr")].filter((row) => row.offsetParent)
    .map((row) => row.cells[0].textContent);
})()
"""


@pytest.fixture(scope="module")
def page(browser, whole_run, tmp_path_factory):
    copy = shutil.copytree(whole_run, tmp_path_factory.mktemp("shown") / "run")
    return browser.open(write_run_report(Path(copy)))


def test_the_page_asks_for_nothing_and_complains_of_nothing(page):
    page.run("new Promise((tell) => setTimeout(tell, 0))")
    assert page.complaints() == []
    assert {address.partition(":")[0] for address in page.requests()} <= {"file", "data"}


def test_a_film_plays(page):
    duration, width, ready = page.run(PLAYED)
    assert duration == pytest.approx(FILM_SECONDS, abs=0.11)
    assert width == 256
    assert ready >= 2


def test_a_damaged_film_says_so(browser, run):
    (run / "videos" / "step_30_episode_0.mp4").write_bytes(b"no film at all")
    page = browser.open(write_run_report(run))
    words = """new Promise((tell) => {
      const look = (times) => {
        const caption = document.querySelector(".videos figcaption").textContent;
        if (caption.includes("damaged") || times === 0) tell(caption);
        else setTimeout(look, 50, times - 1);
      };
      look(200);
    })"""
    assert "This video is damaged" in page.run(words)


def test_the_pointer_reads_values_off_a_chart(page):
    shown, hidden = page.run(OVER_THE_MIDDLE)
    assert shown == ["step 20", "success 50 [15, 85]"]
    assert hidden


def test_settings_are_found_by_words(page):
    assert page.run(TYPE.replace("WORDS", '"target divergence"')) == ["agent.target_divergence"]
    assert page.run(TYPE.replace("WORDS", '"0.005 agent"')) == [
        "agent.tau",
        "agent.target_divergence",
    ]
    assert len(page.run(TYPE.replace("WORDS", '""'))) > 50


def test_sections_fold(page):
    height = "document.querySelector('#curves').offsetHeight"
    before = page.run(height)
    page.run("document.querySelector('#curves summary').click()")
    assert page.run(height) < before


def test_the_page_is_light_or_dark_as_the_reader_has_it_and_light_on_paper(page):
    lightness = "parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    seen = []
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        page.show_as(scheme, media)
        seen.append(page.run(lightness))
    page.show_as()
    light, dark, paper = seen
    assert light == paper == 255
    assert dark < 50


def test_paper_shows_what_was_folded(page):
    folded = "document.querySelectorAll('details:not([open])').length"
    assert page.run(folded) > 0
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run(folded) == 0


def test_nothing_of_a_name_is_run(browser, evil_run):  # noqa: F811
    page = browser.open(write_run_report(evil_run))
    assert EVIL[:20] in page.run("document.body.textContent")
    assert page.run("typeof window.caught") == "undefined"
    assert page.complaints() == []


def test_a_script_that_is_not_the_pages_own_is_refused(browser, run):
    path = write_run_report(run)
    html = path.read_text().replace("</main>", "<script>window.caught = 1</script></main>")
    path.write_text(html)
    page = browser.open(path)
    assert page.run("typeof window.caught") == "undefined"
    assert any("Content Security Policy" in words for words in page.complaints())


def test_a_narrow_window_needs_no_scrolling_aside(browser, run):
    page = browser.open(write_run_report(run), width=420)
    assert page.run("document.documentElement.scrollWidth") <= 420
