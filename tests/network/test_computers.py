"""A source, a daemon and a control program on three computers with three clocks; cables out, computers switched off."""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pylsl
import pytest
from computers import Network
from toy_bundle import Toy

from rtdsae.client import keys
from rtdsae.wire import Flags

SOURCE = Path(__file__).parents[1] / "lsl_source.py"
ARM = Path(__file__).parent / "arm.py"
WIDTH_S = 0.02
SOON_S = 25.0
pytestmark = pytest.mark.timeout(120)


class Lab:
    """The amplifier's computer, the rig's and the arm's."""

    def __init__(self, network, folder):
        self.network, self.folder, self.toy = network, folder, Toy()
        self.toy.write(folder / "toy")
        keys.make(folder / "keys", ["arm"])
        self.amplifier, self.rig = network.computer("amplifier", uptime_s=500_000), network.computer("rig")
        self.arm = network.computer("arm", uptime_s=7_000)
        self.pub, self.ask = f"tcp://{self.rig.address}:5556", f"tcp://{self.rig.address}:5557"
        self.said = []

    def send(self, x, seed=0):
        """The amplifier sends, from when somebody listens on."""
        data = self.folder / f"data{seed}.npz"
        np.savez(data, samples=x, offsets=(np.arange(len(x)) + 1) * WIDTH_S)
        stream = {
            "name": "far",
            "type": "Spikes",
            "source_id": "far",
            "rate": 50.0,
            "format": "float32",
            "labels": None,
        }
        spec = {**stream, "data": str(data), "pace": 50.0, "chunk": 1, "on_time": False}
        return self.amplifier.start(sys.executable, str(SOURCE), json.dumps(spec))

    def serve(self):
        options = ["--pub", self.pub, "--control", self.ask, "--keys", str(self.folder / "keys"), "--timeout", "60"]
        bundle = str(self.folder / "toy")
        command = [sys.executable, "-m", "rtdsae", "serve", bundle, "--stream", "source_id=far", *options]
        with (self.folder / "daemon.log").open("a") as log:
            self.rig.start(*command, stdout=log)

    def listen(self):
        self.listening = self.arm.start(sys.executable, str(ARM), self.pub, self.ask, self.carried)

    @property
    def carried(self):
        return str(self.folder / "keys" / "carry" / "arm")

    def until(self, true):
        """Reads what the arm says, until `true` of it."""
        end = time.monotonic() + SOON_S
        while not true(self.said):
            assert time.monotonic() < end, (self.said[-3:], (self.folder / "daemon.log").read_text())
            line = self.listening.stdout.readline()
            assert line.startswith("{"), line + self.listening.stdout.read()
            self.said.append(json.loads(line))
        return self.said

    def bins(self, first=0):
        return [said for said in self.said[first:] if "seq" in said]

    def until_bins(self, n, first=0):
        self.until(lambda _: len(self.bins(first)) >= n)
        return self.bins(first)

    def until_silent(self, seconds):
        """Reads on until the arm has heard no bin for so long; where in `said` that began."""
        before = len(self.said)
        self.until(lambda said: sum("silent" in line for line in said[before:]) >= 2 * seconds)
        return before

    def outage(self, computer, seconds):
        """The computer's cable is out for so long; where in `said` that began."""
        computer.unplug()
        before = self.until_silent(seconds)
        computer.plug()
        return before

    def status(self):
        """The daemon's, as the arm is told."""
        before = len(self.said)
        self.listening.stdin.write("\n")
        self.listening.stdin.flush()
        said = self.until(lambda said: any("status" in line or "refused" in line for line in said[before:]))
        return next(line for line in said[before:] if "status" in line or "refused" in line)

    def check(self, bins, x):
        """Each bin once, in order, with the model's values."""
        assert [said["seq"] for said in bins] == list(range(bins[0]["seq"], bins[0]["seq"] + len(bins)))
        expected = self.toy.run(x)["factors"][bins[0]["seq"] :][: len(bins)]
        np.testing.assert_allclose([said["factors"] for said in bins], expected, atol=2e-4)


@pytest.fixture
def lab(tmp_path):
    with Network() as network:
        yield Lab(network, tmp_path)


def running(lab, x):
    lab.send(x)
    lab.serve()
    lab.listen()
    lab.until_bins(50)


def on_time(bins):
    """Whether they were sent soon after their end: by clocks that differ by 500,000 s."""
    behind_s = [said["behind_s"] for said in bins]
    return np.median(behind_s) < 0.3 and min(behind_s) > -1e-3 and max(behind_s) < 5


def test_three_computers_and_a_stranger(lab):
    """Values are the model's, times are the rig's, and who has no key gets nothing."""
    x = lab.toy.counts(1000)
    stranger = lab.network.computer("stranger")
    running(lab, x)
    strange = stranger.start(sys.executable, str(ARM), lab.pub, lab.ask)
    lab.until_bins(200)
    assert abs(pylsl.local_clock() - lab.bins()[-1]["t_bin"]) < 5
    assert on_time(lab.bins()[20:])
    lab.check(lab.bins(), x)
    status = lab.status()["status"]
    assert abs(status["stream"]["clock_offset_s"] + 500_000) < 1e-3
    strange.stdin.write("\n")
    strange.stdin.flush()
    said = [json.loads(strange.stdout.readline())]
    while "refused" not in said[-1]:
        said.append(json.loads(strange.stdout.readline()))
        assert len(said) < 40
    assert "with the same keys" in said[-1]["refused"]
    assert len(said) > 2
    assert all("with these keys" in line["silent"] for line in said[:-1])


def test_the_amplifiers_cable_is_pulled_for_three_seconds(lab):
    x = lab.toy.counts(3000)
    running(lab, x)
    lab.outage(lab.amplifier, 3)
    bins = lab.until_bins(450)
    lab.check(bins, x)
    assert sum(bool(said["flags"] & Flags.LATE) for said in bins) > 100
    assert not any(said["flags"] & Flags.GAP for said in bins)


@pytest.mark.slow
def test_the_amplifiers_cable_is_pulled_for_eight_seconds(lab):
    """TCP tries again after 13, when LSL still has the last ten: the same connection brings them."""
    running(lab, lab.toy.counts(3000))
    before = lab.outage(lab.amplifier, 8)
    bins = lab.until_bins(750, before)
    assert [said["seq"] for said in lab.bins()] == list(range(len(lab.bins())))
    assert sum(bool(said["flags"] & Flags.LATE) for said in bins) > 450
    assert sum(bool(said["flags"] & Flags.GAP) for said in bins) < 250
    assert "stream far is back" not in (lab.folder / "daemon.log").read_text()


def test_the_amplifiers_cable_is_pulled_for_longer_than_samples_are_kept(lab):
    """A new connection brings bins as soon as it is back, where TCP would be silent for as long again."""
    running(lab, lab.toy.counts(9000))
    before = lab.outage(lab.amplifier, 16)
    bins = lab.until_bins(1000, before)
    assert [said["seq"] for said in lab.bins()] == list(range(len(lab.bins())))
    np.testing.assert_allclose(np.diff([said["t_bin"] for said in bins]), WIDTH_S, atol=0.01)
    assert any(said["flags"] & Flags.GAP for said in bins)
    assert on_time(bins[-20:])
    assert "stream far is back" in (lab.folder / "daemon.log").read_text()
    assert lab.status()["status"]["stream"]["losses"] == 1


@pytest.mark.parametrize("name", ["amplifier", "rig"])
def test_the_amplifiers_computer_fails_and_another_takes_its_place(lab, name):
    """Its clock is another, whatever its name is; no bin has a wrong time."""
    x = lab.toy.counts(3000)
    lab.amplifier.off()
    lab.amplifier = lab.network.computer("amplifier", uptime_s=500_000, name=name)
    running(lab, x)
    lab.amplifier.off()
    before = lab.until_silent(2)
    lab.amplifier = lab.network.computer("amplifier", uptime_s=9, name=name)
    lab.send(x, seed=1)
    bins = lab.until_bins(400, before)
    assert [said["seq"] for said in lab.bins()] == list(range(len(lab.bins())))
    t = np.array([said["t_bin"] for said in bins])
    np.testing.assert_allclose(np.diff(t), WIDTH_S, atol=0.01)
    assert on_time(bins[-50:])
    assert any(said["flags"] & Flags.GAP for said in bins)


def test_the_rigs_computer_fails_and_is_on_again(lab):
    """The arm hears no goodbye, and yet finds the new daemon, with both of its sockets."""
    running(lab, lab.toy.counts(3000))
    assert "status" in lab.status()
    lab.rig.off()
    lab.until_silent(6)
    assert "nothing at all for" in lab.said[-1]["silent"]
    lab.rig = lab.network.computer("rig")
    lab.serve()
    bins = lab.until_bins(20, len(lab.said))
    assert bins[-1]["restarts"] == 1
    assert bins[0]["seq"] == 0
    assert bins[-1]["holes"] == 0
    assert lab.status()["status"]["stream"]["source_id"] == "far"


def test_the_arms_cable_is_pulled_for_two_seconds(lab):
    """Short enough for its connection: nothing is lost."""
    x = lab.toy.counts(3000)
    running(lab, x)
    lab.outage(lab.arm, 2)
    lab.until_bins(200, len(lab.said))
    lab.check(lab.bins(), x)


def test_the_arms_cable_is_pulled_for_long(lab):
    """Bins flow again when it is back; those between are a hole, and a recording fills it."""
    running(lab, lab.toy.counts(3000))
    out = lab.folder / "day.h5"
    command = ["record", str(out), "--endpoint", lab.pub, "--control", lab.ask, "--keys", lab.carried]
    recording = lab.arm.start(sys.executable, "-m", "rtdsae", *command)
    lab.until(lambda _: out.exists() and out.stat().st_size > 50_000)  # it has bins, not only their names
    lab.outage(lab.arm, 8)
    bins = lab.until_bins(1, len(lab.said))
    assert bins[-1]["holes"] > 50
    last = lab.until_bins(100, len(lab.said))[-1]["seq"]
    lab.until(lambda said: lab.status()["status"]["bins"] > last + 50)
    recording.terminate()
    said = recording.communicate(timeout=20)[0]
    assert recording.returncode == 0, said
    filled = re.search(r"recorded \d+ bins, (\d+) of them from the daemon's history, none missing", said)
    assert filled, said
    assert int(filled[1]) > 50


@pytest.mark.slow
def test_the_arms_computer_fails_and_the_rig_forgets_it(lab):
    running(lab, lab.toy.counts(9000))
    assert lab.arm.address in lab.rig.run("ss --tcp --no-header")
    lab.arm.off()
    end = time.monotonic() + 110
    while lab.arm.address in lab.rig.run("ss --tcp --no-header"):
        assert time.monotonic() < end
        time.sleep(1)
