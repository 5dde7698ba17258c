"""The control client against a real control socket, and against what is none."""

import re
import threading
from pathlib import Path

import pytest
import zmq
from station import OTHER, SCHEMA, Station

from rtdsae.client import Control
from rtdsae.errors import ControlError, EndpointError
from rtdsae.wire import Encoder, Flags


@pytest.fixture(params=["tcp"])
def station(request, tmp_path):
    endpoint = "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/control"
    station = Station(control=endpoint)
    yield station
    station.close()


@pytest.fixture
def control(station):
    with Control(station.ask, timeout_s=10) as control:
        yield control


@pytest.mark.parametrize("station", ["tcp", "ipc"], indirect=True)
def test_every_request_reaches_the_daemon(station, control):
    station.bins(3)
    assert dict(control.status()) == {"run": 7, "bins": 3}
    assert control.schema() == SCHEMA
    control.anchor()
    assert control.swap("tuesday", "day2")["seq"] == 3
    assert control.swap("wednesday")["seq"] == 3
    control.stop()
    assert station.asked == ["anchor", ("tuesday", "day2"), ("wednesday", None), "stop"]


def test_history_is_had_whole_however_long_and_with_names_where_the_schema_is_known(station, control):
    station.bins(2500)
    assert control.history(3, 3)[0].schema is None
    control.schema()
    bins = control.history(0, 10_000)
    assert [b.seq for b in bins] == list(range(2500))
    assert all(b.flags == Flags.BACKFILL for b in bins)
    assert [b["factors"].tolist() for b in bins] == [[seq] * 3 for seq in range(2500)]
    assert [b.seq for b in control.history(7, 9)] == [7, 8, 9]
    assert control.history(9, 7) == []


def test_bins_of_an_older_schema_come_without_names(station, control):
    station.bins(2)
    station.use(OTHER)
    station.bins(1)
    assert control.schema() == OTHER
    assert [b.schema for b in control.history(0, 2)] == [None, None, OTHER]


def test_history_that_is_kept_no_more_is_left_out(station, control):
    station.bins(10)
    for seq in range(5):
        del station.frames[seq]
    assert [b.seq for b in control.history(2, 6)] == [5, 6]
    assert control.history(0, 3) == []


def test_the_daemons_reason_is_the_message(control):
    with pytest.raises(ControlError, match=r"^very/bad: is no bundle$"):
        control.swap("very/bad")
    with pytest.raises(ControlError, match="'dance'"):
        control.ask("dance")
    assert control.status()["bins"] == 0  # and it goes on


def test_nobody_there(tmp_path):
    with (
        Control(f"ipc://{tmp_path}/control", timeout_s=0.1) as control,
        pytest.raises(
            EndpointError, match=rf"no reply from ipc://{tmp_path}/control .*is rtdsae serve running with --control"
        ),
    ):
        control.status()


@pytest.mark.timeout(30)  # a swap's reply may take two minutes
def test_a_swap_waits_no_longer_for_a_daemon_that_is_not_there(tmp_path):
    with (
        Control(f"ipc://{tmp_path}/control", timeout_s=0.1) as control,
        pytest.raises(EndpointError, match="is rtdsae serve running with --control"),
    ):
        control.swap("tuesday")


def test_what_was_given_up_on_does_not_reach_the_next_daemon(tmp_path):
    endpoint = f"ipc://{tmp_path}/control"
    with Control(endpoint, timeout_s=0.1) as control:
        with pytest.raises(EndpointError):
            control.stop()
        station = Station(control=endpoint)
        control.timeout_s = 10
        assert control.status()["bins"] == 0
        assert station.asked == []
        station.close()


@pytest.fixture
def impostor(tmp_path):
    """A ROUTER that answers each request with what the test says."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(f"ipc://{tmp_path}/impostor")
    threads = []

    def answer(*replies):
        def run():
            who, _ = router.recv_multipart()
            for reply in replies:
                router.send_multipart([who, *reply])

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return Control(f"ipc://{tmp_path}/impostor", timeout_s=10)

    yield answer
    for thread in threads:
        thread.join(10)
    context.destroy(linger=0)


def test_a_late_reply_is_not_taken_for_the_next_one(impostor):
    with impostor(
        [b'{"ok": true, "id": 99, "status": {"bins": 1}}'], [b'{"ok": true, "id": 1, "status": {"bins": 2}}']
    ) as control:
        assert control.status()["bins"] == 2


@pytest.mark.parametrize(
    "reply",
    [
        [b""],
        [b"\xff"],
        [b"[]"],
        [b"{}"],
        [b'{"ok": 1}'],
        [b'{"ok": true, "id": 1}'],
        [b'{"ok": true, "id": 1, "status": []}'],
    ],
)
def test_whatever_else_is_answered_is_an_error_in_a_line(impostor, reply):
    with impostor(reply) as control, pytest.raises(ControlError) as caught:
        control.status()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("frames", [[b""], [b"latents\0"], [SCHEMA.encode()], [b"status\0\0{}"]])
def test_a_history_that_cannot_be_read_is_an_error(impostor, frames):
    with impostor([b'{"ok": true, "id": 1, "last": 5}', *frames]) as control, pytest.raises(ControlError, match="sent"):
        control.history(0, 5)


@pytest.mark.parametrize("n_frames", [0, 1])
def test_a_history_that_does_not_go_on_ends(impostor, n_frames):
    frames = [bytes(Encoder(SCHEMA, 7).encode(0, 0, 0.0, 0.0, 0.0))] * n_frames
    with impostor([b'{"ok": true, "id": 1, "last": -1}', *frames]) as control:
        assert len(control.history(0, 5)) == n_frames


@pytest.mark.parametrize("endpoint", ["", "5557", "tcp://", "carrier-pigeon://roof"])
def test_what_is_no_endpoint_is_refused(endpoint):
    with pytest.raises(EndpointError, match="cannot connect to"):
        Control(endpoint)


def test_a_closed_client_says_so(station):
    with Control(station.ask) as control:
        pass
    with pytest.raises(EndpointError, match="is closed"):
        control.status()


def test_the_examples_of_the_wires_documentation_run(station, capsys):
    station.bins(200)
    text = (Path(__file__).parents[2] / "docs" / "wire.md").read_text().partition("\n## Control\n")[2]
    examples = re.findall(r"```python\n(.*?)```", text.replace("tcp://127.0.0.1:5557", station.ask), re.DOTALL)
    spaces = [{} for _ in examples]
    for example, space in zip(examples, spaces, strict=True):
        exec(example, space)
    zmq.Context.instance().destroy(linger=0)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(str(list(range(190, 200))))
    assert said[1].startswith("200 [100, 101, ")
