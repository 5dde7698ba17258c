"""LSL sources for tests, each in a process of its own: what it pushes, when and with which stamps.

`with LslSource(samples, rate=50) as source:` starts one and waits until it can be found; it begins to push when
somebody connects, and stays until the block ends. It pushes `pace` samples a second, `chunk` at a time, whatever their
stamps (`offsets` from the start) are; with `on_time` each at its own.
"""

import json
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np


class LslSource:
    def __init__(self, samples, rate, *, offsets=None, sample_format="float32", labels=None, source_id=None, **info):
        self.source_id = f"test-{uuid.uuid4().hex}" if source_id is None else source_id
        self.folder = tempfile.TemporaryDirectory(prefix="rtdsae-source-")
        data = Path(self.folder.name) / "data.npz"
        offsets = (np.arange(len(samples)) + 1) / (rate or 50.0) if offsets is None else offsets
        np.savez(data, samples=samples, offsets=offsets)
        self.spec = {
            "name": info.get("name", "test"),
            "type": info.get("type", "Spikes"),
            "source_id": self.source_id,
            "rate": rate,
            "format": sample_format,
            "labels": labels,
            "labels_of": "channels" if rate else "spike_channels",
            "data": str(data),
            "pace": info.get("pace", rate or 50.0),
            "chunk": info.get("chunk", 1),
            "on_time": info.get("on_time", False),
        }

    def __enter__(self):
        command = [sys.executable, __file__, json.dumps(self.spec)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"
        return self

    def wait_pushed(self):
        """Returns when everything has been pushed."""
        assert self.process.stdout.readline() == "pushed\n"

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()
        self.folder.cleanup()


def say(word):
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main(spec):
    import time

    import pylsl

    with np.load(spec["data"]) as data:
        samples, offsets = data["samples"], data["offsets"]
    n_channels = samples.shape[1]
    info = pylsl.StreamInfo(spec["name"], spec["type"], n_channels, spec["rate"], spec["format"], spec["source_id"])
    if spec["labels"]:
        channels = info.desc().append_child(spec["labels_of"])
        for label in spec["labels"]:  # fewer or more than there are channels, where a test says so
            channels.append_child("channel").append_child_value("label", label)
    outlet = pylsl.StreamOutlet(info)
    say("ready")
    if outlet.wait_for_consumers(30) and spec["format"] != "string":
        start, n = pylsl.local_clock() + (0.1 if spec["on_time"] else 0.0), spec["chunk"]
        for i in range(0, len(samples), n):
            due = start + offsets[i] if spec["on_time"] else start + (i + n) / spec["pace"]
            time.sleep(max(0.0, due - pylsl.local_clock()))
            outlet.push_chunk(samples[i : i + n].tolist(), start + offsets[min(i + n, len(samples)) - 1])
    say("pushed")
    sys.stdin.read()  # the stream stays until it is killed, or the test is


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
