"""The page and the report in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from relocal_pyg.models import ContrastMatcher
from relocal_pyg.models.calibrated import FACTS, Calibrated, Confidence
from relocal_pyg.models.presence import Logistic
from relocal_pyg.video import VideoQuery, find_moments, write_found_page

EVIL = "<img src=x onerror=document.title='run'>.mp4"


def severe(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def wait(browser: Any, condition: Any) -> Any:
    return WebDriverWait(browser, 60, poll_frequency=0.1).until(condition)


def test_load_choose_search_and_play(browser, served, films, tmp_path, monkeypatch):
    zeros, ones = (0.0,) * len(FACTS), (1.0,) * len(FACTS)
    even = Logistic(zeros, ones, zeros, 0.0)
    told = Calibrated(ContrastMatcher(), Confidence(even, even, 20, 20, 15))
    monkeypatch.setattr(served.model, "rank", told.rank)
    upload = tmp_path / EVIL
    upload.write_bytes(films["clip"].read_bytes())
    browser.get(served.url)
    find = browser.find_element(By.ID, "find")
    reference = Select(wait(browser, lambda b: b.find_element(By.ID, "reference")))
    wait(browser, lambda b: len(reference.options) == 2)
    assert not find.is_enabled()
    reference.select_by_visible_text("reference.mp4 (0:09.00)")
    browser.find_element(By.ID, "query-file").send_keys(str(upload))
    query = Select(browser.find_element(By.ID, "query"))
    wait(browser, lambda b: query.first_selected_option.get_attribute("value"))
    assert query.first_selected_option.text == f"{EVIL} (0:02.00)"
    assert find.is_enabled()

    find.click()
    wait(browser, lambda b: b.find_element(By.ID, "results").is_displayed())
    moments = browser.find_elements(By.CSS_SELECTOR, "#moments button")
    assert moments[0].text.split("\n")[1] == "0:04.00 to 0:06.00"
    assert moments[0].text.endswith(", probability 0.50")
    assert "(probability that the reference holds it: 0.50)" in browser.page_source
    assert len(browser.find_elements(By.CSS_SELECTOR, "#timeline rect")) == len(moments)

    moments[0].click()
    player = browser.find_element(By.ID, "reference-player")
    wait(browser, lambda b: 4 <= player.get_property("currentTime") <= 6.1)
    assert moments[0].get_attribute("aria-pressed") == "true"
    # It stops by itself where the moment ends.
    wait(
        browser,
        lambda b: player.get_property("paused") and player.get_property("currentTime") > 5.8,
    )
    assert player.get_property("currentTime") < 6.5
    assert browser.title == "relocal: find a moment"
    assert severe(browser) == []

    browser.get(browser.find_element(By.ID, "report").get_attribute("href"))
    assert browser.title == f"{EVIL} in reference.mp4"
    assert severe(browser) == []


def test_an_index_is_searched_and_hits_of_several_videos_play(browser, served_index):
    browser.get(served_index.url)
    reference = Select(wait(browser, lambda b: b.find_element(By.ID, "reference")))
    wait(browser, lambda b: len(reference.options) == 5)
    # What an index is opened for comes first.
    assert reference.first_selected_option.text == "all 3 videos of the index"
    find = browser.find_element(By.ID, "find")
    assert not find.is_enabled()
    Select(browser.find_element(By.ID, "query")).select_by_visible_text("two.mp4 (0:06.00)")
    marked = browser.find_element(By.ID, "query-player")
    for edge, time in (("start", 2), ("end", 4)):
        wait(browser, lambda b: marked.get_property("readyState") >= 1)
        browser.execute_script("arguments[0].currentTime = arguments[1]", marked, time)
        browser.find_element(By.ID, f"mark-{edge}").click()
    find.click()
    wait(browser, lambda b: b.find_element(By.ID, "results").is_displayed())
    assert not browser.find_element(By.ID, "timeline").is_displayed()
    assert not browser.find_element(By.ID, "report").is_displayed()
    moments = browser.find_elements(By.CSS_SELECTOR, "#moments button.hit")
    names = [moment.find_element(By.CLASS_NAME, "name").text for moment in moments[:2]]
    assert sorted(names) == ["three.mp4", "two.mp4"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#moments svg rect")) == len(moments)

    player = browser.find_element(By.ID, "reference-player")
    ids = {entry.name: entry.key for entry in served_index.library.entries()}
    starts = {"three.mp4": 4, "two.mp4": 2}
    # From one video to another and back.
    for number in (0, 1, 0):
        moments[number].click()
        start = starts[names[number]]
        wait(browser, lambda b, at=start: at - 0.5 <= player.get_property("currentTime") <= at + 2)
        assert player.get_property("currentSrc").endswith(ids[names[number]])
        assert browser.find_element(By.ID, "reference-name").text == names[number]
        assert moments[number].get_attribute("aria-pressed") == "true"
    wait(browser, lambda b: player.get_property("paused"))
    assert player.get_property("currentTime") <= starts[names[0]] + 2.6
    assert severe(browser) == []

    # One of its videos alone: a curve and a report as ever.
    reference.select_by_visible_text("three.mp4 (0:06.00)")
    assert not browser.find_element(By.ID, "reference-name").is_displayed()
    find.click()
    wait(browser, lambda b: b.find_element(By.ID, "timeline").is_displayed())
    assert browser.find_element(By.ID, "report").is_displayed()
    first = browser.find_element(By.CSS_SELECTOR, "#moments button")
    assert first.text.split("\n")[1] == "0:04.00 to 0:06.00"
    assert severe(browser) == []


def test_the_query_is_marked_on_the_player(browser, served):
    browser.get(served.url)
    wait(browser, lambda b: len(Select(b.find_element(By.ID, "query")).options) == 2)
    for side in ("query", "reference"):
        Select(browser.find_element(By.ID, side)).select_by_index(1)
    player = browser.find_element(By.ID, "query-player")
    for edge, time in (("start", 4), ("end", 6)):
        wait(browser, lambda b: player.get_property("readyState") >= 1)
        browser.execute_script("arguments[0].currentTime = arguments[1]", player, time)
        browser.find_element(By.ID, f"mark-{edge}").send_keys(Keys.ENTER)
    assert browser.find_element(By.ID, "start").get_property("value") == "4.00"
    assert browser.find_element(By.ID, "end").get_property("value") == "6.00"
    browser.find_element(By.ID, "find").send_keys(Keys.ENTER)
    wait(browser, lambda b: b.find_element(By.ID, "results").is_displayed())
    first = browser.find_element(By.CSS_SELECTOR, "#moments button")
    assert "0:04.00 to 0:06.00" in first.text
    assert "centred by its own video" in browser.find_element(By.ID, "settings").text


def test_a_file_that_is_no_video_is_refused_in_words(browser, served, tmp_path):
    (tmp_path / "list.mp4").write_text("milk, bread\n" * 100)
    browser.get(served.url)
    browser.find_element(By.ID, "query-file").send_keys(str(tmp_path / "list.mp4"))
    status = browser.find_element(By.ID, "status")
    wait(browser, lambda b: "not a video" in status.text)
    assert "bad" in status.get_attribute("class")
    assert all("415" in message for message in severe(browser))


@pytest.mark.parametrize("name", ["reference.mp4", EVIL])
def test_the_report_opens_without_a_network_and_by_keyboard(browser, films, blocks, tmp_path, name):
    place: Path = tmp_path / name
    place.write_bytes(films["reference"].read_bytes())
    found = find_moments(VideoQuery(place, 4.0, 6.0), place, backbone=blocks, top_k=3)
    write_found_page(tmp_path / "report.html", found)
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.title == f"{name} in {name}"
    assert severe(browser) == []
    assert not browser.execute_script(
        "return performance.getEntriesByType('resource')"
        ".filter((r) => !r.name.startsWith('data:')).length"
    )
    pictures = browser.find_elements(By.TAG_NAME, "img")
    assert len(pictures) == 6 + 6 * len(found.moments) + 1
    assert all(picture.get_property("naturalWidth") > 0 for picture in pictures)
    assert all(picture.get_attribute("alt") for picture in pictures)
    # No picture is wider than the page.
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    # Tab reaches the first bar of the timeline, Enter leads to its card.
    for _ in range(20):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        label = browser.switch_to.active_element.get_attribute("aria-label") or ""
        if label.startswith("Moment 1:"):
            break
    assert label == "Moment 1: 0:00:04.000 to 0:00:06.000"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.current_url.endswith("#moment-1")
    shown = browser.execute_script("return document.querySelector('li:target h3').textContent")
    assert shown.startswith("1. 0:00:04.000 to 0:00:06.000")
