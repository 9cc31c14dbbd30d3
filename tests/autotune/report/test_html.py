"""The report as a page: of finished studies and others, and in a real browser."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.config import ThroughputConfig
from autotune.report.dataframe import load_study
from autotune.report.html import make_page
from autotune.report.study_view import open_view
from autotune.study.records import Phase
from autotune.study.storage import storage_url
from autotune.study.store import open_study

from ..commands import autotune_here, begin_run
from ..conftest import stop, wait_until
from ..made_up import FAILURE, keep_trial

RECORDED = Path(__file__).parents[3] / "notebooks" / "recorded_study.db"
BASELINE = ThroughputConfig(batch_size=4, num_threads=1)
# In the order in which a run stores them.
FACTS = {
    "baseline": BASELINE.to_dict(),
    "effective_batch_size": None,
    "machine": {
        "cpu": "a <b>CPU</b>",
        "usable_cores": 2,
        "memory_bytes": 2**30,
        "system": "Linux",
        "hostname": "here",
    },
    "command": ["python", "</script><script>alert(1)</script>"],
    "versions": {"torch": "2"},
    "searched_axes": {"batch_size": [2, 4], "num_workers": [0, 1], "prefetch_factor": [2, 4]},
}
PHONE, DESK = (390, 844), (1280, 900)
PLOTS = "return document.querySelectorAll('.plot').length"
DRAWN = "return document.querySelectorAll('.plot .main-svg:first-child').length"
COLUMN = """
    const names = [...document.querySelectorAll('#trials th')].map(cell => cell.innerText.trim());
    const place = names.indexOf(arguments[0]);
    const rows = [...document.querySelectorAll('#trials tbody tr')];
    return rows.map(row => row.cells[place].innerText);
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A study without facts or trials, in a storage that is the default."""
    monkeypatch.chdir(tmp_path)
    return open_study(storage_url("studies/autotune.db"), "s", fresh=False)


@pytest.fixture(scope="session")
def browser():
    """A headless browser that keeps what pages write to the console."""
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs chromium and chromedriver: see .ci/run")
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    # No sandbox: CI is root. The others keep it from calling home.
    for option in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options=options, service=service) as found:
        yield found


def show(browser, page, size, scheme="light"):
    """Open a page at a size, and wait until its plots are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(Path(page).absolute().as_uri())
    WebDriverWait(browser, 60).until(
        lambda _: browser.execute_script("return document.body.dataset.drawn !== undefined")
    )


def page_of_latest():
    return make_page(open_view("studies/autotune.db"), load_study("studies/autotune.db"))


def heading(page):
    return re.search("<h1>(.*)</h1>", page)[1]


def test_a_finished_study_is_readable_at_any_size_without_errors(tmp_path, monkeypatch, browser):
    monkeypatch.chdir(tmp_path)
    assert autotune_here(str(RECORDED), "-o", "page.html", command="report").returncode == 0
    for size in (DESK, PHONE):
        for scheme in ("light", "dark"):
            show(browser, "page.html", size, scheme)
            assert browser.get_log("browser") == []
            assert browser.execute_script(DRAWN) == browser.execute_script(PLOTS) >= 5
            width = browser.execute_script("return document.documentElement.scrollWidth")
            assert width <= size[0]
            # Nothing was fetched beside the page.
            fetched = browser.execute_script("return performance.getEntriesByType('resource')")
            assert fetched == []
    assert "x faster: batch_size " in browser.find_element("tag name", "h1").text
    assert "critical" in browser.find_element("id", "findings").text
    assert "batch_size" in browser.find_element("id", "findings").text


def test_the_table_of_trials_is_sorted_by_a_touch(store, browser):
    store.set_facts(**FACTS)
    for rate, batch_size in ((900.0, 4), (1000.0, 2), (90.0, 8)):
        keep_trial(store, ThroughputConfig(batch_size=batch_size, num_threads=1), rate)
    store.fail(store.begin(BASELINE, Phase.SEARCH), FAILURE)
    assert autotune_here(command="report").returncode == 0
    show(browser, "report.html", PHONE)
    assert browser.execute_script(COLUMN, "trial") == ["0", "1", "2", "3"]
    browser.find_element("xpath", "//th/button[text()='samples/s']").click()
    # Numbers, not texts; what is missing comes last in either order.
    assert browser.execute_script(COLUMN, "samples/s") == ["90", "900", "1,000", ""]
    browser.find_element("xpath", "//th/button[text()='samples/s']").click()
    assert browser.execute_script(COLUMN, "samples/s") == ["1,000", "900", "90", ""]
    browser.find_element("xpath", "//th/button[text()='remarks']").click()
    assert browser.execute_script(COLUMN, "remarks")[0] == "crashed: it broke"
    assert browser.get_log("browser") == []


def test_what_others_wrote_into_a_study_is_text_and_nothing_else(store, browser):
    store.set_facts(**FACTS)
    keep_trial(store, BASELINE, 100.0)
    Path("page.html").write_text(page_of_latest())
    show(browser, "page.html", DESK)
    assert browser.get_log("browser") == []
    shown = browser.find_element("tag name", "dl").text
    assert "a <b>CPU</b>" in shown
    assert "</script><script>alert(1)</script>" in shown


def test_the_dashboard_of_optuna_shows_a_study_by_the_names_of_its_settings(store, browser):
    store.set_facts(**FACTS)
    for rate, batch_size in ((900.0, 4), (1000.0, 2)):
        keep_trial(store, ThroughputConfig(batch_size=batch_size, num_threads=1), rate)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()"]
    server = subprocess.Popen(
        [*command, "sqlite:///studies/autotune.db", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def listens():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True

    def page_has(*texts):
        with contextlib.suppress(Exception):
            shown = browser.find_element("tag name", "body").text
            return all(text in shown for text in texts)

    try:
        assert wait_until(listens, 30)
        browser.get(f"http://127.0.0.1:{port}/dashboard/studies/1")
        assert wait_until(lambda: page_has("samples per second", "Best Trial", "batch_size: 2"), 30)
        assert page_has("1000")
    finally:
        stop(server)


def test_a_study_that_has_not_begun_has_a_page(store):
    assert heading(page_of_latest()) == "Study s has measured nothing yet"
    # Killed, or looked at, between two facts.
    for name, value in FACTS.items():
        store.set_facts(**{name: value})
        assert heading(page_of_latest()) == "Study s has measured nothing yet"


def test_a_study_of_which_everything_failed_shows_why(store):
    store.set_facts(**FACTS)
    store.fail(store.begin(BASELINE, Phase.BASELINE), FAILURE)
    page = page_of_latest()
    assert heading(page) == "Study s has measured nothing yet"
    assert "it broke" in page


def test_a_study_that_is_being_written_shows_what_is_known(store):
    store.set_facts(**FACTS)
    keep_trial(store, BASELINE, 100.0, Phase.BASELINE)
    # With the baseline alone there is nothing to compare.
    assert 'id="findings"' not in page_of_latest()
    keep_trial(store, ThroughputConfig(batch_size=2, num_threads=1), 150.0)
    store.begin(ThroughputConfig(batch_size=2, num_workers=1, num_threads=1), Phase.SEARCH)
    page = page_of_latest()
    assert heading(page).startswith("Study s has not come to an answer; best so far: batch 2")
    assert "running" in page
    assert 'id="waterfall"' in page
    done = autotune_here("studies/autotune.db", command="show")
    assert "not confirmed" in done.stdout


def test_a_report_can_be_made_while_a_run_goes_on(study):
    axes = {"batch_size": [2, 4, 8, 16, 32], "num_workers": [0], "num_threads": [1, 2]}
    run = begin_run(study(axes=axes, max_blocks=20), 4)
    done = autotune_here(command="report")
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=30)
    assert done.returncode == 0, done.stderr
    assert "has not come to an answer; best so far" in heading(Path("report.html").read_text())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--storage", "nowhere.db"], "there is no such file"),
        (["other"], "study other: not in"),
        (["-o", "no/such/place.html"], "there is no directory"),
        (["-o", "."], "is a directory"),
        (["sqlite:///nowhere.db"], "there is no such file"),
        (["nowhere.db"], "there is no such file"),
    ],
)
def test_a_report_that_cannot_be_made_says_why(store, options, said):
    done = autotune_here(*options, command="report")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert list(Path.cwd().iterdir()) == [Path.cwd() / "studies"]
