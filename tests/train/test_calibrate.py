"""A third session for a model that two have trained: its own maps are fitted, and nothing else becomes another."""

import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from test_fit import FAMILIES
from test_real_recordings import the

from rtdsae import recordings
from rtdsae.bundle import SESSION_FILES, Bundle, load, session_path
from rtdsae.cli import main
from rtdsae.errors import BundleError, ConfigError
from rtdsae.evaluate.metrics import r2
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.model.priors import Labelled, Sequence
from rtdsae.model.stream import stream
from rtdsae.recordings.reaching import reaching
from rtdsae.serve.engine import Engine
from rtdsae.train.calibrate import begin, calibrate, fit_session, rebuild
from rtdsae.train.config import Data, Fit, Objective, TrainConfig, Window, calibration_config
from rtdsae.train.export import export, manifest, weights
from rtdsae.train.fit import train
from rtdsae.train.run import npz
from rtdsae.train.sessions import prepare, vocabulary
from rtdsae.train.windows import SessionWindows, Tensors

S, R = 5, 20
MODEL = LFADSConfig(
    readin_dim=8, ic_enc_dim=16, ci_enc_dim=16, con_dim=16, f_dim=6, z_dim=3, gen_dim=24, fac_dim=8, dropout=0.1
)
FIT = ("fit.epochs=10", "fit.learning_rate=1e-2")


def reaches(session, n_trials=4, n_neurons=15, **parts):
    """One hand in all sessions, of 1 s trials, by other neurons in each."""
    r = reaching(
        n_trials=n_trials, n_bins=S + R, bin_width_s=0.04, n_neurons=n_neurons, session=session, valid=0.25, test=0
    )
    parts = {"behaviour": r.behaviour[:, :2], "behaviour_labels": r.behaviour_labels[:2]} | parts
    return dataclasses.replace(r, session=f"day{session}", **parts)


def config(model=MODEL, paths=("day0.h5", "day1.h5"), **fit):
    fit = {"epochs": 10, "batch_size": 32, "learning_rate": 1e-2, "accelerator": "cpu"} | fit
    return TrainConfig(
        model=model,
        data=Data(path=paths),
        window=Window(anchor_bins=S, horizon_bins=R, lanes=1),
        objective=Objective(ramp_epochs=2),
        fit=Fit(**fit),
    )


def calibrated_config(source, *overrides, path="day2.h5"):
    return calibration_config(msgspec.to_builtins(source.manifest.config), overrides or FIT, path, "bundle")


def calibrate_to(out, source, recording, *overrides, report=lambda p: None, **options):
    c = calibrated_config(source, *overrides)
    return calibrate(source, prepare(recording, c), out, c, report, **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run of two sessions, its bundle, and a bundle that a third was calibrated to."""
    folder = tmp_path_factory.mktemp("home")
    c = config()
    run = train(folder / "run", c, [prepare(reaches(i), c) for i in (0, 1)], lambda p: None)
    source = export(run, folder / "two")
    made = calibrate_to(folder / "three", source, reaches(2), command="rtdsae calibrate two")
    return folder, run, source, made


def valid_segments(recording):
    return recording.segments[prepare(recording, config()).splits == "valid"]


def served(made, recording, segments):
    """Behaviour by ONNX Runtime alone, each segment anchored anew; and what it was."""
    engine, decoded, actual = Engine(made), [], []
    anchor_bins = made.manifest.anchor_bins
    columns = [recording.channels.index(c) for c in made.manifest.channels]
    counts = recording.counts[:, columns].astype(np.float32)
    for a, b in segments.tolist():
        engine.anchor(counts[a : a + anchor_bins])
        for t in range(a + anchor_bins, b):
            engine.step(counts[t], True)
            decoded.append(engine.outputs["behaviour"].copy())
            actual.append(recording.behaviour[t])
    return np.array(decoded), np.array(actual)


def test_the_old_sessions_stay_byte_for_byte(home):
    folder, _, source, made = home
    assert made.bundle.hash == load(folder / "three").hash
    assert load(folder / "two").hash == source.hash
    new = {session_path("day2", file) for file in SESSION_FILES}
    assert made.bundle.files.keys() == source.files.keys() | new
    for file in source.files.keys() - {"weights.npz", "MODEL_CARD.md"}:
        assert made.bundle.files[file] == source.files[file], file
    before, after = source.manifest, made.bundle.manifest
    changed = {"name", "sessions", "further", "provenance", "files", "manifest_sha256"}
    for field in set(before.__struct_fields__) - changed:
        assert getattr(after, field) == getattr(before, field), field
    assert (after.name, after.sessions, after.further[:1]) == ("three", ["day0", "day1", "day2"], before.further)
    added = [{"session": "day2", "data_hash": prepare(reaches(2), config()).hash}]
    assert after.provenance == before.provenance | {"calibrations": added}


def test_the_old_parameters_stay_and_the_new_sessions_come_with_them(home):
    _, _, source, made = home
    before, after = source.weights(), made.bundle.weights()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
        assert after[name].dtype == values.dtype
    added = after.keys() - before.keys()
    assert added == {name.replace("sessions.1.", "sessions.2.") for name in before if "sessions.1." in name}
    assert "model.sessions.2.readin.linear.weight" in added


def test_the_new_session_is_served_with_its_own_neurons(home):
    _, _, _, made = home
    session, recording = made.bundle.session("day2"), reaches(2)
    assert session.manifest.channels == list(recording.channels)
    assert session.manifest.output("rates").labels == list(recording.channels)
    engine = Engine(session)  # replays the golden run
    assert engine.outputs["rates"].shape == (15,)
    last = np.resize(recording.counts[-1200:], (S + 1000, 15))
    np.testing.assert_array_equal(session.golden()["x"], last[: len(session.golden()["x"])])
    card = made.bundle.files["MODEL_CARD.md"].decode()
    assert "Session day2: 15 channels, calibrated on day2.h5" in card
    assert "rtdsae calibrate two" in card


def test_a_calibrated_session_is_explained_and_decoded_as_those_that_trained_the_model(home):
    """Measured: R2 of the velocity 0.49 for the sessions that trained the model, 0.42 for the new one."""
    _, run, _, made = home
    assert made.aligned
    assert made.before.keys() == made.after.keys() == {"nll", "nll_masked"}
    assert made.after["nll_masked"] < made.before["nll_masked"]
    assert made.gained
    assert run.info["behaviour_fit"]["r2_valid"] > 0.4
    assert made.r2_behaviour > 0.3
    recording = reaches(2)
    decoded, actual = served(made.bundle.session("day2"), recording, valid_segments(recording))
    assert r2(actual, decoded).mean() == pytest.approx(made.r2_behaviour, abs=1e-3)


@pytest.mark.slow
def test_a_session_without_common_conditions_begins_at_random_and_still_improves(home, tmp_path):
    """And on top of a calibration, with neurons that are held out."""
    _, _, _, made = home
    overrides = (*FIT, "data.heldout_every=5")
    again = calibrate_to(tmp_path / "four", made.bundle, reaches(3, conditions=None), *overrides)
    assert not again.aligned
    assert again.before.keys() == {"nll", "nll_masked", "nll_heldout"}
    assert again.after["nll_heldout"] < again.before["nll_heldout"] - 0.005
    m = again.bundle.manifest
    assert m.sessions == ["day0", "day1", "day2", "day3"]
    assert [c["session"] for c in m.provenance["calibrations"]] == ["day2", "day3"]
    for file in made.bundle.files.keys() - {"weights.npz", "MODEL_CARD.md"}:
        assert again.bundle.files[file] == made.bundle.files[file], file
    session = again.bundle.session("day3")
    assert session.manifest.channels == [f"ch{i}" for i in range(15) if i % 5 != 4]
    assert session.manifest.output("rates").shape == [15]
    Engine(session)


@pytest.mark.slow
def test_from_a_run_it_is_the_same_as_from_its_bundle(home, tmp_path, capsys):
    """By the command line: from the recording's file, with the run exported on the way."""
    _, run, source, made = home
    recordings.save(reaches(2), tmp_path / "day2.h5")
    options = [part for override in FIT for part in ("--set", override)]
    out = tmp_path / "three"
    assert main(["calibrate", str(run.path), "--data", str(tmp_path / "day2.h5"), "--out", str(out), *options]) == 0
    found = load(out)
    for file in made.bundle.files.keys() - {"MODEL_CARD.md"}:
        assert found.files[file] == made.bundle.files[file], file
    unlike = {"files", "manifest_sha256"}
    for field in set(found.manifest.__struct_fields__) - unlike:  # config too: --set is not of the model
        assert getattr(found.manifest, field) == getattr(made.bundle.manifest, field), field
    assert found.manifest.config == source.manifest.config
    said = capsys.readouterr().out
    assert "session day2: read-in begun from the conditions that the model knows" in said
    assert f"behaviour R2 {made.r2_behaviour:.3f} by the model's own read-out" in said
    assert f"rtdsae serve {out} --session day2" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["day2.h5", "three"]


def edited(source, weights=None, without=(), **config):
    """The bundle with other weights, or with other settings of its model."""
    files = {name: content for name, content in source.files.items() if name not in without}
    files |= {} if weights is None else {"weights.npz": npz(weights)}
    tree = source.manifest.config | {"model": source.manifest.config["model"] | config}
    return dataclasses.replace(source, manifest=msgspec.structs.replace(source.manifest, config=tree), files=files)


def of_another_model(source):
    arrays = source.weights()
    narrow = {
        name: values[..., :-1] if name.endswith("gen.factors.weight") else values for name, values in arrays.items()
    }
    assert any(narrow[name].shape != arrays[name].shape for name in arrays)
    return narrow


@pytest.mark.parametrize(
    ("error", "said", "change", "parts", "options"),
    [
        (
            BundleError,
            "written without its weights: calibrate from the run instead",
            lambda s: edited(s, without=("weights.npz",)),
            {},
            {},
        ),
        (BundleError, "weights.npz: is not of the model", lambda s: edited(s, of_another_model(s)), {}, {}),
        (
            BundleError,
            "weights.npz: is not of the model",
            lambda s: edited(s, {"model.surprise": np.ones(2), **s.weights()}),
            {},
            {},
        ),
        (
            BundleError,
            "weights.npz: is not of the model",
            lambda s: edited(s, {k: v for k, v in s.weights().items() if k != "model.con_first"}),
            {},
            {},
        ),
        (ConfigError, "trained without common inputs", lambda s: edited(s, readin_dim=0), {}, {}),
        (ConfigError, "has a session 'day1' already", None, {}, {"session": "day1"}),
        (ConfigError, "--session 'day 2': a name is letters", None, {}, {"session": "day 2"}),
        (ConfigError, "--session '../day2': a name is letters", None, {}, {"session": "../day2"}),
        (ConfigError, "day2.h5 has bins of 0.02 s, the model 0.04 s", None, {"bin_width_s": 0.02}, {}),
        (
            ConfigError,
            "day2.h5 has the external inputs ['external0'], the model []",
            None,
            {"external": np.ones((72 * 4 * 25, 1))},
            {},
        ),
        (BundleError, "two: exists already: choose another name", None, {}, {"out": "two"}),
        (BundleError, "run: exists and is not a bundle", None, {}, {"out": "run", "overwrite": True}),
        (ConfigError, "--out 'my bundle': a name is letters", None, {}, {"out": "my bundle"}),
    ],
)
def test_mistakes_are_told_before_anything_is_fitted(home, error, said, change, parts, options):
    folder, _, source, _ = home
    before = sorted(folder.rglob("*"))
    source = change(source) if change else source
    out = folder / options.get("out", "new")
    others = {name: value for name, value in options.items() if name != "out"}
    with pytest.raises(error) as caught:
        calibrate_to(out, source, reaches(2, **parts), report=lambda p: pytest.fail("fitted"), **others)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(folder.rglob("*")) == before


def test_settings_of_the_model_are_not_a_calibrations(home):
    _, _, source, _ = home
    for override in ("model.gen_dim=3", "window.anchor_bins=3", "modell=3"):
        with pytest.raises(ConfigError, match=rf"^--set {override}: a calibration leaves the model as it is"):
            calibrated_config(source, override)
    with pytest.raises(ConfigError, match="did you mean `epochs`"):
        calibrated_config(source, "fit.epoch=3")
    c = calibrated_config(source, "fit.epochs=3", "objective.coordinated_dropout=0.1", "data.heldout_every=4")
    assert (c.model, c.window) == (config().model, config().window)
    assert (c.fit.epochs, c.objective.coordinated_dropout, c.data.heldout_every) == (3, 0.1, 4)


def test_the_readout_of_a_long_recording_is_begun_with_some_of_its_windows(home, monkeypatch):
    source, new = home[2], reaches(2, n_trials=20)
    c = calibrated_config(source)
    taken, windows_at = [], Tensors.windows_at

    def counted(tensors, first, *rest):
        taken.append(len(first))
        return windows_at(tensors, first, *rest)

    monkeypatch.setattr(Tensors, "windows_at", counted)
    for values in (10_000_000, 30 * (S + R) * 15):
        monkeypatch.setattr("rtdsae.train.calibrate.READOUT_VALUES", values)
        windows = begin(source, prepare(new, c), "day2", c)[1]
    n = len(windows.train.tiles())
    assert n > 30
    assert taken == [n, -(-n // -(-n // 30))]


def test_ctrl_c_writes_nothing(home, tmp_path):
    _, _, source, _ = home

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_to(tmp_path / "new", source, reaches(2), report=interrupt)
    assert list(tmp_path.iterdir()) == []


# each family with a prior of f that asks what training alone knows
TABLES = {
    "lfads": Labelled(),
    "dsae_full": Sequence(),
    "dsae_factorized": Labelled(),
    "fhvae": Sequence(),
    "fdmm": None,
}


@pytest.mark.parametrize("name", TABLES)
def test_in_every_family_the_model_is_the_one_that_was_trained_and_fitting_leaves_it_so(tmp_path, name):
    """Whatever its prior of f asks for, the new recording need not have."""
    parts = {"readin_dim": 3} | ({"f_prior": TABLES[name]} if TABLES[name] else {})
    c = config(msgspec.structs.replace(FAMILIES[name], **parts), epochs=1)
    run = train(
        tmp_path / "run", c, [prepare(reaches(i, n_trials=3, n_neurons=6 + i), c) for i in (0, 1)], lambda p: None
    )
    trained = run.model()
    m = manifest(run, trained, "made", lanes=1)
    files = {session_path("day1", file): b"" for file in SESSION_FILES}
    source = Bundle(tmp_path / "made", m, {**files, "weights.npz": npz(weights(trained, run.alignment()))})

    new = prepare(reaches(2, n_trials=3, n_neurons=9, conditions=None), c)
    cc = calibrated_config(source, "fit.epochs=2")
    family, alignment = rebuild(source, new, "day2", cc)
    assert alignment.conditions == run.alignment().conditions
    np.testing.assert_array_equal(alignment.averages, run.alignment().averages)
    for i in (0, 1):
        x = torch.from_numpy(
            reaches(i, n_trials=3, n_neurons=6 + i).counts[: 4 * (S + R)].astype(np.float32)
        ).unflatten(0, (4, -1))
        for found, expected in zip(stream(family.use(i).eval(), x), stream(trained.use(i), x), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)

    before = {k: v.clone() for k, v in family.state_dict().items()}
    family.use(2)
    windows = SessionWindows(Tensors(new), S + R, R, vocabulary([new]), index=2)
    fit_session(family, windows, cc, lambda p: None)
    changed = {k for k, v in family.state_dict().items() if not torch.equal(v, before[k])}
    own = {f"sessions.2.{part}.linear.weight" for part in ("readin", "readout")} | {"sessions.2.readout.linear.bias"}
    assert changed == own


# real neurons ---------------------------------------------------------------------------------------------------------


def neurons(recording, which, name):
    channels = tuple(np.array(recording.channels)[which])
    return dataclasses.replace(recording, counts=recording.counts[:, which], channels=channels, session=name)


def minutes_of_training(recording, minutes):
    """The first training trials of so many minutes, split anew."""
    training = np.asarray(recording.splits) == "train"
    lengths = np.where(training, np.diff(recording.segments)[:, 0], 0)
    chosen = training & (np.cumsum(lengths) <= 60 * minutes / recording.bin_width_s)
    return dataclasses.replace(recording.select(chosen), splits=None).split(valid=0.15, test=0.0)


@pytest.mark.slow
def test_real_neurons_that_the_model_never_saw_are_decoded_by_its_own_read_out(tmp_path):
    """The even neurons train the model, the odd ones are calibrated from five minutes.

    Measured, R2 of the hand's velocity on the test trials, mean of both directions: 0.48 by the 42 even neurons, 0.44
    by the 42 odd ones through the same read-out. A ridge regression of the velocity on the odd ones, fitted to the same
    five minutes and their hand movements, has 0.52.
    """
    whole = the("center_out")
    even, odd = np.arange(0, whole.n_channels, 2), np.arange(1, whole.n_channels, 2)
    trained = [neurons(whole, even, "even")]
    new = neurons(whole, odd, "odd")
    model = LFADSConfig(
        readin_dim=16, ic_enc_dim=32, ci_enc_dim=32, con_dim=32, f_dim=8, z_dim=4, gen_dim=48, fac_dim=16
    )
    c = TrainConfig(
        model=model,
        data=Data(path="even.h5"),
        window=Window(anchor_bins=10, horizon_bins=30, lanes=1),
        objective=Objective(ramp_epochs=2, coordinated_dropout=0.3),
        fit=Fit(epochs=12, batch_size=32, learning_rate=1e-2, accelerator="cpu"),
    )
    run = train(tmp_path / "run", c, [prepare(r, c) for r in trained], lambda p: None)
    source = export(run, tmp_path / "even")
    made = calibrate_to(
        tmp_path / "both", source, minutes_of_training(new, 5), "fit.epochs=15", "fit.learning_rate=1e-2"
    )
    assert made.aligned
    test = whole.segments[whole.splits == "test"]
    velocity = {r.session: served(made.bundle.session(r.session), r, test) for r in (*trained, new)}
    scores = {name: r2(actual, decoded) for name, (decoded, actual) in velocity.items()}
    assert scores["even"].mean() > 0.3, scores
    assert scores["odd"].mean() > 0.3, scores
    assert scores["odd"].min() > 0.2, scores
