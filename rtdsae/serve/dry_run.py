"""A bundle tried in a process of its own before the daemon loads it: a graph may end or hang whoever runs it.

It runs as `python -m rtdsae.serve.dry_run BUNDLE SESSION PROVIDER`, SESSION empty where the bundle has one.
"""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

from rtdsae.errors import BundleError, RtdsaeError

__all__ = ["dry_run"]

PATIENCE_S = 60.0
NICE = 10  # the daemon decodes meanwhile


def dry_run(path: Path, session: str | None, provider: str) -> None:
    """Loads a bundle and replays its golden run elsewhere; some seconds.

    Raises:
        BundleError: it does not come out right, or its graphs end or hang the process.
    """
    command = [sys.executable, "-m", __name__, str(path), session or "", provider]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise BundleError(f"{path}: its golden run did not end within {PATIENCE_S:g} s: export it again") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise BundleError(f"{path}: its graphs end the process that runs them ({name}): export it again")
    if done.returncode:
        raise BundleError((done.stderr.strip().splitlines() or [f"{path}: cannot be run"])[-1])


def _main(path: str, session: str, provider: str) -> None:
    from rtdsae import bundle
    from rtdsae.serve.engine import Engine

    os.nice(NICE)
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(PATIENCE_S) + 1)  # whoever began this may be gone by then
    try:
        Engine(bundle.load(Path(path)).session(session or None), provider)
    except (RtdsaeError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main(*sys.argv[1:])
