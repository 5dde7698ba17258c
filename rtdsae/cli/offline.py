"""The modeller's verbs: train, evaluate, export, inspect."""

import json
import shlex
import sys
from pathlib import Path

import msgspec
from tyro.conf import Positional

from rtdsae.errors import ConfigError

__all__ = ["Evaluate", "Export", "Inspect", "Train"]


class Train(msgspec.Struct, frozen=True, kw_only=True):
    """Train a model on a recording; Ctrl-C keeps what was reached."""

    config: Positional[Path]
    """YAML file, such as configs/lfads.yaml."""
    data: str | None = None
    """Recording to train on, in place of the config's data.path."""
    out: Path | None = None
    """Run directory to make (default: out/runs/<config>-<recording>)."""
    set: tuple[str, ...] = ()
    """section.key=value, in place of the config's value; repeat it for several."""
    resume: bool = False
    """Go on with the run in --out from its last finished epoch."""

    def run(self) -> None:
        """Trains, and says where the run is."""
        from rtdsae.recordings import load
        from rtdsae.train.config import load_config

        config = load_config(self.config, self.set, self.data)
        if not config.data.path:
            raise ConfigError(f"{self.config} names no recording: give --data PATH, or set data.path")
        recording = load(config.data.path, config.data.bin_width_s)

        from rtdsae.cli.progress import TrainingProgress
        from rtdsae.train.fit import train
        from rtdsae.train.run import prepare

        recording = prepare(recording, config)
        out = self.out or Path("out/runs") / f"{self.config.stem}-{Path(config.data.path).stem}"
        command = f"rtdsae {shlex.join(sys.argv[1:])}"
        print(f"training on {config.data.path}: {recording.n_bins} bins, {recording.n_channels} neurons; run: {out}")
        with TrainingProgress(config.fit.epochs) as progress:
            info = train(out, config, recording, progress, command=command, resume=self.resume).info
        if info["too_short"]:
            print(f"{info['too_short']} segments are shorter than a window (S + R bins) and were left out")
        best = f"best at {info['best_epoch'] + 1}" if info["epochs_done"] else "nothing to export yet"
        print(f"{info['state']} after {info['epochs_done']} epochs, {best}; run: {out}")


class Evaluate(msgspec.Struct, frozen=True, kw_only=True):
    """Score a run by streaming it bin by bin, and draw figures into the run."""

    path: Positional[Path]
    """Run directory."""
    data: Path | None = None
    """Another recording of the same neurons, scored whole (default: the run's own test part, or else validation)."""
    json: bool = False
    """Print the scores as one JSON object on the last line."""

    def run(self) -> None:
        """Scores, draws, prints."""
        from rtdsae.evaluate.score import evaluate
        from rtdsae.train.run import Run

        report = evaluate(Run.open(self.path), self.data)
        if self.json:
            print(json.dumps(report.scores))
        else:
            print(report.table())


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """Write a run's best model as a bundle, checked against torch."""

    path: Positional[Path]
    """Run directory."""
    out: Path
    """Folder of the bundle; its name becomes the bundle's."""
    lanes: int = 1
    """Batch size of the graphs, for a daemon that runs staggered copies."""
    overwrite: bool = False
    """Replace a bundle that is there."""

    def run(self) -> None:
        """Exports, and says what was checked."""
        if self.lanes < 1:
            raise ConfigError(f"--lanes {self.lanes}: at least 1")
        from rtdsae.train.export import CHECKED_BINS, TOLERANCE, export
        from rtdsae.train.run import Run

        made = export(Run.open(self.path), self.out, self.lanes, self.overwrite)
        print(f"ONNX Runtime equals torch within {TOLERANCE:g} over {CHECKED_BINS} bins")
        if made.manifest.external:
            print("this version of rtdsae serve feeds no external inputs: the bundle cannot be served by it")
        print(f"bundle: {self.out} ({made.hash[:16]})")


class Inspect(msgspec.Struct, frozen=True, kw_only=True):
    """Verify a bundle and say what is in it."""

    bundle: Positional[Path]
    """Folder of the bundle."""
    json: bool = False
    """Print the manifest as one JSON object."""

    def run(self) -> None:
        """Verifies every byte against the manifest, and prints."""
        from rtdsae.bundle import load

        bundle = load(self.bundle)
        m = bundle.manifest
        if self.json:
            print(msgspec.json.encode(m).decode())
            return
        labels = f"{m.channels[0]} ... {m.channels[-1]}"
        shapes = ", ".join(f"{o.name} {tuple(o.shape)}{' ' + o.unit if o.unit else ''}" for o in m.outputs)
        state = ", ".join(f"{part.name} {part.size}" for part in m.state)
        print(f"{m.name}: {m.family}, intact ({bundle.hash[:16]})")
        print(
            f"  input      {len(m.channels)} channels ({labels}), "
            f"bins of {1000 * m.bin_width_s:g} ms, {m.lanes} lane(s)"
        )
        print(f"  window     anchored on S = {m.anchor_bins} bins, trained for R = {m.horizon_bins} more")
        print(f"  outputs    {shapes}")
        print(f"  state      {state}")
        print(f"  data hash  {m.provenance.get('data_hash', 'unknown')}")
        for name, value in m.scores.items():
            print(f"  {name:10} {value:.4g}" if isinstance(value, float) else f"  {name:10} {value}")
