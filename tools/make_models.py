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

from rtdsae.cli.progress import TrainingProgress
from rtdsae.evaluate.score import evaluate
from rtdsae.recordings import Recording, save, synthetic
from rtdsae.recordings.reaching import reaching
from rtdsae.train.config import load_config
from rtdsae.train.export import export
from rtdsae.train.fit import train
from rtdsae.train.sessions import prepare

ROOT = Path(__file__).parent.parent
RUNS = Path("out/models")

# bundle -> (config, what of it is set anew, the recording it is trained on)
Model = tuple[str, tuple[str, ...], Callable[[], Recording]]
MODELS: dict[str, Model] = {
    "lfads_lorenz": ("configs/lorenz.yaml", (), synthetic.lorenz),
    "dsae_full_reaching": ("configs/reaching.yaml", (), reaching),
    "dsae_factorized_reaching": ("configs/reaching.yaml", ("model.family=dsae_factorized",), reaching),
    "fhvae_reaching": ("configs/reaching.yaml", ("model.family=fhvae",), reaching),
    "fdmm_reaching": ("configs/reaching.yaml", ("model.family=fdmm",), reaching),
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
    config_path, overrides, generate = MODELS[name]
    data, run = RUNS / f"{name}.h5", RUNS / name
    save(generate(), data)
    config = load_config(Path(config_path), overrides, data=(str(data),))
    shutil.rmtree(run, ignore_errors=True)
    print(f"{name}: training {config_path} on {data}", flush=True)
    with TrainingProgress(config.fit.epochs) as progress:
        made = train(run, config, [prepare(generate(), config)], progress, command=f"./tools/make_models {name}")
    if made.info["state"] != "finished":
        sys.exit(f"{name}: {made.info['state']}: models/{name} is left as it was")
    print(evaluate(made)[0].table())
    bundle = export(made, Path("models") / name, overwrite=True)
    print(f"{name}: {bundle.path} ({bundle.hash[:16]})")


if __name__ == "__main__":
    sys.exit(main())
