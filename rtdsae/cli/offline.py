"""The modeller's verbs: train, runs, evaluate, export, calibrate, inspect."""

import json
import os
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from tyro.conf import Positional

from rtdsae import shipped
from rtdsae.cli.arguments import unset
from rtdsae.errors import ConfigError, TrainingError, one_line

if TYPE_CHECKING:
    from rtdsae.bundle import Bundle
    from rtdsae.recordings import Recording
    from rtdsae.train.config import TrainConfig
    from rtdsae.train.run import Run

__all__ = ["Calibrate", "Evaluate", "Export", "Inspect", "Runs", "Train"]


class Train(msgspec.Struct, frozen=True, kw_only=True):
    """Train a model on a recording; Ctrl-C keeps what was reached."""

    config: Annotated[Positional[Path | None], unset("[CONFIG]", "chosen from the recording, and said")] = None
    """YAML file, such as configs/lfads.yaml."""
    data: Annotated[tuple[str, ...], unset("RECORDING", "the config's data.path")] = ()
    """Recording to train on; repeat it for several sessions."""
    out: Annotated[Path | None, unset("FOLDER", "out/runs/<config>-<recording>")] = None
    """Run directory to make."""
    set: Annotated[tuple[str, ...], unset("KEY=VALUE")] = ()
    """Like fit.epochs=50, in place of the config's value; repeat it for several."""
    resume: bool = False
    """Go on with the run in --out from its last finished epoch."""

    def run(self) -> None:
        """Trains, and says where the run is."""
        if int(os.environ.get("LOCAL_RANK", 0)):  # of several processes on this computer the first one speaks for all
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        config, recordings = self._prepared()

        from rtdsae.cli.progress import TrainingProgress
        from rtdsae.train.fit import train
        from rtdsae.train.processes import FOLLOWED

        name = self.config.stem if self.config else "chosen"
        out = self.out or Path("out/runs") / f"{name}-{Path(config.data.paths[0]).stem}"
        command = f"rtdsae {shlex.join(sys.argv[1:])}"
        for path, r in zip(config.data.paths, recordings, strict=True):
            print(f"training on {path}: {r.n_bins} bins, {r.n_channels} neurons; run: {out}")
        with TrainingProgress(config.fit.epochs) as progress:
            run = train(out, config, recordings, progress, command=command, resume=self.resume)
        info = run.info
        if problem := info.get("problem"):  # with this process of several alone
            print(f"rtdsae train: {problem}", file=sys.__stderr__)
        if info["state"] == FOLLOWED:
            print(f"{FOLLOWED} the training to its end, which the first computer has led; run: {out}")
            return
        by = list(dict.fromkeys(used["torch"] for used in [*info.get("earlier_versions", []), info["versions"]]))
        if len(by) > 1:
            print(f"trained by torch {' and then '.join(by)}: by one alone it would not be the same bit for bit")
        if info["too_short"]:
            print(f"{info['too_short']} segments are shorter than a window (S + R bins) and were left out")
        ended = f"{info['state']} after {info['epochs_done']} epochs"
        if info["best_epoch"] < 0:
            cure = "where the validation score is no number, begin anew with a lower fit.learning_rate; else --resume"
            raise TrainingError(f"{ended}, nothing to export yet: {cure}; run: {out}")
        if len(recordings) > 1 and run.alignment() is None:  # which is saved with a model
            print("the sessions share no two conditions: their read-ins were begun at random")
        print(f"{ended}, best at {info['best_epoch'] + 1}; run: {out}")

    def _prepared(self) -> "tuple[TrainConfig, list[Recording]]":
        """The configuration, chosen where none is given, and the recordings as it wants them."""
        from rtdsae.recordings import load
        from rtdsae.train.config import load_config, make_config

        wide = {"anchor_bins": 1000, "horizon_bins": 1000}  # before it is chosen, no setting is too long for it
        least = {"model": {"family": "lfads", "readin_dim": 1}, "window": wide}  # to read the recordings by
        config = load_config(self.config, self.set, self.data) if self.config else None
        config = config or make_config(least, "--set", self.set, self.data)
        if not config.data.paths:
            raise ConfigError(f"{self.config or 'the command'} names no recording: give --data PATH, or set data.path")
        recordings = [load(path, config.data.bin_width_s) for path in config.data.paths]

        from rtdsae.train.sessions import prepare

        recordings = [prepare(recording, config) for recording in recordings]
        if self.config:
            return config, recordings

        from rtdsae.train.choose import choose

        choices = choose(recordings, config.model.family, bool(config.data.teacher), config.model.causal)
        print("chosen for this recording; --set changes any of it, and the run's config.yaml keeps it:")
        given = {setting.partition("=")[0] for setting in self.set}
        for choice in choices:
            if choice.key not in given:
                print(f"  {choice.key:30} {choice.value!s:6} {choice.why}")
        chosen = tuple(f"{choice.key}={choice.value}" for choice in choices)
        return make_config({}, "--set", (*chosen, *self.set), self.data), recordings


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """List runs and compare them: state, scores, and the settings in which they differ."""

    paths: Positional[tuple[Path, ...]] = (Path("out/runs"),)
    """Run directories, or folders that hold some."""
    json: bool = False
    """Print one JSON object on the last line."""

    def run(self) -> None:
        """Finds, compares, prints."""
        from rtdsae.train.runs import compare, find, table

        runs, damaged = find(self.paths)
        rows = compare(runs)
        print(json.dumps({"runs": rows, "damaged": damaged}) if self.json else table(rows) if rows else "no whole run")
        for line in damaged:
            print(f"rtdsae runs: {line}", file=sys.stderr)


class Evaluate(msgspec.Struct, frozen=True, kw_only=True):
    """Score a run by streaming it bin by bin, and write a report into it: report.html, figures/*.png."""

    path: Positional[Path]
    """Run directory."""
    data: Annotated[Path | None, unset("RECORDING", "the run's own test part, or else validation")] = None
    """Another recording of the same neurons, scored whole."""
    session: Annotated[str | None, unset("NAME", "all that the run has")] = None
    """Score this session alone."""
    against: Annotated[Path | None, unset("RUN")] = None
    """Another run on the same data, such as the acausal reference: the price of causality."""
    json: bool = False
    """Print the scores as one JSON object on the last line."""

    def run(self) -> None:
        """Scores, draws, prints."""
        from rtdsae.evaluate.report import check_against, write_report
        from rtdsae.evaluate.score import evaluate
        from rtdsae.train.run import Run

        if self.against and self.data:
            raise ConfigError("--against compares two runs on their own data: leave --data away")
        run, other = Run.open(self.path), Run.open(self.against) if self.against else None
        if other:
            check_against(run, other)
        found = evaluate(run, self.data, self.session)
        name = self.session or ""
        if self.data:  # its hash tells it from another file of that name, and from a session
            name = f"{self.data.stem} {found[0].recording.hash[:8]}"
        report = write_report(run, found, name, other)
        if not self.json:
            print("\n".join(scored.table() for scored in found))
        print(f"report: {report}")
        if self.json:
            sessions = {scored.name: scored.scores for scored in found}
            print(json.dumps(found[0].scores if len(found) == 1 else {"sessions": sessions}))


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """Write a run's best model as a bundle, checked against torch."""

    path: Positional[Path]
    """Run directory."""
    out: Path
    """Folder of the bundle; its name becomes the bundle's."""
    lanes: Annotated[int | None, unset("N", "window.lanes of the run")] = None
    """Copies of the model that take turns at being anchored; 1 runs on from one anchor."""
    overwrite: bool = False
    """Replace a bundle that is there."""

    def run(self) -> None:
        """Exports, and says what was checked."""
        if self.lanes is not None and self.lanes < 1:
            raise ConfigError(f"--lanes {self.lanes}: at least 1")
        from rtdsae.train.export import CHECKED_BINS, TOLERANCE, export
        from rtdsae.train.run import Run

        made = export(Run.open(self.path), self.out, self.lanes, self.overwrite)
        print(f"ONNX Runtime equals torch within {TOLERANCE:g} over {CHECKED_BINS} bins")
        if made.manifest.external:
            print("this version of rtdsae serve feeds no external inputs: the bundle cannot be served by it")
        print(f"bundle: {self.out} ({made.hash[:16]})")


class Calibrate(msgspec.Struct, frozen=True, kw_only=True):
    """Fit a new session's neurons to a model that stays as it is, from some minutes of data; writes a new bundle."""

    source: Positional[Path]
    """Bundle, or the run of one."""
    data: str
    """Recording of the new session."""
    out: Path
    """Folder of the new bundle, which has the old sessions too."""
    session: Annotated[str, unset("NAME", "the recording's own, or its file's")] = ""
    """Name of the new session."""
    set: Annotated[tuple[str, ...], unset("KEY=VALUE")] = ()
    """Of fit, data or objective, in place of the model's; repeat it for several."""
    overwrite: bool = False
    """Replace a bundle that is at --out."""

    def run(self) -> None:
        """Fits, exports, and says what came of it."""
        from rtdsae.bundle import check_replaceable, load
        from rtdsae.recordings import load as load_recording
        from rtdsae.train.config import calibration_config
        from rtdsae.train.run import Run

        check_replaceable(self.out, self.overwrite)
        source = shipped.model(self.source)
        run = Run.open(source) if (source / "run.json").exists() else None
        bundle = unexported(run) if run else load(source)
        config = calibration_config(bundle.manifest.config, self.set, self.data, str(self.source))
        recording = load_recording(self.data, config.data.bin_width_s)

        from rtdsae.cli.progress import TrainingProgress
        from rtdsae.train.calibrate import calibrate, check
        from rtdsae.train.sessions import prepare

        recording = prepare(recording, config)
        check(bundle, recording, self.session, self.data, self.out.name)
        if run:  # once nothing is left to refuse: it takes a minute
            bundle = exported(run)
        command = f"rtdsae {shlex.join(sys.argv[1:])}"
        with TrainingProgress(config.fit.epochs) as progress:
            made = calibrate(
                bundle,
                recording,
                self.out,
                config,
                progress,
                session=self.session,
                command=command,
                overwrite=self.overwrite,
            )
        begun = "from the conditions that the model knows" if made.aligned else "at random: no conditions in common"
        print(f"session {made.session}: read-in begun {begun}")
        for name, value in made.after.items():
            print(f"  valid {name:12} {value:.4f}   before {made.before[name]:.4f}   nats per bin and neuron")
        if not made.gained:
            print("no epoch was better than the beginning, which is kept: give more data, or a lower fit.learning_rate")
        if made.r2_behaviour is not None:
            print(f"  behaviour R2 {made.r2_behaviour:.3f} by the model's own read-out, validation part")
        print(f"bundle: {self.out} ({made.bundle.hash[:16]}); rtdsae serve {self.out} --session {made.session}")


def unexported(run: "Run") -> "Bundle":
    """A run's bundle as far as it is known without an export: what it says of itself."""
    from rtdsae.bundle import Bundle
    from rtdsae.train.export import manifest

    family = run.model()
    return Bundle(run.path, manifest(run, family, "run", family.dims.lanes), {})


def exported(run: "Run") -> "Bundle":
    """A run's bundle, which is kept nowhere; what is said of it names the run."""
    from rtdsae.train.export import export

    with tempfile.TemporaryDirectory() as folder:
        return replace(export(run, Path(folder) / "run"), path=run.path)


class Inspect(msgspec.Struct, frozen=True, kw_only=True):
    """Verify a bundle and say what is in it."""

    bundle: Positional[Path]
    """Folder of the bundle, or the name of a shipped one."""
    json: bool = False
    """Print the manifest as one JSON object."""

    def run(self) -> None:
        """Verifies every byte against the manifest, and prints."""
        from rtdsae.bundle import load

        bundle = load(shipped.model(self.bundle))
        m = bundle.manifest
        if self.json:
            print(msgspec.json.encode(m).decode())
            return
        labels = f"{m.channels[0]} ... {m.channels[-1]}"
        shapes = ", ".join(f"{o.name} {tuple(o.shape)}{' ' + o.unit if o.unit else ''}" for o in m.outputs)
        state = ", ".join(f"{part.name} {part.size}" for part in m.state)
        home = f", session {m.sessions[0]}" if m.further else ""
        print(f"{m.name}: {m.family}, intact ({bundle.hash[:16]}){home}")
        print(
            f"  input      {len(m.channels)} channels ({labels}), "
            f"bins of {1000 * m.bin_width_s:g} ms, {m.lanes} lane(s)"
        )
        print(f"  window     anchored on S = {m.anchor_bins} bins, trained for R = {m.horizon_bins} more")
        print(f"  outputs    {shapes}")
        print(f"  state      {state}")
        for session in m.further:
            print(f"  session    {session.name}: {len(session.channels)} channels")
        print(f"  data hash  {one_line(m.provenance.get('data_hash', 'unknown'))}")
        for name, value in m.scores.items():
            shown = f"{value:.4g}" if isinstance(value, float) else one_line(value)
            print(f"  {one_line(name):10} {shown}")
