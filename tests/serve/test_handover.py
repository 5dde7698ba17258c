"""A swap while bins flow: a real source, daemon, subscriber and control client."""

import contextlib
import itertools
import signal
import subprocess
import sys
import uuid

import numpy as np
import onnx
import pylsl
import pytest
import toy_bundle
import zmq
from lsl_source import LslSource
from onnx import helper
from station import until
from test_daemon import ARRAYS, Served
from toy_bundle import Lanes, Toy

from rtdsae import bundle, wire
from rtdsae.client import Control
from rtdsae.errors import BundleError, ControlError
from rtdsae.serve import handover as module
from rtdsae.serve.dry_run import dry_run
from rtdsae.serve.pipeline import Pipeline
from rtdsae.serve.settings import Model
from rtdsae.wire import Flags

RATE, WIDTH = 200.0, 0.005
SAME = {"n_channels": 6, "bin_width_s": WIDTH}


@contextlib.contextmanager
def serving(folder, toy, x, *options, **named):
    """A daemon on a stream, and its control client."""
    endpoint = f"ipc://{folder}/control"
    with (
        LslSource(x, RATE, labels=toy.channels) as source,
        Served(folder, toy, f"source_id={source.source_id}", "--control", endpoint, *options, **named) as served,
        Control(endpoint, timeout_s=20) as control,
    ):
        yield served.bins(20), control


def crashing(folder):
    """A bundle whose step ends the process that runs it: a Sum without one of its inputs."""
    made = Toy(**SAME)
    files = made.files()
    model = onnx.load_from_string(files["step.onnx"])
    (step,) = (node for node in model.graph.node if node.op_type == "Sum")
    model.graph.node.insert(list(model.graph.node).index(step), helper.make_node("Sum", ["hA", "", "xB"], ["spare"]))
    files["step.onnx"] = model.SerializeToString()
    bundle.write(folder, made.manifest({}), {**files, "MODEL_CARD.md": b"# toy\n"})
    return folder


def test_history_has_no_hole_when_the_model_before_is_long_gone(tmp_path):
    old, new = Toy(**SAME), Toy(**SAME, seed=3)
    with serving(tmp_path, old, old.counts(6000), "--set", "model.history_s=0.2") as (served, control):
        seq = control.swap(new.write(tmp_path / "new"))["seq"]
        served.receive(lambda self: self.frames[-1].seq >= seq + 60)
        kept = [bin_.seq for bin_ in control.history(0, seq + 60)]
        assert kept == list(range(kept[0], seq + 61))
        assert kept[0] > seq
        served.receive(lambda self: self.statuses[-1]["anchors"] == 2)  # since the daemon's start


@pytest.mark.parametrize("lanes", [1, 2])
def test_no_bin_is_missing_and_each_is_its_models(tmp_path, lanes):
    old, new = Toy(**SAME, lanes=lanes), Toy(**SAME, lanes=lanes, seed=3, n_anchor=8, n_hidden=20)
    x = old.counts(6000)
    with serving(tmp_path, old, x) as (served, control):
        said = control.swap(new.write(tmp_path / "new"))
        seq = said["seq"]
        served.receive(lambda self: self.frames[-1].seq >= seq + 50)
        served.check_order()
        assert [f.seq for f in served.frames if f.flags & Flags.SWAPPED] == [seq]
        assert served.frames[seq].flags & Flags.ANCHORED
        assert {f.schema.bundle_hash for f in served.frames[seq:]} == {bundle.load(tmp_path / "new").hash}
        start, end = served.frames[seq].bin, served.frames[-1].bin + 1
        before, anchored_before = Lanes.run(old, x[:start])
        after, anchored_after = Lanes.run(new, x[start - new.n_anchor : end])
        anchored = [*anchored_before, *(seq + i for i in anchored_after)]
        assert [f.seq for f in served.frames if f.flags & Flags.ANCHORED] == anchored
        for name in ARRAYS:
            for f in served.frames:
                expected = before[name][f.bin - old.n_anchor] if f.seq < seq else after[name][f.bin - start]
                np.testing.assert_allclose(f[name], expected, atol=1e-3, rtol=1e-3)
        again = control.history(seq - 5, seq + 4)
        assert [f.seq for f in again] == list(range(seq - 5, seq + 5))
        np.testing.assert_array_equal(again[0].payload, served.frames[seq - 5].payload)


def test_history_reaches_back_over_several_swaps(tmp_path):
    old, new = Toy(**SAME), Toy(**SAME, seed=3)
    auto = ("--provider", "auto")  # swaps run on what was chosen at the start
    with serving(tmp_path, old, old.counts(6000), *auto) as (served, control):
        bundles = [new.write(tmp_path / "new"), served.bundle]
        seqs = [control.swap(bundles[i % 2])["seq"] for i in range(4)]
        served.receive(lambda self: self.frames[-1].seq >= seqs[-1] + 20)
        again = control.history(0, seqs[-1] + 10)
        assert [f.seq for f in again] == list(range(seqs[-1] + 11))
        for bin_, frame in zip(again, served.frames, strict=False):
            assert (bin_.payload.tobytes(), bin_.flags) == (frame.payload.tobytes(), frame.flags | Flags.BACKFILL)


def heard(socket, last):
    """The bins that a subscriber has got, up to `seq` last."""
    schema, bins = None, []
    while not bins or bins[-1].seq < last:
        assert socket.poll(20_000), "bins are missing"
        match wire.decode(socket.recv()):
            case wire.Schema() as schema:
                pass
            case wire.Latents() as latents:
                bins.append(latents.bind(schema))
    return bins


def test_swaps_back_and_forth_at_a_thousand_bins_a_second_lose_none_with_any_subscriber(tmp_path):
    """From lanes to a model that is anchored once and back, and bundles between that are refused."""
    kind = {"n_channels": 6, "bin_width_s": 0.001}
    models = Toy(**kind, lanes=2), Toy(**kind, seed=3, n_anchor=8, n_hidden=20)
    bundles = [model.write(tmp_path / name) for model, name in zip(models, ("lanes", "once"), strict=True)]
    refused = Toy(n_channels=7, bin_width_s=0.001).write(tmp_path / "refused")
    x, endpoint, seqs = models[0].counts(100_000), f"ipc://{tmp_path}/control", [0]
    with (
        LslSource(x, 1000.0) as source,
        Served(
            tmp_path, models[0], f"source_id={source.source_id}", "--control", endpoint, bundle=bundles[0]
        ) as served,
        contextlib.ExitStack() as sockets,
        Control(endpoint, timeout_s=60) as control,
    ):
        subscribers = [sockets.enter_context(served.context.socket(zmq.SUB)) for _ in range(3)]
        for socket in subscribers:
            socket.set(zmq.RCVHWM, 0)  # it waits here while we swap
            socket.subscribe(b"")
            socket.connect(served.endpoint)
        served.bins(20)
        for i in range(1, 5):
            seqs.append(control.swap(bundles[i % 2])["seq"])
            with pytest.raises(ControlError, match="a swap needs the same channels and bins"):
                control.swap(refused)
        bins, *others = (heard(socket, seqs[-1] + 100) for socket in subscribers)
    assert [f.seq for f in bins] == list(range(bins[0].seq, bins[-1].seq + 1))
    assert [f.bin - f.seq for f in bins] == [models[0].n_anchor] * len(bins)
    assert [f.seq for f in bins if f.flags & Flags.SWAPPED] == seqs[1:]
    for other in others:
        first = max(other[0].seq, bins[0].seq)
        again = [(f.seq, f.flags, f.schema_id, f.payload.tobytes()) for f in other if f.seq >= first]
        assert again == [(f.seq, f.flags, f.schema_id, f.payload.tobytes()) for f in bins if f.seq >= first]
    for i, (start, end) in enumerate(itertools.pairwise([*seqs, bins[-1].seq + 1])):
        model, of_model = models[i % 2], [f for f in bins if start <= f.seq < end]
        assert {f.schema.bundle_hash for f in of_model} == {bundle.load(bundles[i % 2]).hash}
        first = start + models[0].n_anchor
        expected, _ = Lanes.run(model, x[first - model.n_anchor : of_model[-1].bin + 1])
        for name in ARRAYS:
            found = np.stack([f[name] for f in of_model])
            np.testing.assert_allclose(found, expected[name][of_model[0].seq - start :], atol=1e-3, rtol=1e-3)


def described(name):
    """What an LSL stream of the daemon says of itself: its labels, and its bundle."""
    (info,) = pylsl.resolve_byprop("name", name, timeout=20)
    whole = pylsl.StreamInlet(info, recover=False).info(10)
    return whole.get_channel_labels(), whole.desc().child_value("bundle_hash")


def test_the_lsl_stream_goes_on_with_the_same_arrays_and_begins_anew_with_others(tmp_path, monkeypatch):
    """Others of as many values too: one factor more, and one z less."""
    first, name = Toy(**SAME), f"out-{uuid.uuid4().hex}"
    same = Toy(**SAME, seed=3).write(tmp_path / "same")
    monkeypatch.setattr(toy_bundle, "N_FACTORS", toy_bundle.N_FACTORS + 1)
    monkeypatch.setattr(toy_bundle, "N_DYNAMIC", toy_bundle.N_DYNAMIC - 1)
    other, wrong = Toy(**SAME, seed=4).write(tmp_path / "other"), Toy(**SAME, label="b").write(tmp_path / "wrong")
    monkeypatch.undo()
    with serving(tmp_path, first, first.counts(8000), "--lsl-out", name) as (served, control):
        before = described(name)
        with pytest.raises(ControlError, match="a swap needs the same channels in the same order"):
            control.swap(wrong)  # which leaves no stream of its arrays
        control.swap(same)
        assert described(name) == before
        seq = control.swap(other)["seq"]
        served.receive(lambda self: self.frames[-1].seq >= seq + 5)
        until(lambda: len(pylsl.resolve_byprop("name", name, timeout=1)) == 1, "the end of the old stream")
        labels, bundle_hash = described(name)
        assert len(labels) == len(before[0])
        assert labels[:5] == [f"factors.{i}" for i in range(5)]
        assert bundle_hash == bundle.load(other).hash


def test_a_swap_has_a_session_of_its_own(tmp_path):
    first = Toy(**SAME)
    second = first.for_neurons(9)
    two, alone = first.write(tmp_path / "two", further={"day2": second}), second.write(tmp_path / "alone")
    with serving(tmp_path, second, second.counts(6000), "--session", "day2", bundle=two) as (served, control):
        seqs = [control.swap(alone)["seq"]]
        with pytest.raises(ControlError, match="two: has the sessions toy, day2: say which one"):
            control.swap(two)
        seqs.append(control.swap(two, session="day2")["seq"])
        served.receive(lambda self: self.frames[-1].seq >= seqs[-1])
        assert [f.seq for f in served.frames if f.flags & Flags.SWAPPED] == seqs


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda folder: Toy(n_channels=7, bin_width_s=WIDTH).write(folder), "a swap needs the same channels and bins"),
        (lambda folder: Toy(n_channels=6, bin_width_s=0.02).write(folder), "a swap needs the same channels and bins"),
        (lambda folder: Toy(**SAME, label="b").write(folder), "channel 0 of .*bad is b0, of .* a swap needs the same"),
        (lambda folder: Toy(**SAME).write(folder, golden_error=0.01), "golden.npz replayed"),
        (lambda folder: folder, "no such folder"),
        (crashing, "end the process that runs them"),
    ],
)
def test_a_bundle_that_will_not_do_leaves_the_old_one_running(tmp_path, write, said):
    toy = Toy(**SAME)
    x = toy.counts(6000)
    with serving(tmp_path, toy, x) as (served, control):
        with pytest.raises(ControlError, match=said):
            control.swap(write(tmp_path / "bad"))
        served.bins(len(served.frames) + 40)
        served.check_order()
        served.check_values(x[: served.frames[-1].bin + 1])
        assert not any(f.flags & Flags.SWAPPED for f in served.frames)


LOADING_AT_LENGTH = """
import sys
from rtdsae.cli import main
from rtdsae.serve import daemon, engine
load, times = engine._session, [1, 1, 100, 1]  # of the two graphs of each bundle
def at_length(*graph):
    n = times.pop(0)
    if n > 1:
        print("at it", file=sys.stderr, flush=True)
    return [load(*graph) for _ in range(n)][0]
engine._session, daemon.dry_run = at_length, lambda *_: None
sys.exit(main())
"""


def test_a_stop_while_the_graphs_of_a_swap_are_loaded_exits_0(tmp_path):
    toy, control = Toy(**SAME), f"ipc://{tmp_path}/control"
    with LslSource(toy.counts(6000), RATE, labels=toy.channels) as source:
        served = Served(tmp_path, toy, f"source_id={source.source_id}", "--control", control)
        served.command[1:3] = ["-c", LOADING_AT_LENGTH]
        with served, served.context.socket(zmq.DEALER) as client:
            served.bins(1)
            client.connect(control)
            client.send_json({"request": "swap", "bundle": str(served.bundle)})
            assert served.process.stderr.readline() == "at it\n"
            assert served.stop()[0] == 0


def test_what_could_not_be_anchored_in_time_does_not_take_over_later(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    toy, subject = Toy(**SAME), module.Handover()
    path = toy.write(tmp_path / "toy")
    running = Pipeline(path, None, Model(), run=7)
    with pytest.raises(BundleError, match=r"no 5 bins without a gap came within 0.05 s; .*toy runs on"):
        subject.offer(Pipeline(path, None, Model(), 7, running.decoder.recent), running)
    for counts in toy.counts(toy.n_anchor):
        running.decode(counts, True)
    assert not subject.waiting
    assert subject.take(running, 0) is None


def test_a_dry_run_that_nobody_waits_for_ends_by_itself():
    program = (
        "import time, rtdsae.bundle, rtdsae.serve.dry_run as dry_run\n"
        "dry_run.PATIENCE_S, rtdsae.bundle.load = 0.1, lambda _: time.sleep(60)\n"
        "dry_run._main('hanging', '', 'cpu')"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == -signal.SIGALRM


def test_a_good_bundle_passes_its_dry_run(tmp_path):
    assert dry_run(Toy().write(tmp_path / "good"), None, "cpu") is None


def test_a_bundle_that_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("rtdsae.serve.dry_run.PATIENCE_S", 0.01)  # no process begins so fast
    with pytest.raises(BundleError, match="did not end within"):
        dry_run(Toy().write(tmp_path / "slow"), None, "cpu")
