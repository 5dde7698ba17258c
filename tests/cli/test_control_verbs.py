"""The verbs record, control and keys as a person runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from station import SCHEMA, Station, until

from rtdsae.cli import main
from rtdsae.client import Control, Subscriber


@pytest.fixture
def station(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    station = Station()
    yield station
    station.close()


def run(capsys, *args):
    code = main([str(a) for a in args])
    said = capsys.readouterr()
    assert said.err.count("\n") == (1 if code else 0), said.err
    return code, said.out, said.err


def test_control_prints_the_reply_as_json(station, capsys, tmp_path):
    station.bins(2)
    (tmp_path / "here").mkdir()
    replies = {
        ("status",): {"run": 7, "bins": 2},
        ("schema",): json.loads(SCHEMA.json),
        ("anchor",): {"ok": True, "id": 1},
        ("swap", "elsewhere", "--session", "day2"): {"ok": True, "id": 1, "seq": 2},
        ("swap", "here"): {"ok": True, "id": 1, "seq": 2},
        ("stop",): {"ok": True, "id": 1},
    }
    for args, reply in replies.items():
        code, out, _ = run(capsys, "control", *args, "--endpoint", station.ask)
        assert (code, json.loads(out)) == (0, reply)
    # A folder that is here is named so that a daemon with another working directory finds it.
    assert station.asked == ["anchor", ("elsewhere", "day2"), (str(tmp_path / "here"), None), "stop"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("control",), "Missing"),
        (("control", "dance"), "dance"),
        (("control", "swap"), "swap needs the BUNDLE"),
        (("control", "status", "bundle"), "swap needs the BUNDLE"),
        (("control", "stop", "--session", "x"), "swap needs the BUNDLE"),
        (("control", "status", "--endpoint", "5557"), "cannot connect to 5557"),
        (("control", "status", "--endpoint", "ipc://nobody", "--timeout", "0.1"), "no reply from ipc://nobody"),
        (("control", "status", "--timeout", "nan"), "--timeout nan: it must be above 0"),
        (("control", "status", "--timeout", "0"), "--timeout 0: it must be above 0"),
        (("control", "status", "--keys", "nowhere"), "nowhere/client.key_secret"),
        (("record",), "PATH"),
        (("record", "out.h5", "--endpoint", "5556"), "cannot connect to 5556"),
        (("record", "out.h5", "--endpoint", "ipc://nobody", "--timeout", "0.3"), "no bin from ipc://nobody for 0.3 s"),
        (("record", "nowhere/out.h5"), "nowhere/out.h5: cannot be made: No such file or directory\n"),
        (("record", "there.h5"), "there.h5: is there already"),
        (("record", "out.h5", "--count", "0"), "--count 0: it must be above 0"),
        (("record", "out.h5", "--seconds", "nan"), "--seconds nan: it must be above 0"),
        (("record", "out.h5", "--timeout", "-1"), "--timeout -1: it must be above 0"),
        (("record", "out.h5", "--keys", "nowhere"), "nowhere/client.key_secret"),
        (("keys",), "PATH"),
        (("keys", "new", "--client", "a/b"), "client name 'a/b'"),
        (("keys", "there.h5"), "there.h5"),
    ],
)
def test_mistakes_are_a_line(tmp_path, monkeypatch, capsys, args, said):
    monkeypatch.chdir(tmp_path)
    Path("there.h5").write_text("mine")
    code, out, err = run(capsys, *args)
    began = "recording what ipc://nobody publishes to out.h5\n" if "no bin from" in said else ""
    assert (code, out) == (2, began)
    assert err.startswith(f"rtdsae {args[0]}: ")
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["there.h5"]
    assert Path("there.h5").read_text() == "mine"


@pytest.mark.parametrize("timeout", ["inf", "1e12"])
def test_a_reply_may_take_for_ever(station, capsys, timeout):
    code, out, err = run(capsys, "control", "status", "--endpoint", station.ask, "--timeout", timeout)
    assert (code, err) == (0, "")
    assert json.loads(out)["bins"] == 0


def test_a_refusal_by_the_daemon_is_a_line(station, capsys):
    code, out, err = run(capsys, "control", "swap", "bad", "--endpoint", station.ask)
    assert (code, out, err) == (2, "", "rtdsae control: bad: is no bundle\n")


def test_keys_open_a_daemon_to_those_who_carry_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "keys", "keys", "--client", "arm", "--client", "screen")
    assert code == 0
    assert "keys/carry/arm" in out
    assert "--keys keys" in out
    code, _, err = run(capsys, "keys", "keys", "--client", "arm")
    assert (code, err) == (
        2,
        "rtdsae keys: keys has keys of 'arm' already: name another client, or delete its keys first\n",
    )
    station = Station(keys=Path("keys"))
    assert run(capsys, "control", "status", "--endpoint", station.ask, "--keys", "keys/carry/screen")[0] == 0
    assert run(capsys, "control", "status", "--endpoint", station.ask, "--timeout", "0.2")[0] == 2
    station.close()


def test_record_with_keys_stores_what_a_guarded_daemon_publishes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(capsys, "keys", "keys")
    station = Station(keys=Path("keys"))
    own = "keys/carry/client"
    command = [sys.executable, "-m", "rtdsae", "record", "out.h5", "--endpoint", station.pub, "--control", station.ask]
    process = subprocess.Popen([*command, "--keys", own, "--count", "4"], stdout=subprocess.PIPE, text=True)
    until(lambda: station.publisher._socket.poll(20), "a subscription")
    until(lambda: station.publisher.greet() or not station.publisher._socket.poll(100))
    station.bins(2)
    station.bins(1, lost=True)
    station.bins(1)
    first, last = process.communicate(timeout=20)[0].splitlines()
    assert first == f"recording what {station.pub} publishes to out.h5"
    assert last.startswith("recorded 4 bins, 1 of them from the daemon's history")
    station.close()


def test_the_clients_defaults_are_the_verbs(station):
    from rtdsae.cli import control

    with Subscriber() as subscriber, Control() as asking:
        assert (subscriber.endpoint, asking.endpoint) == (control.ENDPOINT, control.CONTROL)
