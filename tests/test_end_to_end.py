"""The whole path by the command line: recording → train → export → serve ← replay, and a subscriber that compares."""

import importlib.util
import signal
import uuid
from pathlib import Path

import numpy as np
import pytest

from rtdsae import Subscriber, recordings
from rtdsae.cli import main
from rtdsae.errors import RecordingError
from rtdsae.recordings import synthetic
from rtdsae.train.latents import segment_outputs
from rtdsae.train.run import Run
from rtdsae.train.windows import Tensors

ROOT = Path(__file__).parent.parent
SMALL = ["fit.epochs=2", "fit.accelerator=cpu", "model.gen_dim=24", "model.fac_dim=8", "model.z_dim=2"]
ARRAYS = ("factors", "z", "f", "rates", "behaviour")


def real_recording(name):
    spec = importlib.util.spec_from_file_location("real_recordings", ROOT / "tools" / "real_recordings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.SETS[name]()
    except RecordingError as error:
        pytest.skip(f"the real recordings are not here: {error}")


def generated():
    """Two minutes of Lorenz neurons, cut in time."""
    recording = synthetic.lorenz(seconds=120, n_neurons=12)
    return recording.split(valid=0.1, test=0.1)


def rtdsae(*args):
    assert main([str(arg) for arg in args]) == 0


REAL = [pytest.param(name, marks=pytest.mark.slow) for name in ("pursuit", "center_out_stream")]


@pytest.mark.parametrize("name", ["generated", *REAL])
def test_what_is_streamed_is_what_was_trained(name, tmp_path, start):
    recording = generated() if name == "generated" else real_recording(name)
    recordings.save(recording, tmp_path / "recording.h5")
    overrides = [flag for value in SMALL for flag in ("--set", value)]
    rtdsae(
        "train", ROOT / "configs/lfads.yaml", "--data", tmp_path / "recording.h5", "--out", tmp_path / "run", *overrides
    )
    rtdsae("export", tmp_path / "run", "--out", tmp_path / "bundle")

    test = recording.select(recording.splits == "test")
    published = [array for array in ARRAYS if array != "behaviour" or recording.behaviour is not None]
    source_id, endpoint = f"test-{uuid.uuid4().hex}", f"ipc://{tmp_path}/latents"
    heard = []
    with Subscriber(endpoint, timeout_s=60) as subscriber:
        start(
            "replay",
            tmp_path / "recording.h5",
            "--split",
            "test",
            "--speed",
            20,
            "--source-id",
            source_id,
            "--wait",
            60,
        )
        daemon = start(
            *("serve", tmp_path / "bundle", "--stream", f"source_id={source_id}"),
            *("--pub", endpoint, "--publish", ",".join(published), "--timeout", 60),
        )
        for message in subscriber:
            heard.append((message.seq, message.bin, {array: message[array].copy() for array in published}))
            if message.bin == test.n_bins - 1:
                break
        assert subscriber.holes == 0
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0

    family = Run.open(tmp_path / "run").model()
    s = family.dims.anchor_bins
    assert [seq for seq, _, _ in heard] == list(range(test.n_bins - s))
    assert [bin_ for _, bin_, _ in heard] == list(range(s, test.n_bins))
    offline = segment_outputs(family, Tensors(test), np.array([[0, test.n_bins]]))
    for array in published:
        streamed = np.stack([values[array] for _, _, values in heard])
        assert np.max(np.abs(streamed - offline[array]) / np.maximum(1, np.abs(offline[array]))) < 1e-4, array
