"""Latents of a recording, offline, are what the daemon's decoder gives."""

import msgspec
import numpy as np
import pytest
import torch
from test_fit import FAMILIES, config, fit, recording

from rtdsae.errors import ConfigError
from rtdsae.model.families import make_family
from rtdsae.model.family import Dims, Neurons
from rtdsae.recordings import mapped
from rtdsae.serve.decoder import Decoder
from rtdsae.serve.engine import Engine
from rtdsae.train import latents
from rtdsae.train.config import convert
from rtdsae.train.export import export
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.windows import Tensors

SEGMENTS = np.array([[0, 70], [70, 79], [79, 200], [200, 206]])  # shorter and longer than a lane's turn; S is 5, R 15


def decoded(bundle, way, counts):
    """By name, what the daemon's decoder answers to a segment's bins."""
    m = bundle.manifest
    decoder = Decoder(Engine(bundle), m.anchor_bins, m.horizon_bins, len(m.channels), way)
    rows = []
    for x in counts.astype(np.float32):
        if decoder.decode(x, True) is not None:
            rows.append({name: value.copy() for name, value in decoder.outputs.items()})
        decoder.anchor_if_due()
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(
    ("lanes", "way"), [(1, "once"), (2, "lanes"), *(pytest.param(n, "lanes", marks=pytest.mark.slow) for n in (3, 4))]
)
def test_a_recording_gives_what_the_daemon_gives(tmp_path, lanes, way):
    c = config(epochs=2)
    c = msgspec.structs.replace(c, window=msgspec.structs.replace(c.window, lanes=lanes))
    run, r = fit(tmp_path / "run", c), recording()
    bundle = export(run, tmp_path / "bundle")
    assert bundle.manifest.lanes == lanes
    parts = [decoded(bundle, way, r.counts[a:b]) for a, b in SEGMENTS]
    offline = segment_outputs(run.model(), Tensors(r), SEGMENTS)
    assert len(offline["f"]) == len(modelled_bins(SEGMENTS, 5))
    for name, values in offline.items():
        expected = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(values, expected, atol=2e-5, rtol=2e-4, err_msg=name)


def test_more_lanes_than_bins_to_take_turns_in_are_refused():
    tree = {"model": {"family": "lfads"}, "window": {"horizon_bins": 3, "lanes": 4}}
    with pytest.raises(ConfigError, match=r"horizon_bins=3 is too short for the turns of window\.lanes=4"):
        convert(tree, "c.yaml")


def test_the_windows_of_a_long_segment_go_through_a_few_at_a_time(tmp_path, monkeypatch):
    c = config(epochs=1)
    c = msgspec.structs.replace(c, model=msgspec.structs.replace(c.model, causal=False, z_lag=0))
    run, tensors = fit(tmp_path / "run", c), Tensors(recording())
    a, b = SEGMENTS[0].tolist()
    whole = latents.smoothed(run.model(), tensors, a, b)
    monkeypatch.setattr(latents, "BATCH", 2)
    for name, values in latents.smoothed(run.model(), tensors, a, b).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_long_stretches_are_streamed_a_piece_at_a_time_and_only_what_is_wanted(tmp_path, monkeypatch):
    c = config(epochs=1)
    run, tensors = fit(tmp_path / "run", c), Tensors(recording())
    whole = segment_outputs(run.model(), tensors, SEGMENTS)
    monkeypatch.setattr(latents, "ENTRIES", 7 * len(SEGMENTS) * 8)  # of 8 neurons: seven bins of each
    pieces = segment_outputs(run.model(), tensors, SEGMENTS)
    for name, values in whole.items():
        np.testing.assert_allclose(values, pieces[name], rtol=1e-5, atol=1e-6, err_msg=name)
    some = segment_outputs(run.model(), tensors, SEGMENTS, ["factors"])
    assert list(some) == ["factors"]
    np.testing.assert_array_equal(some["factors"], pieces["factors"])


@pytest.mark.parametrize("lanes", [1, 2])
def test_what_hours_are_answered_is_on_disk(tmp_path, monkeypatch, lanes):
    c = config(epochs=1)
    c = msgspec.structs.replace(c, window=msgspec.structs.replace(c.window, lanes=lanes))
    run, tensors = fit(tmp_path / "run", c), Tensors(recording())
    in_memory = segment_outputs(run.model(), tensors, SEGMENTS, ["factors"])["factors"]
    monkeypatch.setattr(mapped, "LARGE", in_memory.nbytes - 1)
    made = []
    monkeypatch.setattr(
        np, "memmap", lambda *args, memmap=np.memmap, **how: made.append(memmap(*args, **how)) or made[0]
    )
    on_disk = segment_outputs(run.model(), tensors, SEGMENTS, ["factors"])["factors"]
    assert [np.shares_memory(on_disk, array) for array in made] == [True]
    np.testing.assert_array_equal(on_disk, in_memory)


def family(causal, n_external=0):
    torch.manual_seed(0)
    model = msgspec.structs.replace(FAMILIES["lfads"], causal=causal)
    return make_family(model, Dims((Neurons("a", 8, 8),), n_external, 0, 0, 0, 0.02, 5, 15))


@pytest.mark.parametrize("causal", [True, False])
def test_a_model_that_is_in_training_gives_what_it_gives_in_use(causal):
    r, segments = Tensors(recording()), SEGMENTS[[0, 2]]
    expected = segment_outputs(family(causal).eval(), r, segments)
    for name, values in segment_outputs(family(causal).train(), r, segments).items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize("causal", [True, False])
def test_external_inputs_come_with_their_bins(causal):
    u = np.random.default_rng(1).normal(size=(400, 2))
    model, segments = family(causal, 2), np.array([[0, 40], [50, 90]])
    moved = u.copy()
    moved[70] += 1
    tensors = [Tensors(recording(external=one)) for one in (u, moved)]
    first, second = (segment_outputs(model, each, segments, ["factors"])["factors"] for each in tensors)
    differ = (first != second).any(1)
    bins = modelled_bins(segments, 5)
    assert differ[bins == 70].all()
    assert not differ[bins < 70 if causal else bins < 50].any()


def test_a_short_segment_at_a_recordings_end_reads_nothing_beyond_it():
    segments = np.array([[0, 70], [390, 400]])
    factors = segment_outputs(family(True), Tensors(recording()), segments, ["factors"])["factors"]
    assert factors.shape == (65 + 5, 4)
