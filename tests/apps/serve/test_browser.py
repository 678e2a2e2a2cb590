"""The page and the report in a real browser."""

from __future__ import annotations

import base64
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium")
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from relocal_pyg.formats import FORMATS
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.models.calibrated import Calibrated
from relocal_pyg.video import VideoQuery, find_moments, write_found_page

EVIL = "<img src=x onerror=document.title='run'>.mp4"


def severe(browser: Any) -> list[str]:
    """What the page complains of; one before it may still ask a server that has ended."""
    said = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    here = browser.current_url.split("/")[2]
    return [message for message in said if here in message or "http://127.0.0.1" not in message]


def wait(browser: Any, condition: Any) -> Any:
    """Until a condition holds; what the page redraws meanwhile is looked at again."""
    again = [StaleElementReferenceException]
    return WebDriverWait(browser, 60, 0.1, ignored_exceptions=again).until(condition)


def drop(browser: Any, file: Path, name: str, side: str) -> None:
    """Let a file fall onto one of the two places, as a file manager does."""
    browser.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], arguments[1], { type: "video/mp4" }));
        const place = document.querySelector(`[data-side=${arguments[2]}]`);
        for (const kind of ["dragover", "drop"])
          place.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true }));
        """,
        base64.b64encode(file.read_bytes()).decode(),
        name,
        side,
    )


def chosen(browser: Any, side: str) -> str:
    return Select(browser.find_element(By.ID, side)).first_selected_option.text


def at(browser: Any, player: Any, time: float) -> None:
    wait(browser, lambda b: player.get_property("readyState") >= 1)
    browser.execute_script("arguments[0].currentTime = arguments[1]", player, time)
    wait(browser, lambda b: abs(player.get_property("currentTime") - time) < 0.01)


def cards(browser: Any) -> list[Any]:
    wait(browser, lambda b: b.find_element(By.ID, "results").is_displayed())
    return list(browser.find_elements(By.CSS_SELECTOR, "#moments > li"))


def times(card: Any) -> str:
    return str(card.find_element(By.CLASS_NAME, "time").text)


@pytest.mark.slow
def test_drop_mark_find_play_judge_drag_export_and_reload(
    browser, served, films, monkeypatch, constant
):
    told = Calibrated(ContrastMatcher(), constant())
    monkeypatch.setattr(served.model, "rank", told.rank)
    browser.get(served.url)
    find = browser.find_element(By.ID, "find")
    wait(browser, lambda b: len(Select(b.find_element(By.ID, "reference")).options) == 2)
    assert not find.is_enabled()
    drop(browser, films["clip"], EVIL, "reference")
    wait(browser, lambda b: chosen(b, "reference") == f"{EVIL} (0:02.00)")
    drop(browser, films["reference"], "long.mp4", "query")
    wait(browser, lambda b: chosen(b, "query") == "long.mp4 (0:09.00)")
    Select(browser.find_element(By.ID, "reference")).select_by_visible_text(
        "reference.mp4 (0:09.00)"
    )

    # In and out by key; a handle goes by arrow keys too.
    player = browser.find_element(By.ID, "query-player")
    for time, key in ((4, "i"), (6, "o")):
        at(browser, player, time)
        player.send_keys(key)
    assert browser.find_element(By.ID, "span").text == "0:04.00 to 0:06.00"
    start = browser.find_elements(By.CSS_SELECTOR, "#query-scrubber [role=slider]")[0]
    start.send_keys(Keys.ARROW_LEFT)
    assert start.get_attribute("aria-valuetext") == "0:03.96"
    start.send_keys(Keys.ARROW_RIGHT)
    strip = browser.find_element(By.CSS_SELECTOR, "#query-scrubber img")
    wait(browser, lambda b: strip.get_property("naturalWidth") == 12 * 96)
    find.click()
    first, *others = cards(browser)
    found = times(first)
    assert found.startswith("0:04.0")
    assert "probability 0.50" in first.text
    assert "centred by its own video" in browser.find_element(By.ID, "settings").text
    assert browser.switch_to.active_element == first

    # The picture plays, over and over, inside its bounds.
    first.send_keys(Keys.ENTER)
    loop = first.find_element(By.TAG_NAME, "video")
    wait(browser, lambda b: loop.get_property("currentTime") > 4.5)
    assert loop.get_property("currentTime") < 6.1
    first.find_element(By.CLASS_NAME, "stage").click()
    assert loop.get_property("paused")

    # Yes and no: what was judged stays, the others are ranked anew; a boundary is drawn out.
    key, told = browser.current_url.partition("#")[2], browser.find_element(By.ID, "told")
    first.send_keys("y")
    wait(browser, lambda b: told.text == "you said yes to 1")
    unlike = browser.switch_to.active_element
    assert unlike == cards(browser)[1]
    place = times(unlike)
    unlike.send_keys("n")
    wait(browser, lambda b: told.text == "you said yes to 1; you said no to 1")
    first, *others = cards(browser)
    assert times(first) == found
    assert times(others[-1]) == place
    assert browser.switch_to.active_element == others[0]
    kept = served.outcome(key)
    assert (kept["settings"]["examples"], kept["settings"]["counter_examples"]) == (2, 1)
    handle = first.find_elements(By.CSS_SELECTOR, "[role=slider]")[1]
    ActionChains(browser).drag_and_drop_by_offset(handle, 30, 0).perform()
    wait(browser, lambda b: served.outcome(key)["moments"][0]["end"] > 6.1)
    wait(browser, lambda b: told.text == "you said yes to 1; you said no to 1")
    first, *others = cards(browser)
    drawn = times(first)
    assert drawn != found

    # What is less probable than the slider says goes, but for what somebody said yes to.
    browser.execute_script(
        "const s = document.getElementById('least'); s.value = 80;"
        "s.dispatchEvent(new Event('input'))"
    )
    assert [card.is_displayed() for card in cards(browser)] == [True] + [False] * len(others)
    Select(browser.find_element(By.ID, "format")).select_by_value("srt")
    link = browser.find_element(By.ID, "save").get_attribute("href").removeprefix(served.url)
    code, headers, text = served.ask("GET", link)
    assert code == 200
    assert headers["content-disposition"] == 'attachment; filename="moments.srt"'
    assert text.decode().count("-->") == 1
    assert text.decode().splitlines()[1].startswith("00:00:04,000 --> 00:00:06,")

    # A reload shows it again, and a second search stands beside it.
    browser.refresh()
    wait(browser, lambda b: b.find_element(By.ID, "results").is_displayed())
    assert times(cards(browser)[0]) == drawn
    assert [card.get_attribute("class") for card in cards(browser)[:: len(others)]] == ["yes", "no"]
    Select(browser.find_element(By.ID, "reference")).select_by_visible_text(f"{EVIL} (0:02.00)")
    # What was said there serves here too; answers stay tied to their own pair.
    assert browser.find_element(By.ID, "like-label").text == "with the 2 judged before"
    assert "in reference.mp4" in browser.find_element(By.ID, "results-title").text
    browser.find_element(By.ID, "find").click()
    wait(browser, lambda b: EVIL in b.find_element(By.ID, "results-title").text)
    assert "with 2 judged before" in browser.find_element(By.ID, "told").text
    earlier = browser.find_elements(By.CSS_SELECTOR, "#history button")
    assert len(earlier) == 2
    earlier[1].click()
    wait(browser, lambda b: times(cards(b)[0]) == drawn)
    assert browser.title == "relocal: find a moment"
    assert severe(browser) == []
    browser.get(browser.find_element(By.ID, "report").get_attribute("href"))
    assert browser.title == "long.mp4 in reference.mp4"
    assert severe(browser) == []


@pytest.mark.slow
def test_a_reload_goes_on_waiting(browser, served):
    inside, go_on = threading.Event(), threading.Event()

    def hold(progress: Any, marks: Any) -> Any:
        inside.set()
        go_on.wait(60)
        raise RuntimeError

    about = {"reference": None, "examples": []}
    served.searches.submit(hold, ("a", "b"), about)
    assert inside.wait(60)
    browser.get(served.url)
    wait(browser, lambda b: len(Select(b.find_element(By.ID, "reference")).options) == 2)
    for side in ("query", "reference"):
        Select(browser.find_element(By.ID, side)).select_by_index(1)
    browser.find_element(By.ID, "find").click()
    for _ in range(2):
        wait(browser, lambda b: b.find_element(By.ID, "status").text == "Waiting …")
        assert browser.find_element(By.ID, "cancel").is_displayed()
        assert chosen(browser, "query") == "reference.mp4 (0:09.00)"
        browser.refresh()
    go_on.set()
    assert cards(browser)
    assert not browser.find_element(By.ID, "history").is_displayed()
    # Without its name it can be chosen, though it is the only one.
    browser.get("about:blank")
    browser.get(served.url)
    earlier = wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#history button"))
    assert len(earlier) == 1
    earlier[0].click()
    assert cards(browser)
    assert severe(browser) == []


@pytest.mark.slow
def test_the_first_answer_takes_three_clicks(browser, served_nothing):
    browser.get(served_nothing.url)
    wait(browser, lambda b: b.find_element(By.ID, "example").is_displayed())
    browser.find_element(By.ID, "example").click()
    find = browser.find_element(By.ID, "find")
    wait(browser, lambda b: find.is_enabled())
    assert browser.find_element(By.ID, "span").text == "0:04.00 to 0:08.00"
    find.click()
    stage = cards(browser)[0].find_element(By.CLASS_NAME, "stage")
    stage.click()
    player = stage.find_element(By.TAG_NAME, "video")
    wait(browser, lambda b: player.get_property("readyState") >= 2)
    assert severe(browser) == []


@pytest.mark.slow
def test_an_index_is_searched_and_each_answer_plays_in_its_own_video(
    browser, served_index, tmp_path
):
    browser.get(served_index.url)
    reference = Select(wait(browser, lambda b: b.find_element(By.ID, "reference")))
    wait(browser, lambda b: len(reference.options) == 5)
    # What an index is opened for comes first.
    assert reference.first_selected_option.text == "all 3 videos of the index"
    Select(browser.find_element(By.ID, "query")).select_by_visible_text("two.mp4 (0:06.00)")
    marked = browser.find_element(By.ID, "query-player")
    for edge, time in (("start", 2), ("end", 4)):
        at(browser, marked, time)
        browser.find_element(By.ID, f"mark-{edge}").click()
    browser.find_element(By.ID, "find").click()
    found = cards(browser)
    assert not browser.find_element(By.ID, "timeline").is_displayed()
    names = [card.find_element(By.CLASS_NAME, "name").text for card in found[:2]]
    assert sorted(names) == ["three.mp4", "two.mp4"]
    ids = {entry.name: entry.key for entry in served_index.library.entries()}
    for card, name in zip(found, names, strict=False):
        card.find_element(By.CLASS_NAME, "stage").click()
        player = card.find_element(By.TAG_NAME, "video")
        begin = {"three.mp4": 4, "two.mp4": 2}[name]
        wait(browser, lambda b, p=player, t=begin: t <= p.get_property("currentTime") <= t + 2.1)
        assert player.get_property("currentSrc").endswith(ids[name])
    assert found[0].find_element(By.TAG_NAME, "video").get_property("paused")

    # Only what holds several videos is offered, and a table first.
    browser.execute_cdp_cmd(
        "Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    form = Select(browser.find_element(By.ID, "format"))
    assert form.first_selected_option.get_attribute("value") == "csv"
    offered = {option.get_attribute("value") for option in form.options}
    assert offered == {name for name, each in FORMATS.items() if each.several} | {"query"}
    browser.find_element(By.ID, "save").click()
    table = tmp_path / "moments.csv"
    wait(browser, lambda b: table.is_file())
    assert table.read_text().splitlines()[0] == "rank,video,start,end,score"
    assert severe(browser) == []
    # What is refused is said.
    for entry in served_index.library.entries():
        entry.path.unlink()
    form.select_by_value("otio")
    browser.find_element(By.ID, "save").click()
    status = browser.find_element(By.ID, "status")
    wait(browser, lambda b: "the frame rate is not known" in status.text)
    assert all("400" in message for message in severe(browser))


@pytest.mark.slow
def test_a_format_that_no_browser_plays_is_shown_as_a_preview(browser, served, old_film):
    browser.get(served.url)
    browser.find_element(By.ID, "query-file").send_keys(str(old_film))
    player = browser.find_element(By.ID, "query-player")
    wait(browser, lambda b: player.get_property("readyState") >= 2)
    assert player.get_property("currentSrc").endswith("/preview")
    assert player.get_property("videoWidth") == 64
    assert not browser.find_element(By.ID, "query-note").is_displayed()


@pytest.mark.slow
def test_a_film_that_is_heard_alone_is_shown_as_a_preview(browser, served, heard_film):
    browser.get(served.url)
    browser.find_element(By.ID, "query-file").send_keys(str(heard_film))
    player = browser.find_element(By.ID, "query-player")
    wait(browser, lambda b: player.get_property("videoWidth") == 64)
    assert player.get_property("currentSrc").endswith("/preview")


@pytest.mark.slow
def test_a_clip_is_marked_anew_and_back_goes_to_the_answers_before(browser, served, monkeypatch):
    go_on = threading.Event()  # nobody waits for pictures

    def strip(*given: Any) -> bytes:
        go_on.wait(60)
        return b""

    monkeypatch.setattr("relocal_pyg.apps.serve.app.strip", strip)
    browser.get(served.url)
    wait(browser, lambda b: len(Select(b.find_element(By.ID, "query")).options) == 2)
    for side in ("query", "reference"):
        Select(browser.find_element(By.ID, side)).select_by_index(1)
    player, title = (
        browser.find_element(By.ID, name) for name in ("query-player", "results-title")
    )
    span = browser.find_element(By.ID, "span")
    for stretch, ends in (((1, 2), "0:01.00 to 0:02.00"), ((4, 6), "0:04.00 to 0:06.00")):
        for time, key in zip(stretch, "io", strict=True):
            at(browser, player, time)
            player.send_keys(key)
        assert span.text == ends
        browser.find_element(By.ID, "find").click()
        wait(browser, lambda b, ends=ends: ends in title.text)
    first = cards(browser)[0]
    first.send_keys("y")
    wait(browser, lambda b: b.find_element(By.ID, "told").text == "you said yes to 1")
    go_on.set()
    browser.back()
    wait(browser, lambda b: "0:01.00 to 0:02.00" in title.text)


@pytest.mark.slow
def test_a_file_that_is_no_video_is_refused_in_words(browser, served, tmp_path):
    (tmp_path / "list.mp4").write_text("milk, bread\n" * 100)
    browser.get(served.url)
    browser.find_element(By.ID, "query-file").send_keys(str(tmp_path / "list.mp4"))
    status = browser.find_element(By.ID, "status")
    wait(browser, lambda b: "not a video" in status.text)
    assert "bad" in status.get_attribute("class")
    assert all("415" in message for message in severe(browser))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference.mp4", EVIL])
def test_the_report_opens_without_a_network_and_by_keyboard(browser, films, blocks, tmp_path, name):
    place: Path = tmp_path / name
    place.write_bytes(films["reference"].read_bytes())
    found = find_moments(
        VideoQuery(place, 4.0, 6.0), place, backbone=blocks, top_k=3, include_query=True
    )
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
    assert label == "Moment 1: 0:00:04.000 to 0:00:06.080"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.current_url.endswith("#moment-1")
    shown = browser.execute_script("return document.querySelector('li:target h3').textContent")
    assert shown.startswith("1. 0:00:04.000 to 0:00:06.080")
