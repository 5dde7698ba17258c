"""Timeflux and ezmsg get what the daemon publishes; where they are installed, since nothing else here needs them."""

import importlib
import json
import subprocess
import sys

import pytest
from programs import EXAMPLES
from station import SCHEMA, Station, until

from rtdsae.wire import Flags

# A graph of the unit and one that prints what it gets, until it has 5 bins.
EZMSG_GRAPH = """
import json, sys
import ezmsg.core as ez
from ezmsg.util.messages.axisarray import AxisArray
from ezmsg_latents import Latents, LatentsSettings

class Print(ez.Unit):
    INPUT = ez.InputStream(AxisArray)

    async def initialize(self):
        self.n = 0

    @ez.subscriber(INPUT)
    async def show(self, message):
        labels, time = message.axes["ch"].data.tolist(), message.axes["time"]
        times = [time.value(0), time.gain]
        print(json.dumps([message.key, message.dims, message.data.tolist(), times, labels, message.attrs]), flush=True)
        self.n += 1
        if self.n == 5:
            raise ez.NormalTermination

latents, shown = Latents(LatentsSettings(endpoint=sys.argv[1], array=sys.argv[2])), Print()
ez.run(LATENTS=latents, PRINT=shown, connections=((latents.OUTPUT_SIGNAL, shown.INPUT),))
"""


@pytest.fixture
def station():
    station = Station()
    yield station
    station.close()


def test_a_timeflux_node_puts_out_what_has_come(station, monkeypatch):
    pytest.importorskip("timeflux", reason="timeflux is not installed")
    import pandas as pd
    import pylsl

    monkeypatch.syspath_prepend(EXAMPLES)
    node = importlib.import_module("timeflux_latents").Latents(station.pub, "factors")
    station.greet(lambda: station.bins(1) or node.update() or node.o.ready(), "the first bin")
    station.bins(3)
    station.bins(1, flags=Flags.GAP)
    last, frames, flags = station.next_seq - 1, [], []

    def updated():
        node.clear()
        node.update()
        if node.o.ready():
            frames.append(node.o.data)
            flags.append(node.o_flags.data)
            assert node.o.meta == {"rate": 50.0}
        return frames and frames[-1].iloc[-1, 0] == last

    until(updated, "the last bin")
    data, flags = pd.concat(frames), pd.concat(flags)
    assert list(data.columns) == list(SCHEMA.arrays[0].labels)
    assert data.iloc[-4:, 2].tolist() == [last - 3, last - 2, last - 1, last]
    assert flags["flags"].tolist()[-4:] == [0, 0, 0, Flags.GAP]
    assert data.index.equals(flags.index)
    ago = (pd.Timestamp.now("UTC").tz_localize(None) - data.index[-1]).total_seconds()
    assert abs(ago - (pylsl.local_clock() - last * 0.02)) < 1
    node.terminate()


@pytest.mark.parametrize(("array", "dims", "shape"), [("factors", [], 3), ("z", ["dim0"], (2, 2))])
def test_an_ezmsg_unit_publishes_each_bin(station, tmp_path, array, dims, shape):
    pytest.importorskip("ezmsg.core", reason="ezmsg is not installed")
    import numpy as np

    graph, said = tmp_path / "graph.py", tmp_path / "said"
    graph.write_text(f"import sys\nsys.path.insert(0, {str(EXAMPLES)!r})\n{EZMSG_GRAPH}")
    with said.open("w") as out:
        process = subprocess.Popen([sys.executable, graph, station.pub, array], stdout=out)
    try:
        station.greet(lambda: station.bins(1) or process.poll() is not None, "5 bins and an end")
    finally:
        process.kill()
    assert process.wait(20) == 0
    messages = [json.loads(line) for line in said.read_text().splitlines()]
    first = messages[0][-1]["seq"]
    assert len(messages) == 5
    for seq, message in enumerate(messages, first):
        labels = ["a", "b", "c"] if array == "factors" else ["0", "1"]
        times = [pytest.approx(seq * 0.02), pytest.approx(0.02)]
        values = np.full((1, *np.atleast_1d(shape)), seq).tolist()
        assert message == [array, ["time", *dims, "ch"], values, times, labels, {"seq": seq, "flags": 0}]
