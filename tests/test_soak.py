"""Two minutes of `./tools/soak`: a source, a daemon and subscribers, with faults at random."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent.parent / "tools" / "soak.py"
N_FAULTS = 20  # each at least once, which takes 20 to 30 s


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["counts", "samples", "events"])
def test_minutes_of_faults_break_no_promise(kind):
    command = [sys.executable, SOAK, "--minutes", "0.6", "--seed", "1", "--input", kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["problems"], done.returncode) == ([], 0), done.stderr
    assert report["bins"] > 1500
    assert report["daemons"] > 1
    assert len(report["faults"]) == N_FAULTS
