"""What the operating system is asked for, in processes and threads of their own."""

import gc
import json
import os
import subprocess
import sys
import threading

import pytest

from rtdsae.errors import ConfigError
from rtdsae.serve.realtime import TURN_NS, RealTime, ordinary_thread, set_turn, settle

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's own")

N_CORES = os.cpu_count()
REPORT = """
import getpass, json, logging, os, pwd, resource, sys, threading
from rtdsae.serve.realtime import RealTime, ordinary_thread, turn

def scheduling():
    return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority, sorted(os.sched_getaffinity(0))

seen, turns = {}, {}
def child(name, first=lambda: None):
    def run():
        first()
        seen[name], turns[name] = scheduling(), turn()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
spec = json.loads(sys.argv[1])
if spec.pop("limited"):
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
missing = RealTime(spec["priority"], tuple(spec["cpus"]), spec["lock_memory"]).apply()
locked = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmLck")]
child("inherits"), child("resets", ordinary_thread)
print(json.dumps({"own": scheduling(), "missing": missing, "locked_kb": int(locked[0]), **seen,
                  "switch_s": sys.getswitchinterval(), "turns": {"own": turn(), **turns}}))
"""


def report(*, priority=None, cpus=(), lock_memory=False, limited=False):
    """What a process that asked for this has got, and what it said."""
    spec = {"priority": priority, "cpus": cpus, "lock_memory": lock_memory, "limited": limited}
    done = subprocess.run(
        [sys.executable, "-c", REPORT, json.dumps(spec)], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout), done.stderr


def may_be_real_time():
    allowed = []

    def try_it():
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
            allowed.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return bool(allowed)


def has_short_turns():
    refusals = []
    thread = threading.Thread(target=lambda: refusals.append(set_turn(TURN_NS)))
    thread.start()
    thread.join()
    return refusals == [""]


@pytest.mark.parametrize("priority", [0, -1, 100, 120])
def test_a_priority_that_does_not_exist_is_refused(priority):
    with pytest.raises(ConfigError, match=f"priority {priority}: SCHED_FIFO has 1 to 99"):
        RealTime(priority=priority)


@pytest.mark.parametrize("cpu", [-1, N_CORES, 4096])
def test_a_core_that_does_not_exist_is_refused(cpu):
    with pytest.raises(ConfigError, match=f"cpu {cpu}: this computer has {N_CORES} cores"):
        RealTime(cpus=(0, cpu))


def test_nothing_is_changed_that_was_not_asked_for():
    before = os.sched_getscheduler(0), sorted(os.sched_getaffinity(0))
    said, log = report()
    assert (said["own"][0], said["own"][2]) == before
    assert said["missing"] == []
    assert said["locked_kb"] == 0
    assert said["switch_s"] == pytest.approx(1e-4)
    assert log == ""


@pytest.mark.skipif(not has_short_turns(), reason="this kernel, or its container, has no short turns")
def test_turns_are_short_for_those_on_the_path_of_a_bin_and_the_kernels_own_for_others():
    turns = report()[0]["turns"]
    assert turns["own"] == turns["inherits"] == TURN_NS
    assert turns["resets"] > TURN_NS


@pytest.mark.skipif(not has_short_turns(), reason="this kernel, or its container, has no short turns")
def test_short_turns_keep_the_threads_nice_value():
    def run():
        os.setpriority(os.PRIO_PROCESS, 0, 7)  # of the calling thread, on Linux
        seen.append((set_turn(TURN_NS), os.getpriority(os.PRIO_PROCESS, 0)))

    seen = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [("", 7)]


def test_cores_are_those_of_the_thread_and_of_those_that_it_starts():
    core = max(os.sched_getaffinity(0))
    said, _ = report(cpus=[core])
    assert said["missing"] == []
    assert said["own"][2] == said["inherits"][2] == [core]


@pytest.mark.skipif(not may_be_real_time(), reason="this account may not have real-time threads")
def test_priority_is_the_threads_and_of_those_that_it_starts_unless_they_want_none():
    said, log = report(priority=7)
    assert said["missing"] == []
    assert said["own"][:2] == said["inherits"][:2] == [os.SCHED_FIFO, 7]
    assert said["resets"][:2] == [os.SCHED_OTHER, 0]
    assert log == ""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may lock any amount of memory without being allowed to")
def test_memory_is_locked():
    said, _ = report(lock_memory=True)
    assert said["missing"] == []
    assert said["locked_kb"] > 10_000


def test_what_is_not_allowed_is_said_with_its_cure_and_done_without():
    said, log = report(priority=50, lock_memory=True, cpus=[0], limited=True)
    memory, priority = said["missing"]
    assert "lock_memory was refused" in memory
    assert "memlock unlimited" in memory
    assert "LimitMEMLOCK=infinity" in memory
    assert "priority 50 was refused (Operation not permitted)" in priority
    assert "rtprio 50" in priority
    assert "LimitRTPRIO=50" in priority
    assert log.splitlines() == [f"WARNING {line}" for line in said["missing"]]
    assert said["own"] == [os.SCHED_OTHER, 0, [0]]
    assert said["locked_kb"] == 0


def test_an_ordinary_thread_stays_one():
    seen = []
    thread = threading.Thread(target=lambda: (ordinary_thread(), seen.append(os.sched_getscheduler(0))))
    thread.start()
    thread.join()
    assert seen == [os.SCHED_OTHER]


def test_the_collector_does_not_see_what_was_loaded_before(thawed):
    settle()
    assert gc.get_freeze_count() > 10_000
