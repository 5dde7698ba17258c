"""Metrics: what a real scrape gets, by the library's own parser, and what scrapers cannot do to the daemon."""

import contextlib
import itertools
import socket
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rtdsae.errors import EndpointError
from rtdsae.serve.latency import BOUNDS_S, Latency
from rtdsae.serve.metrics import CLIENT_S, COUNTERS, Metrics

STATUS = {
    "run": 77,
    "bundle": 'a "toy"\nmodel',
    "session": "day-3",
    "stream": {"connected": True, "source_id": "array-1", "clock_offset_s": -0.25, "losses": 3, "unread": 4},
    "latency_us": {"p50": 1.0},
} | {name: 10 + i for i, name in enumerate(COUNTERS)}


@pytest.fixture
def serve():
    made = []

    def start(status=lambda: STATUS, latency=None, address="127.0.0.1:0"):
        made.append(Metrics(address, status, latency or Latency()))
        return made[-1]

    yield start
    for metrics in made:
        metrics.close()


def get(metrics, headers=()):
    request = urllib.request.Request(f"http://{metrics.address}/metrics", headers=dict(headers))
    with urllib.request.urlopen(request, timeout=20) as reply:
        return reply.read().decode()


def scrape(metrics):
    """Samples by name and labels, and the families' types."""
    families = list(text_string_to_metric_families(get(metrics)))
    samples = {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}
    return samples, {family.name: family.type for family in families}


def test_every_counter_of_the_status(serve):
    samples, types = scrape(serve())
    for name in COUNTERS:
        assert samples[f"rtdsae_{name}_total",] == STATUS[name]
        assert types[f"rtdsae_{name}"] == "counter"
    assert samples["rtdsae_stream_losses_total",] == 3
    assert samples["rtdsae_stream_unread_total",] == 4
    assert samples["rtdsae_stream_connected",] == 1
    assert samples["rtdsae_stream_clock_offset_seconds",] == -0.25
    about = (("bundle", 'a "toy"\nmodel'), ("run", "77"), ("session", "day-3"), ("source_id", "array-1"))
    assert samples["rtdsae_info", *about] == 1
    assert samples["process_resident_memory_bytes",] > 1e6


def test_the_histogram_of_latencies(serve):
    latency = Latency()
    metrics = serve(latency=latency)
    for seconds in (5e-5, 3e-4, 3e-4, 4.0):
        latency.add(seconds)
    samples, types = scrape(metrics)
    below = {bound: samples["rtdsae_latency_seconds_bucket", ("le", f"{bound:g}")] for bound in BOUNDS_S}
    assert below[1e-4] == 1
    assert below[2e-4] == 1
    assert below[5e-4] == below[1.0] == 3
    assert samples["rtdsae_latency_seconds_bucket", ("le", "+Inf")] == samples["rtdsae_latency_seconds_count",] == 4
    assert samples["rtdsae_latency_seconds_sum",] == pytest.approx(5e-5 + 6e-4 + 4.0)
    assert types["rtdsae_latency_seconds"] == "histogram"
    latency.add(3e-4)
    assert scrape(metrics)[0]["rtdsae_latency_seconds_count",] == 5


def test_a_daemon_that_has_no_status_yet(serve):
    samples, _ = scrape(serve(status=dict))
    assert samples["rtdsae_stream_connected",] == 0
    assert ("rtdsae_bins_total",) not in samples


def test_the_format_that_prometheus_itself_asks_for(serve):
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    text = get(serve(), {"Accept": accept})
    assert text.endswith("# EOF\n")
    assert "rtdsae_bins_total 10" in text


@pytest.mark.parametrize("address", ["0.0.0.0:0", "10.0.0.1:9464", "*:9464", "example.org:80", "[::]:9464"])
def test_addresses_that_others_could_reach_are_refused(address):
    with pytest.raises(EndpointError, match=r"could be read from other machines.*use 127\.0\.0\.1"):
        Metrics(address, dict, Latency())


@pytest.mark.parametrize("address", ["", "9464", ":9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "localhost:x"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(EndpointError, match=r"is not an address: use 127\.0\.0\.1:9464"):
        Metrics(address, dict, Latency())


def test_an_address_in_use_is_refused(serve):
    taken = serve().address
    with pytest.raises(EndpointError, match=f"cannot serve metrics on {taken}: Address already in use"):
        Metrics(taken, dict, Latency())


def test_an_address_is_free_again_after_it(serve):
    metrics = Metrics("127.0.0.1:0", dict, Latency())
    get(metrics)
    metrics.close()
    assert serve(address=metrics.address).address == metrics.address


def test_clients_that_say_nothing_or_nonsense_are_left_behind(serve):
    metrics = serve()
    host, port = metrics.address.split(":")
    silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(2)]
    for line in (b"\x00\xff\x00\r\n\r\n", b"GET /" + b"a" * 70_000 + b"\r\n\r\n", b"GET"):
        with socket.create_connection((host, int(port)), timeout=10) as rude:
            rude.sendall(line)
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(f"http://{metrics.address}/", data=b"x", timeout=20)
    assert scrape(metrics)[0]["rtdsae_bins_total",] == 10
    for connection in silent:
        connection.close()


def test_what_prometheus_client_stumbles_over_is_a_line_in_the_log(serve, caplog, capfd):
    metrics = serve()
    with pytest.raises(urllib.error.HTTPError, match="500"):
        get(metrics, {"Accept": "application/openmetrics-text; version=x"})
    assert scrape(metrics)[0]["rtdsae_bins_total",] == 10
    assert [record.message.partition(":")[0] for record in caplog.records] == ["a scrape could not be answered"]
    assert capfd.readouterr().err == ""


def test_a_request_that_comes_byte_by_byte_holds_up_nobody_for_long(serve):
    metrics = serve()
    host, port = metrics.address.split(":")
    stop = threading.Event()
    with socket.create_connection((host, int(port)), timeout=10) as slow:

        def drip():
            with contextlib.suppress(OSError):
                for byte in itertools.cycle(b"GET / HTTP/1.1 "):
                    slow.sendall(bytes([byte]))
                    if stop.wait(CLIENT_S / 4):
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert scrape(metrics)[0]["rtdsae_bins_total",] == 10
        finally:
            stop.set()
            thread.join()


def test_one_thread_however_many_clients(serve):
    metrics, seen = serve(), []

    def ask():
        seen.append(scrape(metrics)[0]["rtdsae_bins_total",])

    clients = [threading.Thread(target=ask) for _ in range(10)]
    for client in clients:
        client.start()
    names = [thread.name for thread in threading.enumerate() if thread not in clients]
    for client in clients:
        client.join()
    assert seen == [10] * 10
    assert sum("metrics" in name or "process_request" in name for name in names) == 1
