"""Asking the operating system for punctuality: priority, turns, cores, memory; and the interpreter for its share.

    rig = RealTime(priority=50, cpus=(2, 3), lock_memory=True)
    rig.apply()      # first of all, in the thread that will decode
    ...              # sockets and streams, whose own threads inherit priority, turns and cores
    settle()         # when everything is loaded, before the main loop

Threads that are not on the path of a bin call `ordinary_thread()` first.
"""

import contextlib
import ctypes
import errno
import gc
import logging
import os
import platform
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from rtdsae.errors import ConfigError

__all__ = ["RealTime", "lock_memory", "ordinary_thread", "scheduling", "settle", "unlock_memory"]

log = logging.getLogger(__name__)

SWITCH_S = 1e-4  # the longest that another thread holds the interpreter while a bin waits
TURN_NS = 300_000  # most bins' work fits in it; 100 µs is slower at 50 and 100 Hz, 600 at 1 kHz (docs/log.md)
LOWEST, HIGHEST = 1, 99
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # <sys/mman.h>, Linux
CAP_IPC_LOCK = 14  # <linux/capability.h>
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # system calls; the C library has had functions only since 2025
SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
_SchedAttr = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period
LIMITS = "/etc/security/limits.d/rtdsae.conf"


@dataclass(frozen=True)
class RealTime:
    """What the daemon asks for. What may not be had is said and done without.

    Args:
        priority: SCHED_FIFO priority of the calling thread, 1 to 99; None for an ordinary one.
        cpus: cores that it may run on; none for all.
        lock_memory: keep the process's memory from being swapped out.

    Raises:
        ConfigError: there is no such priority, or no such core.
    """

    priority: int | None = None
    cpus: tuple[int, ...] = ()
    lock_memory: bool = False

    def __post_init__(self) -> None:
        if self.priority is not None and not LOWEST <= self.priority <= HIGHEST:
            raise ConfigError(f"priority {self.priority}: SCHED_FIFO has {LOWEST} to {HIGHEST}, 50 is a good choice")
        n_cores = os.cpu_count() or 1
        for cpu in self.cpus:
            if not 0 <= cpu < n_cores:
                raise ConfigError(f"cpu {cpu}: this computer has {n_cores} cores, 0 to {n_cores - 1}")

    def apply(self) -> list[str]:
        """Asks for it, for the calling thread and those that it starts; logs and returns what could not be had.

        Short turns are asked for as well, always: who has none is not told, having asked for nothing.
        """
        sys.setswitchinterval(SWITCH_S)
        set_turn(TURN_NS)
        refusals = [
            set_cpus(self.cpus) if self.cpus else "",
            lock_memory() if self.lock_memory else "",
            set_priority(self.priority) if self.priority is not None else "",
        ]
        missing = [refusal for refusal in refusals if refusal]
        for refusal in missing:
            log.warning("%s", refusal)
        return missing


def settle() -> None:
    """Takes what has been loaded out of the garbage collector's sight: it then looks at young objects only."""
    gc.collect()
    gc.freeze()


def ordinary_thread() -> None:
    """Gives the calling thread the ordinary priority, whatever it has inherited."""
    if hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    set_turn(0)


def scheduling() -> Callable[[], None]:
    """How the calling thread is scheduled: to be called by a thread that is to be scheduled so too."""
    if not hasattr(os, "sched_setscheduler"):
        return lambda: None
    policy, parameters, length = os.sched_getscheduler(0), os.sched_getparam(0), turn()

    def give() -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, policy, parameters)
        set_turn(length)

    return give


def set_turn(nanoseconds: int) -> str:
    """Has the calling thread, if it is an ordinary one, run for so long at a time; why not, where it cannot.

    Linux serves ordinary threads by deadline (EEVDF): whoever needs the core for a short while only is due early, and
    takes it from those with longer turns as soon as it wakes. Its share of the core stays as it is. 0 is the kernel's
    own length, a few ms.
    """
    number = SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return "short turns: this system has none"
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return "short turns: this thread is not an ordinary one"
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = _SchedAttr.pack(_SchedAttr.size, os.SCHED_OTHER, 0, nice, 0, nanoseconds, 0, 0)
    if error := _call("syscall", number, 0, wanted, 0):
        return f"short turns were refused ({os.strerror(error)}): the container must allow sched_setattr"
    if nanoseconds and turn() != nanoseconds:
        return f"short turns: Linux has them since 6.12, and this is {platform.release()}"
    return ""


def turn() -> int:
    """How long the calling thread runs at a time, ns, where Linux says so; 0 elsewhere."""
    found = ctypes.create_string_buffer(_SchedAttr.size)
    number = SCHED_GETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None or _call("syscall", number, 0, found, _SchedAttr.size, 0):
        return 0
    return int(_SchedAttr.unpack(found.raw)[5])


def set_cpus(cpus: tuple[int, ...]) -> str:
    """Binds the calling thread to cores; why not, where it cannot be."""
    wanted = ",".join(map(str, cpus))
    if not hasattr(os, "sched_setaffinity"):
        return f"cpu {wanted}: this system has no affinity; leave --cpu out"
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        return f"cpu {wanted} was refused ({error.strerror}): see AllowedCPUs= of the service, or of its container"
    if (found := os.sched_getaffinity(0)) != set(cpus):
        return f"cpu {wanted}: only {sorted(found)} were allowed: see AllowedCPUs= of the service, or of its container"
    return ""


def set_priority(priority: int) -> str:
    """Makes the calling thread a real-time one; why not, where it cannot be."""
    if not hasattr(os, "sched_setscheduler"):
        return f"priority {priority}: this system has no SCHED_FIFO; leave --priority out"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        return (
            f"priority {priority} was refused ({error.strerror}): write '{_user()} - rtprio {priority}' into {LIMITS} "
            f"and log in again, or LimitRTPRIO={priority} into the service's unit"
        )
    return ""


def lock_memory() -> str:
    """Keeps all memory of the process, present and future, from being swapped out; why not, where it cannot be."""
    if sys.platform != "linux":
        return "lock_memory: this system cannot; leave it out"
    if not _may_lock():  # a limit that is met later would end the daemon
        return (
            f"lock_memory was refused (limited): write '{_user()} - memlock unlimited' into {LIMITS} and log in again, "
            "or LimitMEMLOCK=infinity into the service's unit"
        )
    if error := _call("mlockall", MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
        return f"lock_memory was refused ({os.strerror(error)}): the container or the service must allow mlockall"
    return ""


def unlock_memory() -> None:
    """Undoes `lock_memory`."""
    _call("munlockall")


def _may_lock() -> bool:
    """Whether any amount may be locked."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        return True
    return bool(_capabilities() >> CAP_IPC_LOCK & 1)


def _capabilities() -> int:
    """The process's effective ones, a bit each."""
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["CapEff"], 16)


def _call(name: str, *args: "int | bytes | ctypes.Array[ctypes.c_char]") -> int:
    """A function of the C library; 0, or the error's number."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        return errno.ENOSYS
    return ctypes.get_errno() if function(*args) == -1 else 0


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
