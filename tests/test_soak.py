"""Two minutes of `./tools/soak`: a source, a daemon and subscribers, with faults at random."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent.parent / "tools" / "soak.py"
OFTEN = 2  # how often each fault comes at least: a round of all takes 20 to 30 s


@pytest.mark.timeout(300)
def test_two_minutes_of_faults_break_no_promise():
    command = [sys.executable, SOAK, "--minutes", "1.8", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["problems"], done.returncode) == ([], 0), done.stderr
    assert report["bins"] > 5000
    assert len(report["faults"]) >= 17
    assert min(report["faults"].values()) >= OFTEN
