"""Remake the bundles that are shipped in models/: generate, train, score, export.

    ./tools/make_models [NAME ...]     all of them where none is named; the runs are kept under out/models

The generators and the training are seeded, so on one computer the same bundle comes out each time.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rtdsae.cli.progress import TrainingProgress
from rtdsae.evaluate.score import evaluate
from rtdsae.recordings import Recording, save, synthetic
from rtdsae.recordings.reaching import reaching
from rtdsae.train.config import load_config
from rtdsae.train.export import export
from rtdsae.train.fit import train
from rtdsae.train.run import Run
from rtdsae.train.sessions import prepare

ROOT = Path(__file__).parent.parent
RUNS = Path("out/models")


class Model(NamedTuple):
    """A bundle's recording, its config and what of that is set anew; the config of its teacher, where it has one."""

    generate: Callable[[], Recording]
    config: str
    overrides: tuple[str, ...] = ()
    teacher: str = ""


SIZES = ("gen_dim", "ci_enc_dim", "con_dim")  # that a teacher shares with its student, which begins with its weights
MODELS = {
    "lfads_lorenz": Model(synthetic.lorenz, "configs/lorenz_taught.yaml", teacher="configs/lorenz.yaml"),
    "dsae_full_reaching": Model(reaching, "configs/reaching.yaml"),
    "dsae_factorized_reaching": Model(reaching, "configs/reaching.yaml", ("model.family=dsae_factorized",)),
    "fhvae_reaching": Model(reaching, "configs/reaching.yaml", ("model.family=fhvae",)),
    "fdmm_reaching": Model(reaching, "configs/reaching.yaml", ("model.family=fdmm",)),
}


def main() -> int:
    """Remake the bundles that are named."""
    parser = argparse.ArgumentParser(prog="./tools/make_models", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)} (default: all)")
    names = parser.parse_args().names or list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"there is no model {unknown[0]!r}: choose of {', '.join(MODELS)}")
    os.chdir(ROOT)  # what a bundle says of its making does not depend on where the checkout is
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in names:
        make(name)
    return 0


def make(name: str) -> None:
    """One bundle, from nothing."""
    model, path = MODELS[name], RUNS / f"{name}.h5"
    recording = model.generate()
    save(recording, path)
    overrides = model.overrides
    if model.teacher:
        teacher = RUNS / f"{name}_teacher"
        student = load_config(Path(model.config), data=(str(path),)).model
        sizes = tuple(f"model.{size}={getattr(student, size)}" for size in SIZES)
        trained(name, teacher, recording, model.teacher, ("model.causal=false", *sizes), path)
        overrides += (f"data.teacher={teacher}",)
    run = trained(name, RUNS / name, recording, model.config, overrides, path)
    print(evaluate(run)[0].table())
    bundle = export(run, Path("models") / name, overwrite=True)
    print(f"{name}: {bundle.path} ({bundle.hash[:16]})")


def trained(
    name: str, out: Path, recording: Recording, config_path: str, overrides: tuple[str, ...], data: Path
) -> Run:
    """A finished run; else this program ends."""
    config = load_config(Path(config_path), overrides, data=(str(data),))
    shutil.rmtree(out, ignore_errors=True)
    print(f"{out.name}: training {' '.join([config_path, *overrides])} on {data}", flush=True)
    with TrainingProgress(config.fit.epochs) as progress:
        run = train(out, config, [prepare(recording, config)], progress, command=f"./tools/make_models {name}")
    if run.info["state"] != "finished":
        sys.exit(f"{out.name}: {run.info['state']}: models/{name} is left as it was")
    return run


if __name__ == "__main__":
    sys.exit(main())
