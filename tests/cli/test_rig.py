"""The verbs that look at a computer, as a person runs them; and what they would say of computers unlike this one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from station import until
from toy_bundle import Toy

from rtdsae.cli import checks
from rtdsae.cli.rig import STAGES, quantiles, stages

ROOT = Path(__file__).parents[2]
DEAF = """[multicast]
ResolveScope = machine
MachineAddresses = {}
AddressesOverride = {192.0.2.1}
[lab]
KnownPeers = {}
"""  # an LSL that finds nothing, and is found by nobody


def run(*args, **environ):
    command = [sys.executable, "-m", "rtdsae", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | environ, cwd=ROOT
    )


def test_the_doctor_tries_everything_and_ends_with_json():
    done = run("doctor", "--json")
    *lines, last = done.stdout.splitlines()
    found = json.loads(last)
    assert done.stderr == ""
    assert done.returncode == any(check["mark"] == "FAIL" for check in found)
    assert len(lines) == len(found)
    for line, check in zip(lines, found, strict=True):
        assert line.split() == f"{check['mark']} {check['what']} {check['said']}".split() + (
            ["-", *check["mend"].split()] if check["mend"] else []
        )
        assert check["mend"] or check["mark"] == "ok"
    by_name = {check["what"]: check for check in found}
    for needed in ("liblsl", "LSL discovery", "onnxruntime", "provider cpu", "ZeroMQ", "LSL clock"):
        assert by_name[needed]["mark"] == "ok", by_name[needed]
    for looked_at in (
        "CURVE keys",
        "port 5556",
        "port 5557",
        "priority",
        "short turns",
        "memory lock",
        "cores",
        "governor",
        "sleeps",
    ):
        assert looked_at in by_name


def test_a_missing_lsl_library_is_found_out(tmp_path, monkeypatch):
    (tmp_path / "liblsl.so").write_text("none")
    monkeypatch.setenv("PYLSL_LIB", str(tmp_path / "liblsl.so"))
    found = {check["what"]: check for check in json.loads(run("doctor", "--json").stdout.splitlines()[-1])}
    assert found["liblsl"]["mark"] == "FAIL"
    assert "PYLSL_LIB=/path/of/liblsl" in found["liblsl"]["mend"]
    assert "could not be loaded" in found["liblsl"]["said"]


def test_a_network_where_nothing_is_found_fails_with_what_would_help(tmp_path, monkeypatch):
    config = tmp_path / "lsl_api.cfg"
    config.write_text(DEAF)
    assert checks.discover(config, 1.0) is None
    monkeypatch.setenv("LSLAPICFG", str(config))
    monkeypatch.setattr(checks, "FIND_S", 1.0)
    _, discovery = checks.lsl()
    assert discovery.mark == "FAIL"
    assert f"not found in 1 s with {config}; with lsl_loopback.cfg in " in discovery.said
    assert f"export LSLAPICFG={ROOT}/configs/lsl_loopback.cfg" in discovery.mend


def test_a_network_card_that_carries_no_multicast_is_named(monkeypatch):
    cards = socket.if_nameindex()
    (lo,) = (index for index, name in cards if name == "lo")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(lo, "eth7"), (9999, "eth8")])
    (some,) = checks.multicast()
    assert (some.mark, some.said) == ("ok", "heard on eth7; eth8: No such device")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(lo, "lo"), (9999, "eth8")])
    (none,) = checks.multicast()
    assert (none.mark, none.said) == ("warn", "eth8: No such device")
    assert "KnownPeers" in none.mend


def test_discovery_that_is_slow_or_works_nowhere():
    assert checks._discovery(3.0, 0.1, "x").mark == "warn"
    nowhere = checks._discovery(None, None, "x")
    assert nowhere.mark == "FAIL"
    assert "firewall" in nowhere.mend


def test_lsl_settings_that_are_not_there_fail(monkeypatch):
    monkeypatch.setenv("LSLAPICFG", "nowhere.cfg")
    _, settings = checks.lsl()
    assert (settings.mark, settings.what) == ("FAIL", "LSL settings")
    assert settings.said.startswith("LSLAPICFG=nowhere.cfg: there is no such file")


def test_what_comes_along_is_said_to_be_where_it_is():
    (found,) = checks.package()
    assert found.said.endswith(f"{ROOT}/models, {ROOT}/configs")


def test_two_onnxruntimes_fail(tmp_path, monkeypatch):
    for name in ("onnxruntime", "onnxruntime-gpu"):
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = next(checks.onnx_runtime())
    assert first.mark == "FAIL"
    assert first.said == "onnxruntime and onnxruntime-gpu overwrite one another"
    assert first.mend.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_a_provider_that_does_not_run_is_a_warning_and_the_cpus_a_failure(monkeypatch):
    assert checks._provider("CPUExecutionProvider").mark == "ok"
    monkeypatch.setattr(checks, "DOUBLE", "bm90IGEgZ3JhcGg=")
    assert checks._provider("CPUExecutionProvider").mark == "FAIL"
    assert checks._provider("CUDAExecutionProvider").mark == "warn"


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = checks._port("control", port)
    assert (found.mark, found.what) == ("warn", f"port {port}")
    assert "--control tcp://127.0.0.1:OTHER" in found.mend
    assert checks._port("control", port).mark == "ok"


def test_a_refusal_is_said_with_its_cure():
    found = checks._asked("priority", "granted", "priority 50 was refused (no): write 'me - rtprio 50'")
    assert str(found) == "warn  priority             priority 50 was refused (no)  - write 'me - rtprio 50'"


def test_sleeps_that_end_much_too_late_are_a_warning():
    assert checks._sleeps("sleeps", {1e-3: (1e-4, 2e-4), 20e-3: (1e-4, 3e-3)}).mark == "warn"
    assert checks._sleeps("sleeps", {1e-3: (1e-4, 2e-4), 20e-3: (1e-4, 1e-3)}).mark == "ok"
    late = checks.oversleep()
    assert all(0 <= median <= p99 for median, p99 in late.values())


def test_the_bench_measures_every_stage_and_ends_with_json(tmp_path):
    toy = Toy(bin_width_s=0.02)
    done = run("bench", toy.write(tmp_path / "toy"), "--seconds", "1", "--set", "timeout_s=30")
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    assert done.returncode == (0 if result["holds"] else 1), done.stderr
    assert (result["channels"], result["bin_width_s"], result["lost"]) == (toy.n_channels, 0.02, 0)
    assert result["set"] == ["timeout_s=30"]
    assert 40 <= result["bins"] <= 60
    assert tuple(result["us"]) == STAGES
    for row in (*result["us"].values(), result["step_us"]):
        assert 0 < row["p50"] <= row["p90"] <= row["p99"] <= row["p99.9"] <= row["max"]
    assert result["holds"] == (result["us"]["push -> subscriber"]["p99.9"] < 20_000)
    assert [line for line in lines if line.startswith("push -> subscriber")]


def test_a_bench_that_is_ended_leaves_nothing_behind(tmp_path):
    bench = [sys.executable, "-m", "rtdsae", "bench", Toy().write(tmp_path / "toy"), "--seconds", "600"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(bench, env={**os.environ, "TMPDIR": str(scratch)}) as process:
        until(lambda: len(psutil.Process(process.pid).children()) == 2, "a source and a daemon")
        started = psutil.Process(process.pid).children()
        process.terminate()
        assert process.wait(40) == 130
    assert not any(child.is_running() for child in started)
    assert not list(scratch.iterdir())


def test_a_bin_width_that_no_computer_holds(tmp_path):
    """A tenth of a millisecond is less than one process needs to wake another twice."""
    done = run("bench", Toy(bin_width_s=1e-4).write(tmp_path / "toy"), "--seconds", "0.5")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "does NOT hold the bin width of 100 µs" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["holds"] is False


def test_the_bench_says_why_the_daemon_did_not_start(tmp_path):
    done = run("bench", Toy().write(tmp_path / "toy"), "--seconds", "1", "--set", "priority=120")
    assert done.returncode == 2
    assert "the daemon published nothing: " in done.stderr
    assert "priority 120" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["bench", "nowhere"], ["bench", "nowhere", "--seconds", "0"], ["doctor", "--loud"]])
def test_wrong_usage(args):
    done = run(*args)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_stages_add_up():
    times = np.array([[1.0, 1.001, 1.003, 1.006], [2.0, 2.002, 2.003, 2.004]])
    found = stages(times)
    np.testing.assert_allclose(sum(found[name] for name in STAGES[:3]), found[STAGES[3]])
    np.testing.assert_allclose(found["in -> out"], [2000, 1000])
    assert quantiles(np.arange(1, 1001.0)) == {"p50": 501.0, "p90": 901.0, "p99": 991.0, "p99.9": 1000.0, "max": 1000.0}
