"""The live page in a real browser."""

import base64
import hashlib
import os
import re
import shutil
import signal
import subprocess
from html import unescape

import pytest

from sleep_rl.watch.page import PAGE
from sleep_rl.watch.server import PAGE_POLICY
from tests.fakes.processes import LIMIT_S
from tests.fakes.watched_runs import EVIL, begin, seed, wicked

CHROME = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
browser = pytest.mark.skipif(not CHROME, reason="no chromium or chrome on this machine's PATH")


def dom(url, tmp_path, milliseconds=4000, width=1200):
    """Return the page's DOM after a while in a real browser. One that hangs, as chromium may on a
    busy machine, is killed with its children and started again.
    """
    for last in (False, True):
        browser = subprocess.Popen(
            [
                CHROME,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--window-size={width},2000",
                f"--user-data-dir={tmp_path / f'profile-{last}'}",
                f"--virtual-time-budget={milliseconds}",
                "--dump-dom",
                url,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            page, _ = browser.communicate(timeout=LIMIT_S if last else 120)
            assert browser.returncode == 0 and "<main>" in page
            return page
        except subprocess.TimeoutExpired:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.communicate()
            assert not last, "two browsers hung"


@pytest.mark.stack
@browser
def test_browser_shows_the_run_with_escaped_texts(tmp_path, watch):
    folder = tmp_path / "run"
    folder.mkdir()
    wicked(folder)
    page = dom(watch(folder).server.url, tmp_path)
    assert "<title>run – sleep_rl</title>" in page and "Running" in page and "Night 1 of 2" in page
    # its own script, and none of the run's
    assert page.count("<script>") == 1 and page.count("<img") == 0
    shown = unescape(re.sub(r"<script>.*?</script>", "", page, flags=re.S))
    assert shown.count(EVIL) >= 8  # document, completion, day, dream, task, failure, worker, log
    assert page.count("<figure") >= 3 and re.search(r"<b>1\.?0?</b>", page) and "<svg" in page


@pytest.mark.stack
@browser
def test_browser_follows_a_running_run(tmp_path, watch, monkeypatch):
    """Each time that the server checks the lock, the run has one more step."""
    folder = tmp_path / "run"
    folder.mkdir()
    journal = begin(folder)
    steps = []

    def grow(asked):
        assert asked == folder
        steps.append(len(steps))
        seed(journal, 1, steps[-1], of=400)
        return True

    client = watch(folder)
    client.server._held = grow
    monkeypatch.setattr("sleep_rl.watch.server.HOLD_S", 0.0)
    page = dom(client.server.url, tmp_path, 9000)
    step = int(re.search(r"Night 1 of 2: consolidation, step (\d+) of 400", page)[1])
    assert 4 <= step < len(steps) + 1 and re.search(r"style=\"width: ?[\d.]+%", page)


@pytest.mark.stack
@browser
def test_page_fits_a_narrow_screen(tmp_path, watch, monkeypatch):
    """A second script, allowed for this test, writes the width of the page into its title."""
    folder = tmp_path / "run"
    folder.mkdir()
    wicked(folder).log(
        "written", night=1, sender=0, new=1, unconditional=1, examples=["long" * 200, "a" * 400]
    )
    probe = (
        "setInterval(() => { document.title = "
        "[document.documentElement.scrollWidth, innerWidth].join(' of ') }, 100)"
    )
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    monkeypatch.setattr(
        "sleep_rl.watch.server.PAGE", PAGE.replace("</body>", f"<script>{probe}</script></body>")
    )
    monkeypatch.setattr(
        "sleep_rl.watch.server.PAGE_POLICY",
        PAGE_POLICY.replace("script-src ", f"script-src 'sha256-{digest}' "),
    )
    page = dom(watch(folder).server.url, tmp_path, width=500)
    wide, window = map(int, re.search(r"<title>(\d+) of (\d+)</title>", page).groups())
    assert wide <= window <= 500 and "Newest texts" in page
