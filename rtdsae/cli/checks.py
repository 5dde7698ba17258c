"""What `rtdsae doctor` looks at: each check tries the thing itself, on this computer, and says how to mend it."""

import base64
import contextlib
import importlib.metadata
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

import rtdsae
from rtdsae import shipped
from rtdsae.cli.lsl import settings_file
from rtdsae.defaults import CONTROL, ENDPOINT
from rtdsae.errors import ConfigError, one_line
from rtdsae.serve import realtime

__all__ = ["CHECKS", "Check"]

T = TypeVar("T")
Mark = Literal["ok", "warn", "FAIL"]

FIND_S = 5.0  # LSL's own discovery takes half a second at most
SLOW_S = 2.0
LSL_GROUP = "239.255.172.215"  # where LSL's searches go, beside others
ECHO_S = 1.0
PORTS = {"latents": ENDPOINT, "control": CONTROL}
PRIORITY = 50
LATE_S = 2e-3  # a sleep that ends so much too late, one time in a hundred, is a machine that does something else
COARSE_CLOCKS = ("jiffies", "acpi_pm", "hpet", "pit", "refined-jiffies")
EXTRA = "install rtdsae's extra [serve]: pip install 'rtdsae[serve]'"
LOOPBACK = "lsl_loopback.cfg"
DOUBLE = "CAg6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAR"  # y = x + x, in ONNX

OUTLET = """
import sys, pylsl
outlet = pylsl.StreamOutlet(pylsl.StreamInfo("rtdsae doctor", "Check", 1, 0, "float32", sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""
FINDER = """
import sys, time, pylsl
source_id, wait_s = sys.argv[1], float(sys.argv[2])
began = time.monotonic()
for info in pylsl.resolve_byprop("source_id", source_id, 1, wait_s):
    found_s = time.monotonic() - began
    pylsl.StreamInlet(info, recover=False).open_stream(wait_s)
    print(found_s)
"""


@dataclass(frozen=True)
class Check:
    """What one check has found. `FAIL` is for what the daemon cannot do without."""

    mark: Mark
    what: str
    said: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.mark:4}  {self.what:19}  {self.said}{f'  - {self.mend}' if self.mend else ''}"


def package() -> Iterator[Check]:
    """Which version this is, and where what comes along with it lies: the systemd unit, say, to be copied."""
    yield Check("ok", "rtdsae", f"{rtdsae.__version__}, {shipped.folder('models')}, {shipped.folder('configs')}")


def lsl() -> Iterator[Check]:
    """The library, and whether a stream of another process is found and can be opened."""
    try:
        import pylsl

        version = pylsl.library_version()
    except (ImportError, RuntimeError, OSError) as error:
        yield Check("FAIL", "liblsl", one_line(error), f"{EXTRA}; PYLSL_LIB=/path/of/liblsl where it has no wheel")
        return
    yield Check("ok", "liblsl", f"{version // 100}.{version % 100}, pylsl {importlib.metadata.version('pylsl')}")
    try:
        settings = settings_file() or "LSL's own settings"
    except ConfigError as error:
        yield Check("FAIL", "LSL settings", str(error))
        return
    yield _discovery(discover(), discover(shipped.config(LOOPBACK)), settings)


def discover(config: Path | None = None, wait_s: float = FIND_S) -> float | None:
    """Seconds until a stream of one process was found by another, with an LSL config or the present one; None: never.

    The stream is opened as well, which a firewall may forbid where it lets the search through.
    """
    source_id = f"rtdsae-doctor-{uuid.uuid4().hex}"
    environ = os.environ | ({"LSLAPICFG": str(config)} if config else {})
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": environ}
    with subprocess.Popen([sys.executable, "-c", OUTLET, source_id], stdin=subprocess.PIPE, **pipes) as outlet:
        try:
            assert outlet.stdout
            if not outlet.stdout.readline():
                return None
            found = subprocess.run(
                [sys.executable, "-c", FINDER, source_id, str(wait_s)], timeout=3 * wait_s + 30, check=False, **pipes
            )
        except subprocess.TimeoutExpired:
            return None
        finally:
            outlet.kill()
    said = found.stdout.split()
    return float(said[-1]) if found.returncode == 0 and said else None


def _discovery(own: float | None, alone: float | None, config: str) -> Check:
    what, loopback = "LSL discovery", f"LSLAPICFG={shipped.config(LOOPBACK)}"
    other = f"with {LOOPBACK} {'not at all' if alone is None else f'in {1e3 * alone:.0f} ms'}"
    if own is None:
        said = f"another process's stream was not found in {FIND_S:g} s with {config}; {other}"
        mend = (
            "let UDP multicast and ports 16571 to 16604 through the firewall"
            if alone is None
            else f"export {loopback} for sources on this computer; for others allow UDP multicast"
        )
        return Check("FAIL", what, said, mend)
    said = f"another process's stream found in {1e3 * own:.0f} ms with {config}; {other}"
    if own > SLOW_S:
        return Check("warn", what, said, "multicast may be blocked: KnownPeers = {HOST} in lsl_api.cfg, or " + loopback)
    return Check("ok", what, said)


def multicast() -> Iterator[Check]:
    """Whether each network card carries LSL's searches: what is sent there to LSL's group is heard here again."""
    if sys.platform == "win32":  # cards are named otherwise there
        return
    failed = {name: echo(index) for index, name in socket.if_nameindex() if not name.startswith("lo")}
    heard = [name for name, why in failed.items() if not why]
    deaf = [f"{name}: {why}" for name, why in failed.items() if why]
    said = "; ".join([f"heard on {', '.join(heard)}"] * bool(heard) + deaf) or "no network card"
    if heard:
        yield Check("ok", "multicast", said)
    else:
        mend = "sources on other computers: KnownPeers = {HOST} in lsl_api.cfg, or mend the network"
        yield Check("warn", "multicast", said, mend)


def echo(card: int) -> str:
    """Why multicast that leaves by a network card of this index is not heard on this computer, or nothing."""
    member = struct.pack("4s4si", socket.inet_aton(LSL_GROUP), bytes(4), card)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(ECHO_S)
            udp.bind(("", 0))
            udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, member)
            udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)  # it need not leave the computer for this
            udp.sendto(b"rtdsae doctor", (LSL_GROUP, udp.getsockname()[1]))
            udp.recv(64)
    except TimeoutError:
        return "nothing comes back"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def onnx_runtime() -> Iterator[Check]:
    """The runtime, that it is there once, and each of its providers."""
    installed = sorted(
        {name.lower() for d in importlib.metadata.distributions() if (name := d.metadata["Name"] or "")}
        & {"onnxruntime", "onnxruntime-gpu"}
    )
    if len(installed) > 1:
        cure = f"pip uninstall -y {' '.join(installed)}, then {EXTRA}"
        yield Check("FAIL", "onnxruntime", f"{' and '.join(installed)} overwrite one another", cure)
    try:
        import onnxruntime
    except ImportError as error:
        yield Check("FAIL", "onnxruntime", one_line(error), EXTRA)
        return
    if len(installed) < 2:
        yield Check("ok", "onnxruntime", f"{onnxruntime.__version__} ({installed[0] if installed else 'not from pip'})")
    onnxruntime.set_default_logger_severity(4)
    for provider in reversed(onnxruntime.get_available_providers()):  # the CPU's is the last
        yield _provider(provider)


def _provider(provider: str) -> Check:
    import onnxruntime

    name, needed = provider.removesuffix("ExecutionProvider").lower(), provider == "CPUExecutionProvider"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        with contextlib.redirect_stdout(None):  # it says at length that it falls back
            session = onnxruntime.InferenceSession(base64.b64decode(DOUBLE), options, providers=[provider])
        runs = session.get_providers()[0] == provider  # it falls back without a word
        (y,) = session.run(None, {"x": np.array([21.0], np.float32)})
        why = f"computes 21 + 21 = {y[0]:g}" if y[0] != 42 else "its driver or its libraries are not there"
        runs = runs and y[0] == 42
    except Exception as error:  # ONNX Runtime's errors have no common base but this one
        runs, why = False, one_line(error)
    if runs:
        return Check("ok", f"provider {name}", "runs a graph")
    mend = "reinstall onnxruntime" if needed else "install them, or stay with provider cpu, which is the default"
    return Check("FAIL" if needed else "warn", f"provider {name}", f"cannot run here: {why}", mend)


def zeromq() -> Iterator[Check]:
    """The library, its encryption, and the ports that are used unless others are named."""
    import zmq

    yield Check("ok", "ZeroMQ", f"{zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}")
    if zmq.has("curve"):
        yield Check("ok", "CURVE keys", "supported")
    else:
        mend = "pip install --force-reinstall pyzmq; until then loopback and ipc endpoints only"
        yield Check("warn", "CURVE keys", "this libzmq was built without them", mend)
    for use, endpoint in PORTS.items():
        yield _port(use, int(endpoint.rpartition(":")[2]))


def _port(use: str, port: int) -> Check:
    what = f"port {port}"
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError as error:
        flag = "--pub" if use == "latents" else "--control"
        mend = f"is a daemon running already? Else {flag} tcp://127.0.0.1:OTHER"
        return Check("warn", what, f"not free for {use}: {error.strerror}", mend)
    return Check("ok", what, f"free for {use}")


def real_time() -> Iterator[Check]:
    """Priority, memory, cores."""
    refusal = _in_thread(lambda: realtime.set_priority(PRIORITY))
    yield _asked("priority", f"SCHED_FIFO {PRIORITY} granted", refusal)
    refusal = _in_thread(lambda: realtime.set_turn(realtime.TURN_NS))
    yield _asked("short turns", f"{realtime.TURN_NS // 1000} µs granted", refusal)
    refusal = realtime.lock_memory()
    if not refusal:
        realtime.unlock_memory()
    yield _asked("memory lock", "granted", refusal)
    cores, usable = os.cpu_count() or 1, len(_affinity())
    said = f"{usable} of {cores} may be used"
    few = usable < 2
    yield Check("warn" if few else "ok", "cores", said, "decoding and receiving share one: give it two" if few else "")
    isolated = _read("/sys/devices/system/cpu/isolated")
    yield Check("ok", "isolated cores", isolated or "none: isolcpus=LIST at boot, and --cpu LIST, keep others off them")
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor and governor != "performance":
        yield Check(
            "warn", "governor", f"{governor}: the clock falls between bins", "cpupower frequency-set -g performance"
        )
    else:
        yield Check("ok", "governor", governor or "none: this computer, or its host, sets the clock itself")


def _asked(what: str, granted: str, refusal: str) -> Check:
    if not refusal:
        return Check("ok", what, granted)
    said, _, mend = refusal.partition(": ")
    return Check("warn", what, said, mend)


def clock() -> Iterator[Check]:
    """The clock that stamps are made with, and how late a sleeper wakes."""
    try:
        import pylsl
    except (ImportError, RuntimeError):
        return  # said already
    steps = np.diff([pylsl.local_clock() for _ in range(20_000)])
    if (steps < 0).any():
        yield Check("FAIL", "LSL clock", "goes backwards", "is the clocksource unstable? See dmesg | grep -i tsc")
    else:
        finest = float(steps[steps > 0].min())
        coarse = finest > 1e-5
        mend = "LSL's latencies cannot be told from one another" if coarse else ""
        yield Check("warn" if coarse else "ok", "LSL clock", f"monotonic, in steps of {1e6 * finest:.2g} µs", mend)
    source = _read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source in COARSE_CLOCKS:
        yield Check("warn", "clocksource", f"{source}: slow to read", "boot with clocksource=tsc, where it is stable")
    elif source:
        yield Check("ok", "clocksource", source)
    yield _sleeps("sleeps", oversleep())
    if not _in_thread(lambda: realtime.set_priority(PRIORITY)):
        late = _in_thread(lambda: (realtime.set_priority(PRIORITY), oversleep())[1])
        yield _sleeps(f"at priority {PRIORITY}", late)


def oversleep() -> dict[float, tuple[float, float]]:
    """How much too late sleeps of 1 and of 20 ms end: median and 99th percentile, seconds."""
    found = {}
    for sleep_s, n in ((1e-3, 300), (20e-3, 75)):
        late = []
        for _ in range(n):
            began = time.perf_counter()
            time.sleep(sleep_s)
            late.append(time.perf_counter() - began - sleep_s)
        median, p99 = np.quantile(late, [0.5, 0.99])
        found[sleep_s] = float(median), float(p99)
    return found


def _sleeps(what: str, late: dict[float, tuple[float, float]]) -> Check:
    said = ", ".join(
        f"{1e3 * sleep_s:g} ms end {1e6 * median:.0f} µs late (p99 {1e6 * p99:.0f})"
        for sleep_s, (median, p99) in late.items()
    )
    if max(p99 for _, p99 in late.values()) > LATE_S:
        return Check("warn", what, said, "other work is in the way: stop it, or --priority and --cpu")
    return Check("ok", what, said)


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (package, lsl, multicast, onnx_runtime, zeromq, real_time, clock)


def _in_thread(function: Callable[[], T]) -> T:
    """In a thread whose priority may change."""
    result: list[T] = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join()
    return result[0]


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
