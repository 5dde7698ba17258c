"""What a new user gets wrong first with the live verbs: one line on stderr, exit code 2, nothing half-written."""

import os
import shlex
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from lsl_source import LslSource
from toy_bundle import Toy

from rtdsae import recordings
from rtdsae.cli import main
from rtdsae.cli.lsl import settings_file
from rtdsae.recordings import Recording

COUNTS = np.ones((4, 6), np.float32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a bundle of one session, a bundle of two and a recording, as the working directory."""
    Toy().write(tmp_path / "bundle")
    Toy().write(tmp_path / "two", further={"day2": Toy().for_neurons(9)})
    recordings.save(Recording(COUNTS.astype(int), 0.02), tmp_path / "some.h5")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *args):
    before = sorted(map(str, Path().rglob("*")))
    code = main([str(a) for a in args])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith(f"rtdsae {args[0]}: ")
    assert sorted(map(str, Path().rglob("*"))) == before
    return said.err


def spoil(path, text=None):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2] if text is None else text.encode())


ALONE = ("--stream", "source_id=nobody-has-this", "--timeout", "0.2", "--pub", "ipc://latents")


@pytest.mark.parametrize(
    ("spoiled", "args", "said"),
    [
        (None, (), "which bundle? Name a folder"),
        (None, ("nowhere",), "nowhere: no such folder"),
        (None, ("--set", "bundle=nowhere"), "nowhere: no such folder"),
        (None, ("--set", "bundle=bundle", *ALONE), "no LSL stream matches source_id=nobody-has-this"),
        (None, ("some.h5",), "some.h5"),
        (None, ("bundle", "--strem", "x"), "--strem"),
        (None, ("bundle", "--timeout", "soon"), "--timeout"),
        (None, ("bundle", *ALONE), "no LSL stream matches source_id=nobody-has-this"),
        (None, ("bundle", *ALONE, "--stream", ""), "the stream query is empty"),
        (None, ("bundle", *ALONE, "--stream", "((("), "neither key=value"),
        (None, ("bundle", *ALONE, "--stream", "source-id=rig1"), "source-id is none of name, type, source_id"),
        (None, ("bundle", *ALONE, "--config", "lab.yaml"), "no settings at lab.yaml: give the path of a YAML file"),
        (None, ("bundle", *ALONE, "--config", "configs/daemon.yaml"), "no LSL stream matches"),  # a shipped one
        (lambda: Path("bundle/manifest.json").rename("bundle/run.json"), ("bundle", *ALONE), "bundle: is a run"),
        (None, ("bundle", *ALONE, "--publish", "factors,latents"), "there is no 'latents' to publish"),
        (None, ("bundle", *ALONE, "--provider", "abacus"), "provider 'abacus' is not in this onnxruntime"),
        (None, ("bundle", *ALONE, "--pub", "tcp://0.0.0.0:5556"), "can be reached from other machines"),
        (None, ("bundle", *ALONE, "--pub", "5556"), "is not an endpoint"),
        (lambda: spoil("bundle/step.onnx"), ("bundle", *ALONE), "step.onnx"),
        (lambda: spoil("bundle/manifest.json", '{"format": 9}'), ("bundle", *ALONE), "upgrade rtdsae"),
        (lambda: Path("bundle/golden.npz").unlink(), ("bundle", *ALONE), "golden.npz"),
        (None, ("two", *ALONE), "two: has the sessions toy, day2: say which one with --session"),
        (None, ("two", *ALONE, "--session", "day3"), "two: has no session 'day3': it has toy, day2"),
        (None, ("two", *ALONE, "--session", ""), "two: has no session '': it has toy, day2"),
        (None, ("two", *ALONE, "--session", "sessions/day2"), "two: has no session 'sessions/day2'"),
        (None, ("two", *ALONE, "--session"), "--session"),
        (None, ("bundle", *ALONE, "--session", "day2"), "bundle: has no session 'day2': it has toy"),
        (None, ("two/sessions/day2", *ALONE), "two/sessions/day2/manifest.json: is missing"),
        (None, ("two", *ALONE, "--session", "day2"), "no LSL stream matches source_id=nobody-has-this"),
        (lambda: spoil("two/sessions/day2/step.onnx"), ("two", *ALONE, "--session", "toy"), "day2/step.onnx"),
        (lambda: Path("two/sessions/day2/golden.npz").unlink(), ("two", *ALONE), "day2/golden.npz: is missing"),
        (lambda: Path("two/sessions/notes.txt").touch(), ("two", *ALONE), "'sessions/notes.txt' is no part"),
    ],
)
def test_serve(here, capsys, spoiled, args, said):
    if spoiled:
        spoiled()
    assert said in refused(capsys, "serve", *args)


def test_serve_on_a_port_in_use(here, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        said = refused(capsys, "serve", "bundle", *ALONE[:4], "--pub", endpoint)
    assert f"cannot publish on {endpoint}: Address already in use; end what listens there, or choose another" in said


def test_lsl_settings_that_are_not_there(here, capsys, monkeypatch):
    monkeypatch.setenv("LSLAPICFG", "nowhere.cfg")
    assert "LSLAPICFG=nowhere.cfg: there is no such file" in refused(capsys, "serve", "bundle", *ALONE)


def test_lsl_settings_where_nobody_has_a_home(here, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("LSLAPICFG")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert settings_file() in (None, "/etc/lsl_api/lsl_api.cfg")


@pytest.mark.parametrize("closed", ["<&- >&-", ">&- 2>&-", "2>&-"])
def test_who_started_it_has_closed_its_outputs(here, closed):
    serve = shlex.join([sys.executable, "-m", "rtdsae", "serve", "bundle", *ALONE])
    done = subprocess.run(f"{serve} {closed}", shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") <= (0 if "2>" in closed else 1), done.stderr


def test_a_terminal_of_few_characters_takes_what_is_said(here, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = subprocess.run([sys.executable, "-m", "rtdsae", "serve", "ü"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("rtdsae serve: ?: no such folder")


def test_names_that_are_not_utf_8(here, capsys):
    assert "l?n is not UTF-8" in refused(capsys, "serve", os.fsdecode(b"l\xe9n"))


@pytest.mark.parametrize(
    ("samples", "options", "said"),
    [
        (COUNTS[:, :5], {"rate": 50}, "has 5 channels, the model was trained on 6"),
        (COUNTS, {"rate": 50, "sample_format": "string"}, "has string samples"),
        (COUNTS, {"rate": 70}, "samples at 70 Hz do not make whole bins"),
    ],
)
def test_serve_on_the_wrong_stream(here, capsys, samples, options, said):
    with LslSource(samples, **options) as source:
        query = ("--stream", f"source_id={source.source_id}", "--pub", "ipc://latents", "--timeout", "20")
        assert said in refused(capsys, "serve", "bundle", *query)


def test_serve_on_two_streams(here, capsys):
    name = f"twins-{uuid.uuid4().hex}"
    with LslSource(COUNTS, 50, name=name), LslSource(COUNTS, 50, name=name):
        query = ("--stream", f"name={name}", "--pub", "ipc://latents", "--timeout", "20")
        assert "2 LSL streams match" in refused(capsys, "serve", "bundle", *query)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("tcp://127.0.0.1:1", "--timeout", "0.2"), "tcp://127.0.0.1:1"),
        (("ipc://nobody", "--timeout", "0.2"), "ipc://nobody"),
        (("5556",), "5556"),
        (("http://127.0.0.1:5556",), "http://127.0.0.1:5556"),
        (("tcp://127.0.0.1",), "tcp://127.0.0.1"),
        (("tcp://127.0.0.1:port",), "tcp://127.0.0.1:port"),
        (("--count", "many"), "--count"),
        (("--count", "-1"), "--count"),
        (("--timeout", "-1"), "--timeout"),
        (("--cuont", "3"), "--cuont"),
        (("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"), "tcp://127.0.0.1:2"),
    ],
)
def test_listen(here, capsys, args, said):
    assert said in refused(capsys, "listen", *args)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--system", "pendulum"), "pendulum"),
        (("--seconds", "long"), "--seconds"),
        (("--seconds", "0"), "bins: each must be 1 or more"),
        (("--seconds", "-3"), "bins: each must be 1 or more"),
        (("--seconds", "nan"), "seconds"),
        (("--seed", "-1"), "seed"),
        (("--take", "-1"), "take"),
        (("--neurons", "0"), "neurons"),
        (("--speed", "0"), "speed is 0"),
        (("--speed", "-1"), "speed is -1"),
        (("--speed", "1e-15"), "speed is 1e-15: it must be a positive number"),
        (("--seconds", "1e12"), "out of memory: "),  # more than addresses reach
        (("--sourceid", "x"), "--sourceid"),
        (("--seconds", "1", "--wait", "0.1"), "nobody listens"),
    ],
)
def test_simulate(here, capsys, args, said):
    assert said in refused(capsys, "simulate", *args)


@pytest.mark.parametrize(
    ("spoiled", "args", "said"),
    [
        (None, (), "Missing"),
        (None, ("nowhere.h5",), "nowhere.h5: no such file"),
        (None, ("bundle",), "bundle"),
        (None, ("bundle/manifest.json",), "neither HDF5 nor npz"),
        (lambda: spoil("some.h5"), ("some.h5",), "some.h5"),
        (lambda: spoil("some.h5", ""), ("some.h5",), "some.h5"),
        (None, ("some.h5", "--split", "tset"), "tset"),
        (None, ("some.h5", "--speed", "nan"), "speed is nan"),
        (None, ("some.h5", "--speed", "0"), "speed is 0"),
        (None, ("some.h5", "--truth"), "no true rates"),
        (None, ("some.h5", "--channels", "some"), "some"),
        (None, ("some.h5", "--wait", "0.1"), "nobody listens"),
    ],
)
def test_replay(here, capsys, spoiled, args, said):
    if spoiled:
        spoiled()
    assert said in refused(capsys, "replay", *args)


@pytest.mark.parametrize(
    "verb", [["serve", "bundle"], ["simulate"], ["replay", "some.h5"], ["bench", "bundle"], ["demo"]]
)
def test_an_lsl_library_that_cannot_be_loaded_is_a_line(here, verb):
    (here / "liblsl.so").write_text("none")
    done = subprocess.run(
        [sys.executable, "-m", "rtdsae", *verb],
        env=os.environ | {"PYLSL_LIB": str(here / "liblsl.so")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"rtdsae {verb[0]}: liblsl cannot be loaded (PYLSL_LIB=/path/of/it says where it is)")
    assert done.stderr.count("\n") == 1
