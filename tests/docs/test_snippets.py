"""Every command and snippet of README.md and docs/*.md does what its page says: each page by a person with terminals.

A page is gone through in order, in a folder of its own. What takes minutes elsewhere is made small here (REWRITE), and
what no test can do is checked as far as it goes (PARSE_ONLY, and the marks in the pages, see `pages.py`).
"""

import configparser
import json
import re
import shlex
import shutil
import socket
import tomllib
import uuid
from datetime import UTC, datetime

import numpy as np
import pytest
import yaml
from pages import DATA, PAGES, ROOT, UnknownBlock, find, snippets
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from terminal import Terminal, endless
from toy_bundle import Toy

from rtdsae import cli, recordings
from rtdsae.recordings import synthetic

PORTS = (5556, 5557, 5580, 9464)  # the defaults, which the pages use

# the beginning of a command -> why it is not run
PARSE_ONLY = {
    "pip ": "needs a package index",
    "sudo ": "needs root",
    "systemd-analyze ": "its unit is not installed here",
    "./tools/": "takes minutes, or is what runs these tests",
    "rtdsae demo": "takes minutes; tests/cli has it",
    "rtdsae calibrate": "exports three times, most of a minute; tests/train has it",
    "rtdsae search": "needs Ray, half a gigabyte; tests/train has it",
}
# in commands and programs: names that a page leaves to its reader, and sizes that are too large for a test
REWRITE = {
    r"\bBUNDLE\b": "models/lfads_lorenz",
    r"\bRIG\b|(?<=tcp://)rig(?=:)|0\.0\.0\.0": "127.0.0.1",
    r"/etc/rtdsae/keys": "keys",
    r"--keys arm\b": "--keys keys/carry/arm",
    r"^(rtdsae train (?!.*fit\.epochs).*?)(\s+#.*)?$": r"\1 --set fit.epochs=2 --set model.gen_dim=24",
    r"^(rtdsae (?:simulate|replay) (?!.*--loop).*?)(\s+#.*)?$": r"\1 --loop",
    r"^(rtdsae bench .*?)(--seconds \d+)?(\s+#.*)?$": r"\1 --seconds 2",
    r"^(rtdsae record (?!.*--seconds).*?)(\s+#.*)?$": r"\1 --seconds 2",
}
ALLOWED = {"rtdsae bench": (1,)}  # its verdict on this machine is no concern of ours
# A minute or so each; what their commands do is tested on its own in tests/evaluate, tests/recordings, tests/cli.
SLOW = ("report.md", "recordings.md", "operating.md", "rig.md", "tutorial.md")
FROM_NOTHING = ("tutorial.md",)  # pages that begin in an empty folder
# page -> what its Python has from its reader
NAMES = {
    "README.md": """
import numpy as np
def steer(velocity, at): print(at, velocity)
counts, trials, velocity = np.ones((60, 3), int), np.array([[0, 60]]), np.zeros((60, 2))
""",
}


def runs(snippet):
    """Whether a snippet is run, and if not, why."""
    listed = (why for start, why in PARSE_ONLY.items() if snippet.text.startswith(start))
    return snippet.parse_only or next(listed, "")


ALL = {page: snippets(page) for page in PAGES}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with what the pages take for granted: recordings, the shipped bundles, the configurations."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("models", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    small, large, tuesday = Toy(), Toy(n_channels=30, n_anchor=10), Toy(n_channels=30, n_anchor=10)
    tuesday.channels[:] = [f"unit{i}" for i in range(30)]  # as those of session.nwb
    tuesday.write(folder / "models" / "tuesday")
    small.write(folder / "models" / "monkey", further={"day2": small.for_neurons(8)})
    large.write(folder / "models" / "other")
    large.write(folder / "models" / "week", further={"wednesday": large})
    for i, name in enumerate(["session", "monday", "tuesday", "wednesday", "a", "b"]):
        recording = synthetic.lorenz(seconds=12, take=i)
        hand = np.log(recording.true_rates[:, :2] + 1)
        recordings.save(
            recordings.Recording(
                recording.counts,
                recording.bin_width_s,
                channels=recording.channels,
                behaviour=hand,
                behaviour_labels=("vel_x", "vel_y"),
                session=name,
            ),
            folder / f"{name}.h5",
        )
    as_nwb(recordings.load(folder / "session.h5"), folder / "session.nwb")
    return folder


def as_nwb(recording, path):
    """The same neurons and hand as a rig's pipeline would store them: spike times and a time series."""
    file = NWBFile("a test", "docs", datetime(2026, 1, 1, tzinfo=UTC))
    middles = (np.arange(recording.n_bins) + 0.5) * recording.bin_width_s
    for counts in recording.counts.T:
        file.add_unit(spike_times=np.repeat(middles, counts.astype(int)))
    hand = TimeSeries(name="hand_velocity", data=recording.behaviour, unit="cm/s", timestamps=middles)
    file.create_processing_module("behavior", "kinematics").add(hand)
    with NWBHDF5IO(path, "w") as io:
        io.write(file)


@pytest.fixture
def desk(page, given, tmp_path):
    """The folder that a page is gone through in, and ports that nobody uses."""
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.fail(f"port {port} is taken: the pages use it, end the daemon or the program that has it")
    desk = tmp_path / "desk"
    if page.name in FROM_NOTHING:
        desk.mkdir()
        return desk
    return shutil.copytree(given, desk)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if any(s.kind in ("command", "python") for s in ALL[page])
    ],
)
def test_a_page_does_what_it_says(page, desk):
    walk(page, desk)


def walk(page, desk):
    """Goes through a page in a folder."""
    unique = f"docs-{uuid.uuid4().hex[:12]}"
    rewrite = {r"\brig1\b": unique, **REWRITE}
    todo = [s for s in ALL[page] if s.kind in ("command", "python") and not runs(s)]
    rewrite[r"^rtdsae serve (?!.*--stream)([^#]*)"] = rf"rtdsae serve \1 --stream source_id={unique} "
    brings_one = any(re.match(r"rtdsae (simulate|replay)\b", s.text) for s in todo)
    serve = f"rtdsae serve models/lfads_lorenz --stream source_id={unique} --control tcp://127.0.0.1:5557"
    with Terminal(
        desk,
        rewrite=rewrite,
        allowed=ALLOWED,
        names=NAMES.get(page.name, ""),
        source="" if brings_one else unique,
        daemon=serve.split(),
    ) as terminal:
        for snippet in todo:
            terminal.take(snippet)


PARSED = [s for page in PAGES for s in ALL[page] if s.kind == "command" and runs(s)]


@pytest.mark.parametrize("snippet", PARSED, ids=lambda s: f"{s.page.name}:{s.line}")
def test_what_is_not_run_is_right_as_far_as_it_goes(snippet):
    words = shlex.split(snippet.text, comments=True)
    if words[0] == "rtdsae":
        assert cli.parse(words[1], words[2:])
    elif words[0].startswith("./tools/"):
        assert (ROOT / words[0]).is_file()
    elif "pip" in words:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = [name for word in words for part in re.findall(r"\[(.*?)\]", word) for name in part.split(",")]
        assert set(wanted) <= set(extras)


@pytest.mark.parametrize(
    "snippet", [s for page in PAGES for s in ALL[page] if s.kind in DATA], ids=lambda s: f"{s.page.name}:{s.line}"
)
def test_data_are_of_their_format(snippet):
    {"json": json.loads, "yaml": yaml.safe_load, "ini": configparser.ConfigParser().read_string}[snippet.kind](
        snippet.text
    )


def test_every_python_snippet_is_python():
    for page in PAGES:
        for snippet in ALL[page]:
            if snippet.kind == "python":
                compile(snippet.text, str(snippet), "exec")


def test_a_block_that_nobody_runs_is_found_out():
    page = ROOT / "docs" / "none.md"
    with pytest.raises(UnknownBlock, match="nobody runs 'julia'"):
        list(find(page, "```julia\nx = 1\n```\n"))
    with pytest.raises(UnknownBlock, match="write <!-- test"):
        list(find(page, "<!-- test: skip -->\n```bash\nrtdsae doctor\n```\n"))
    with pytest.raises(UnknownBlock, match="not just above a block"):
        list(find(page, "<!-- test: parse only, why -->\nWords.\n"))


def test_commands_are_found_wherever_they_stand():
    page = ROOT / "docs" / "none.md"
    text = "    rtdsae doctor   # why\n    ok  what it says\n\n"
    text += "<!-- test: ends with 2, x -->\n```bash\nrtdsae serve \\\n  a\n```\n"
    first, second = find(page, text)
    assert (first.kind, first.text, first.line, first.code) == ("command", "rtdsae doctor   # why", 1, 0)
    assert (second.text, second.line, second.code) == ("rtdsae serve   a", 6, 2)


def test_endless_programs_are_told_from_others():
    assert endless("for m in subscriber:\n    print(m)")
    assert endless("while m := subscriber.latest():\n    print(m)")
    assert not endless("for m in subscriber:\n    if m:\n        break")
    assert not endless("for i in range(3):\n    subscriber.latest()")
