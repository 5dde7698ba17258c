"""The page as people see it: real Chromium, a real monitor, real sockets."""

import itertools
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from broadcast import ARRAYS, Broadcast
from lsl_source import LslSource
from monitor_process import Monitor
from station import until
from toy_bundle import Toy

from rtdsae.client import Control
from rtdsae.wire import Array, Flags

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this computer: apt install chromium")

QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
SOON_MS = 20_000
WIDE = (Array("factors", (256,)), Array("rates", (256,), "spikes/s"))


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a monitor's page; at the end nothing may have gone wrong in it."""
    monitors, wrong = [], []

    def open_page(monitor, *, width=1280, height=900):
        context = browser.new_context(viewport={"width": width, "height": height})
        monitor.pages.callback(context.close)
        monitors.append(monitor)
        page = context.new_page()
        page.set_default_timeout(SOON_MS)
        page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(monitor.address)
        return page

    open_page.wrong = wrong
    yield open_page
    for monitor in monitors:
        monitor.pages.close()
    assert wrong == []


@pytest.fixture(scope="module")
def station():
    def fill(seq, payload):
        for values in payload.values():
            values[:] = np.sin(seq / 10 + np.arange(values.size)) + seq % 1000
        return Flags.GAP if seq % 100 < 3 else Flags.ANCHORED if seq % 35 == 0 else 0

    with Broadcast(fill=fill) as station, station.on_time():
        yield station


@pytest.fixture(scope="module")
def monitor(station):
    with Monitor("--port", 0, "--sub", station.endpoint) as monitor:
        yield monitor


def state(page, wanted):
    page.locator(f'#state[data-state="{wanted}"]').wait_for()


def seq(page):
    return int(page.evaluate("document.body.dataset.seq ?? -1"))


def later(page, bins=5):
    """Waits until so many more bins are drawn."""
    wanted = seq(page) + bins
    until(lambda: seq(page) >= wanted, f"bin {wanted}")


def is_painted(page, selector):
    """Whether a canvas has something on it."""
    return page.eval_on_selector(
        selector,
        """canvas => {
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const seen = new Set();
            for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3]) seen.add(pixels.slice(i, i + 3).join());
            return seen.size > 3;
        }""",
    )


def wide_as_screen(page):
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def health(page, name):
    return page.locator("#health div", has=page.locator("dt", has_text=name)).first.locator("dd").inner_text()


def test_every_panel_is_drawn(monitor, visit):
    page = visit(monitor)
    state(page, "live")
    later(page, 60)
    canvases = ["#marks", "#trajectory", "#cursor", "#heat", "#latency", "#rate"]
    canvases += [f'.trace[data-array="{name}"] canvas' for name in ("factors", "z", "behaviour")]
    for canvas in canvases:
        until(lambda canvas=canvas: is_painted(page, canvas), canvas)
    assert "velocity" in page.locator("#cursor-note").inner_text()
    assert page.locator("#banner").is_hidden()
    assert health(page, "stream").startswith("rig1, connected")
    assert health(page, "bundle").startswith("toy")
    assert page.locator("#latency-daemon td").first.inner_text().endswith("µs")
    assert int(page.locator("#bins-per-s").inner_text()) > 0
    assert page.title().startswith("LIVE")


def test_a_value_on_the_page_is_the_published_one(monitor, visit):
    page = visit(monitor)
    state(page, "live")
    for _ in range(5):
        later(page)
        found = page.evaluate(
            """() => {
                const shown = name => [...document.querySelectorAll(`.trace[data-array="${name}"] b`)];
                const values = name => [name, shown(name).map(cell => Number(cell.dataset.value))];
                return {
                    seq: Number(document.body.dataset.seq),
                    values: Object.fromEntries(["factors", "behaviour"].map(values)),
                };
            }"""
        )
        for name, size in (("factors", 5), ("behaviour", 2)):
            expected = np.float32(np.sin(found["seq"] / 10 + np.arange(size)) + found["seq"] % 1000)
            np.testing.assert_array_equal(np.float32(found["values"][name]), expected)


def test_pause_stops_the_bins_and_space_goes_on(monitor, visit):
    page = visit(monitor)
    state(page, "live")
    later(page)
    page.locator("#pause").click()
    state(page, "paused")
    received = int(health(page, "received here").replace(",", ""))
    paused_at = seq(page)
    until(lambda: int(health(page, "received here").replace(",", "")) > received + 20, "bins meanwhile")
    assert seq(page) == paused_at
    page.locator("body").press("Space")
    state(page, "live")
    until(lambda: seq(page) > paused_at + 20, "bins again")


def test_arrays_and_windows_can_be_chosen(monitor, visit):
    page = visit(monitor)
    state(page, "live")
    later(page)
    page.get_by_role("button", name="z", exact=True).click()
    page.locator('.trace[data-array="z"]').wait_for(state="detached")
    page.get_by_role("button", name="rates", exact=True).click()
    page.locator('.trace[data-array="rates"]').wait_for()
    cells = page.locator('.trace[data-array="rates"] li span')
    assert cells.all_inner_texts() == [f"ch{i}" for i in range(8)]
    page.get_by_role("button", name="later values of rates").click()
    page.locator('.trace[data-array="rates"] li', has_text="ch8").wait_for()
    field = page.get_by_label("which values of rates", exact=True)
    assert field.input_value() == "8-15"
    field.fill("29, 0-1")
    field.press("Enter")
    page.locator('.trace[data-array="rates"] li', has_text="ch29").wait_for()
    assert cells.all_inner_texts() == ["ch29", "ch0", "ch1"]
    page.locator("#window").select_option("60")
    page.locator("#heat-array").select_option("factors")
    page.locator("#heat-name", has_text="Factors").wait_for()
    later(page)
    assert page.get_by_role("button", name="z", exact=True).get_attribute("aria-pressed") == "false"
    page.locator("#dimensions").click()
    assert page.locator("#dimensions").get_attribute("aria-pressed") == "false"


def test_a_phone_has_one_column_and_no_sideways_scrolling(monitor, visit):
    page = visit(monitor, width=390, height=844)
    state(page, "live")
    later(page, 20)
    assert wide_as_screen(page)
    boxes = [panel.bounding_box() for panel in page.locator("main > section").all()]
    assert all(box["width"] > 300 for box in boxes)
    assert all(a["y"] + a["height"] <= b["y"] + 1 for a, b in itertools.pairwise(boxes))
    page.locator("#about summary").click()
    assert wide_as_screen(page)
    assert page.evaluate(
        "[...document.querySelectorAll('canvas')].every(c => c.getBoundingClientRect().right <= innerWidth)"
    )


def test_nothing_arrives_and_the_page_says_what_to_do(tmp_path, visit):
    endpoint = f"ipc://{tmp_path}/pub"
    with Monitor("--port", 0, "--sub", endpoint) as monitor:
        page = visit(monitor)
        state(page, "gone")
        assert f"No daemon publishes on {endpoint}. Start one: rtdsae serve" in page.locator("#banner").inner_text()
        assert page.title().startswith("NO DAEMON")
        with Broadcast(endpoint=endpoint) as station:
            station.silent.set()
            with station.on_time():
                state(page, "silent")
                assert "stream rig1 is there" in page.locator("#banner").inner_text()
                station.silent.clear()
                state(page, "live")
                assert page.locator("#banner").is_hidden()
                later(page)
                station.silent.set()
                page.locator("#banner", has_text="The daemon runs, its stream rig1 is connected; no bin for").wait_for()


def test_a_daemons_restart_is_survived_and_counted(tmp_path, visit):
    endpoint = f"ipc://{tmp_path}/pub"
    with Monitor("--port", 0, "--sub", endpoint) as monitor:
        page = visit(monitor)
        with Broadcast(endpoint=endpoint, run=1) as station, station.on_time():
            state(page, "live")
            later(page)
        state(page, "gone")
        assert "the daemon has stopped" in page.locator("#banner").inner_text()
        with Broadcast(endpoint=endpoint, run=2) as station, station.on_time():
            state(page, "live")
            page.locator("#health div", has_text="daemon restarts seen").locator("dd", has_text="1").wait_for()
            later(page)


def test_a_monitors_restart_is_survived(station, visit):
    with Monitor("--port", 0, "--sub", station.endpoint) as first:
        page = visit(first)
        state(page, "live")
        later(page)
        page.locator("#window").select_option("30")
        first.stop()
        state(page, "lost")
        assert "The monitor itself is gone" in page.locator("#banner").inner_text()
        with Monitor("--port", first.port, "--sub", station.endpoint):
            state(page, "live")
            later(page)
            assert page.locator("#banner").is_hidden()
            assert page.locator("#window").input_value() == "30"
            page.context.close()
    assert all("WebSocket connection" in text for text in visit.wrong)
    visit.wrong.clear()


def test_another_model_has_other_arrays(tmp_path, visit):
    with Broadcast() as station, Monitor("--port", 0, "--sub", station.endpoint) as monitor:
        with station.on_time():
            page = visit(monitor)
            state(page, "live")
            later(page)
        station.use((Array("factors", (2,)), Array("behaviour", (3,))), "tuesday")
        station.closing.clear()
        with station.on_time():
            page.locator("#cursor-panel .empty", has_text="Behaviour has 3 values").wait_for()
            page.locator("#health dd", has_text="tuesday").wait_for()
            assert page.locator(".trace").count() == 2
            assert page.locator("#dimensions").is_hidden()
            later(page)


def test_a_closed_loops_cursor_has_a_target(tmp_path, visit):
    arrays = (Array("behaviour", (2,), "mm", ("x", "y")), Array("target", (2,), "mm", ("x", "y")))

    def fill(seq, payload):
        payload["behaviour"][:] = np.cos(seq / 20), np.sin(seq / 20)
        payload["target"][:] = 1, 0

    with (
        Broadcast(arrays, fill=fill) as station,
        station.on_time(),
        Monitor("--port", 0, "--sub", station.endpoint) as monitor,
    ):
        page = visit(monitor)
        state(page, "live")
        later(page)
        assert page.locator("#cursor-note").inner_text() == "decoded position, and its target"
        assert "factors or z" in page.locator("#state-panel .empty").inner_text()
        until(lambda: is_painted(page, "#cursor"))


def test_what_is_no_number_is_told_and_breaks_nothing(tmp_path, visit):
    def fill(seq, payload):
        payload["factors"][:] = np.nan if seq % 200 > 20 else seq
        payload["z"][:] = np.inf

    with (
        Broadcast(ARRAYS[:2], fill=fill) as station,
        station.on_time(),
        Monitor("--port", 0, "--sub", station.endpoint) as monitor,
    ):
        page = visit(monitor)
        page.locator("#banner", has_text="values are not numbers").wait_for()
        later(page)
        assert page.locator('.trace[data-array="z"] b').first.inner_text() == "no value"


def test_the_state_is_seen_again_soon_after_a_value_beyond_all_sense(monitor, visit):
    frames = visit(monitor).evaluate(
        """async () => {
            const { Extent } = await import("./paint.js");
            const extent = new Extent();
            extent.follow(1e30);
            for (let n = 0; n < 1e5; n++) if (extent.follow(1) <= 2) return n;
        }"""
    )
    assert 100 < frames < 500  # 30 a second: some seconds, and not at once


def test_labels_are_text_and_never_code(tmp_path, visit):
    bad = '<img src=x onerror="document.title=1">'
    arrays = (Array("factors", (2,), bad, (bad, "</script>")), Array("behaviour", (2,), bad, (bad, bad)))
    with (
        Broadcast(arrays, bundle=bad) as station,
        station.on_time(),
        Monitor("--port", 0, "--sub", station.endpoint) as monitor,
    ):
        page = visit(monitor, width=390)
        state(page, "live")
        later(page)
        assert page.locator("img").count() == 0
        assert page.locator('.trace[data-array="factors"] li span').first.inner_text() == bad
        assert page.title().startswith("LIVE")


def test_a_thousand_bins_a_second_of_256_latents_are_decimated(visit):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1024, 512)).astype(np.float32)

    def fill(seq, payload):
        payload["factors"][:], payload["rates"][:] = noise[seq % 1024, :256], np.abs(noise[seq % 1024, 256:])

    with (
        Broadcast(WIDE, width_s=0.001, fill=fill) as station,
        station.on_time(),
        Monitor("--port", 0, "--sub", station.endpoint) as monitor,
    ):
        sizes = []
        page = visit(monitor)
        page.on("websocket", lambda socket: socket.on("framereceived", lambda data: sizes.append(len(data))))
        page.reload()
        began = time.monotonic()
        state(page, "live")
        page.locator("#window").select_option("60")
        later(page, 3000)
        assert page.locator('.trace[data-array="factors"] b').count() == 8
        assert len(sizes) <= 26 * (time.monotonic() - began) + 10
        assert page.get_by_text("of 256").count() == 1
        assert wide_as_screen(page)
        until(lambda: is_painted(page, "#heat"))


def test_a_real_daemon_its_swap_and_its_restart(tmp_path, visit):
    bundles = [Toy(seed=seed).write(tmp_path / f"toy{seed}") for seed in (0, 3)]
    pub, control = f"ipc://{tmp_path}/pub", f"ipc://{tmp_path}/control"
    toy = Toy()
    with (
        LslSource(toy.counts(100_000), 50.0, labels=toy.channels) as source,
        Monitor("--port", 0, "--sub", pub) as monitor,
    ):
        command = [sys.executable, "-m", "rtdsae", "serve", bundles[0], "--stream", f"source_id={source.source_id}"]
        command += ["--pub", pub, "--control", control]
        page = visit(monitor)
        for restarts in range(2):
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as daemon:
                state(page, "live")
                later(page)
                until(lambda: health(page, "stream") == f"{source.source_id}, connected", "the stream")
                assert health(page, "daemon restarts seen") == str(restarts)
                if restarts == 0:
                    daemon.terminate()
                    state(page, "gone")
                    continue
                before = health(page, "bundle")
                with Control(control) as asked:
                    asked.swap(bundles[1])
                until(lambda before=before: health(page, "bundle") != before, "the swap")
                later(page)
                daemon.terminate()


def test_the_page_needs_nothing_from_elsewhere():
    page = Path(__file__).parents[2] / "rtdsae" / "monitor" / "page"
    for file in [*page.glob("*.html"), *page.glob("*.js"), *page.glob("*.css")]:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, file
        assert "https:" not in text, file
        assert "innerHTML" not in text, file
