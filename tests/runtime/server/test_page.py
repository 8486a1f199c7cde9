"""The chat page in a real browser."""

import shutil
import tempfile

import numpy as np
import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARGUMENTS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "window-size=1180,820",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None or DRIVER is None, reason="no Chromium with chromedriver on this machine"
    ),
]


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in (*ARGUMENTS, f"user-data-dir={profile}"):
            options.add_argument(f"--{argument}")
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        yield driver
        driver.quit()


def until(browser, script, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds).until(lambda driver: driver.execute_script(f"return {script}"))


def fill(browser, name, value):
    browser.execute_script(f"document.getElementById('{name}').value = {value!r}")


def ask(browser, text):
    from selenium.webdriver.common.by import By

    browser.find_element(By.ID, "prompt").send_keys(text + "\n")


def repetitive(session):
    """Make the decoding model write seven letters again and again, with an exception now and then."""

    def step(inputs):
        output = type(session).step(session, inputs)
        last = np.take_along_axis(inputs.input_ids, inputs.output_index, 1)
        wanted = np.where((last >= 70) & (last < 77), 70 + (last - 69) % 7, 70)
        wanted[output.logits.argmax(-1) % 9 == 0] = 80
        np.put_along_axis(output.logits, wanted[..., None], 1000.0, -1)
        return output

    session.step = step


IDLE = "!document.getElementById('send').disabled"


def test_a_chat_shows_its_drafts_and_the_metrics_live(browser, start_server, tmp_path):
    server = start_server(session=repetitive)
    browser.get(server.url)
    until(browser, "document.getElementById('model').textContent === 'tiny'")
    until(browser, "document.getElementById('state').className === 'ready'")
    fill(browser, "limit", 60)
    ask(browser, "hello")
    until(browser, f"document.querySelectorAll('.turn footer').length === 1 && {IDLE}")
    shown = browser.execute_script(
        "const text = document.querySelector('.turn.assistant > span').cloneNode(true);"
        "text.querySelectorAll('.miss').forEach(one => one.remove()); return text.textContent"
    )
    status, found = server.client.post(
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0,
            "max_tokens": 60,
        },
    )
    assert (status, shown) == (200, found["choices"][0]["message"]["content"])
    counts = server.engine.statistics()
    assert counts.accepted_at[0] > 0
    assert browser.execute_script("return document.querySelectorAll('.hit').length") > 0
    assert browser.execute_script("return document.querySelectorAll('.miss').length") > 0
    footer = browser.execute_script("return document.querySelector('.turn footer').textContent")
    assert "accepted" in footer
    until(browser, "document.getElementById('requests').textContent === '2'")
    until(browser, "document.querySelectorAll('#positions div').length > 0")
    until(browser, "document.getElementById('slots').textContent === '0 of 8'")
    picture = tmp_path / "page.png"
    assert browser.save_screenshot(str(picture))
    assert picture.stat().st_size > 10_000
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert all(one.startswith(server.url) for one in loaded), loaded
    assert [one for one in browser.get_log("browser") if one["level"] == "SEVERE"] == []


def test_stopping_cancels_and_markup_is_only_text(browser, start_server):
    server = start_server()
    browser.get(server.url)
    until(browser, "document.getElementById('model').textContent === 'tiny'")
    fill(browser, "limit", 900_000)
    ask(browser, "<img src=x onerror=document.title='gone'>")
    until(browser, "document.querySelectorAll('.turn footer')[0]?.textContent.includes('tokens')")
    browser.execute_script("document.getElementById('stop').click()")
    until(browser, IDLE)
    assert browser.title == "lineahead"
    assert browser.execute_script("return document.querySelectorAll('.turn img').length") == 0
    for _ in range(100):
        if server.engine.statistics().active == 0:
            break
        until(browser, "true")
    assert server.engine.statistics().active == 0
    fill(browser, "limit", 2_000_000)
    ask(browser, "too much")
    until(browser, "document.querySelector('.turn.error')?.textContent.includes('this server allows')")
