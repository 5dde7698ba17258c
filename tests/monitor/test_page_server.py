"""The server as it is run: its page, its WebSocket, who is let in, and how it ends."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from broadcast import Broadcast
from monitor_process import RTDSAE, Monitor
from page_frame import read_frame
from station import until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from rtdsae.client import Subscriber
from rtdsae.client.keys import make
from rtdsae.monitor.feed import Feed
from rtdsae.monitor.server import Server


@pytest.fixture(scope="module")
def station():
    with Broadcast() as station, station.on_time():
        yield station


@pytest.fixture(scope="module")
def monitor(station):
    with Monitor("--port", 0, "--sub", station.endpoint) as monitor:
        yield monitor


def frames(page):
    """Binary frames as they come."""
    while True:
        message = page.recv(timeout=20)
        if isinstance(message, bytes):
            yield read_frame(message)


def answer(monitor, path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", monitor.port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def test_bins_come_in_order_with_the_published_values(monitor):
    with monitor.page() as page:
        seen, layout = [], None
        for head, blocks in frames(page):
            layout = head.get("layout", layout)
            if "t" in blocks:
                seen.extend(blocks["traces.factors"].tolist())
            if len(seen) > 50:
                break
        assert layout["heat"] == "rates"
        first = seen[0][0]
        np.testing.assert_array_equal(seen, [[first + i + c / 8 for c in range(5)] for i in range(len(seen))])


def test_a_page_chooses_what_it_sees(monitor):
    with monitor.page() as page:
        page.send(json.dumps({"traces": {"rates": [7, 29]}, "heat": "z", "window_s": 5}))
        wished = (found for found in frames(page) if found[0].get("layout", {}).get("traces") == {"rates": [7, 29]})
        head, blocks = next(wished)
        assert head["layout"]["window_s"] == 5
        assert blocks["heat"].shape[1] == 2
        np.testing.assert_array_equal(blocks["traces.rates"][:, 1] - blocks["traces.rates"][:, 0], 22 / 8)


def test_what_is_no_view_is_answered_and_changes_nothing(monitor):
    with monitor.page() as page:
        for text in ("hello", '{"window_s": -1}', json.dumps({"traces": {"factors": [10**7]}})):
            page.send(text)
        page.send(b"\x00\x01")
        errors = []
        while len(errors) < 4:
            message = page.recv(timeout=20)
            if isinstance(message, str):
                errors.append(json.loads(message)["error"])
        assert all(error.startswith("a view was not understood") for error in errors)
        assert next(frames(page))[0]


def test_a_page_that_breaks_off_while_it_is_answered_is_no_fault(station):
    """What is no view, and in the same breath what is no WebSocket message: uvicorn ends the connection for it."""
    with Monitor("--port", 0, "--sub", station.endpoint) as monitor:
        with monitor.page() as page, contextlib.suppress(ConnectionClosed):
            page.socket.sendall(b"\x81\x81\0\0\0\0x\x81\x81\0\0\0\0\xff")
            list(page)
        code, (_, error) = monitor.stop()
    assert (code, "Exception in ASGI application" in error) == (0, False)


def test_a_message_that_is_too_long_ends_the_connection(monitor):
    with monitor.page() as page:
        page.send("x" * 5000)
        with pytest.raises(ConnectionClosed) as closed:
            list(page)
        assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1", None, "https://127.0.0.1:{port}"]
)
def test_a_page_from_elsewhere_gets_no_byte(monitor, origin):
    origin = origin and origin.format(port=monitor.port)
    with pytest.raises(InvalidStatus) as refused, monitor.page(origin=origin):
        pass
    assert refused.value.response.status_code == 403


def test_another_host_name_gets_no_byte(monitor):
    assert answer(monitor, Host="evil.example")[0] == 400
    assert answer(monitor, Host=f"evil.example:{monitor.port}")[0] == 400
    assert answer(monitor, Host=f"localhost:{monitor.port}")[0] == 200
    headers = {"Host": f"evil.example:{monitor.port}"}
    request = "".join(
        f"{line}\r\n"
        for line in [
            "GET /feed HTTP/1.1",
            f"Host: {headers['Host']}",
            f"Origin: http://{headers['Host']}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "",
        ]
    )
    with socket.create_connection(("127.0.0.1", monitor.port), timeout=20) as rebound:
        rebound.sendall(request.encode())
        status = rebound.recv(100).split(b"\r\n")[0]
    assert b" 101 " not in status
    assert b" 40" in status


def test_everything_comes_from_here_and_says_so(monitor):
    status, headers, page = answer(monitor)
    headers = {name.lower(): value for name, value in headers.items()}
    assert status == 200
    assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers
    assert "http:" not in page.decode()
    assert "https:" not in page.decode()
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.decode()):
        assert answer(monitor, f"/{name}")[0] == 200, name
    assert answer(monitor, "/../server.py")[0] == 404
    assert answer(monitor, "/%2e%2e/server.py")[0] == 404


def test_pages_are_bounded_and_make_room_again(monitor):
    with contextlib.ExitStack() as open_:
        pages = [open_.enter_context(monitor.page()) for _ in range(8)]
        for page in pages:
            assert page.recv(timeout=20)
        with monitor.page() as ninth, pytest.raises(ConnectionClosed) as closed:
            ninth.recv(timeout=20)
        assert "8 pages are open" in closed.value.rcvd.reason

    def served():
        with monitor.page() as page, contextlib.suppress(ConnectionClosed):
            return page.recv(timeout=20)

    until(served, "room for a page")


def test_a_page_that_does_not_read_holds_up_nobody(monitor):
    with monitor.page(max_queue=1, close_timeout=1) as slow, monitor.page() as page:
        slow.send(json.dumps({"window_s": 60}))
        before = next(frames(page))[0]
        heads = (head for head, _ in frames(page) if "newest" in head)
        seen = [next(heads)["newest"]["seq"] for _ in range(60)]
        assert before
        assert seen == sorted(seen)
        assert slow.recv(timeout=20)


def test_it_listens_on_loopback_alone(monitor):
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    addresses = [line.split()[1] for line in listening if line.split()[3] == "0A"]
    ours = [address for address in addresses if address.endswith(f":{monitor.port:04X}")]
    assert ours == [f"0100007F:{monitor.port:04X}"]


def test_a_signal_that_comes_before_the_first_page_can_ends_it_too(station, monkeypatch):
    run = uvicorn.Server.run

    def interrupted(server, sockets):
        signal.raise_signal(signal.SIGINT)
        run(server, sockets=sockets)

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    Server(Feed(Subscriber(station.endpoint)), 0).run()  # and comes back


def test_a_signal_while_the_feed_begins_or_ends_leaves_no_thread_that_reads_a_closed_socket(station, monkeypatch):
    """It would abort the program."""

    def and_ctrl_c(method):
        def followed(feed):
            method(feed)
            signal.raise_signal(signal.SIGINT)

        return followed

    feed = Feed(Subscriber(station.endpoint))
    for name in ("start", "close"):
        monkeypatch.setattr(Feed, name, and_ctrl_c(getattr(Feed, name)))
    Server(feed, 0).run()  # and comes back
    assert not feed._thread.is_alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_a_page_is_open(station, number):
    with Monitor("--port", 0, "--sub", station.endpoint) as monitor, monitor.page() as page:
        assert page.recv(timeout=20)
        code, (_, stderr) = monitor.stop(number)
        assert (code, stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "say"),
    [
        (
            ["--port", "{taken}"],
            "the page on 127.0.0.1:{taken}: Address already in use; choose another --port",
        ),
        (["--port", "65536"], "--port 65536: must be 0 to 65535"),
        (["--sub", "nowhere"], "cannot connect to nowhere"),
        (["--keys", "nokeys"], "no key can be read there"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(monitor, arguments, say):
    arguments = [part.format(taken=monitor.port) for part in arguments]
    done = subprocess.run([*RTDSAE, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert say.format(taken=monitor.port) in done.stderr
    assert done.stderr.count("\n") == 1


def test_keys_let_it_in(tmp_path):
    make(tmp_path / "rig", ["screen"])
    own = tmp_path / "rig" / "carry" / "screen"
    with (
        Broadcast(keys=tmp_path / "rig") as station,
        station.on_time(),
        Monitor("--port", 0, "--sub", station.endpoint, "--keys", own) as monitor,
        monitor.page() as page,
    ):
        assert next(head for head, _ in frames(page) if "newest" in head)["newest"]["seq"] >= 0


def test_the_help_fits_a_screen():
    done = subprocess.run([*RTDSAE, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) <= 24
    assert all(flag in done.stdout for flag in ("--sub", "--port", "--keys"))


def test_nobody_needs_the_network_for_it(monitor):
    vendor = urllib.request.urlopen(f"{monitor.address}/vendor/uPlot.iife.min.js", timeout=20).read()
    assert b"uPlot" in vendor
    assert b"MIT License" in urllib.request.urlopen(f"{monitor.address}/vendor/LICENSE", timeout=20).read()
