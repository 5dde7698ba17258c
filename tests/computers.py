"""Computers on a network of their own, each with its own clock and name: Linux's namespaces, no privilege needed.

with Network() as network:
    rig, arm = network.computer("rig"), network.computer("arm", uptime_s=500_000)
    rig.start(sys.executable, "-m", "rtdsae", "serve", ...)
    arm.unplug()
    rig.off()                           # without a goodbye: as when the mains fail
    rig = network.computer("rig")       # the same address, another uptime

The clock of LSL is a computer's uptime, so that these disagree as those of real ones do.
"""

import os
import shutil
import subprocess
import sys

import pytest

HOLD = "import os, socket, sys; socket.sethostname(sys.argv[1]); print(os.getpid(), flush=True); sys.stdin.read()"


class Network:
    """A switch, and the computers that are plugged into it."""

    def __enter__(self):
        for tool in ("ip", "nsenter", "unshare"):
            if not shutil.which(tool):
                pytest.skip(f"no {tool}: Debian's iproute2 and util-linux have what makes computers of one")
        new, bridge = ["--user", "--map-root-user", "--net", "--uts"], "ip link add switch type bridge"
        tried = subprocess.run(["unshare", *new, "--time", "sh", "-c", bridge], capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"this computer cannot be made several: {tried.stderr.strip()}")
        self.switch = Held("switch", [], new)
        self.computers, self.numbers = [], {}
        self.switch.run(f"{bridge}; ip link set switch up")
        return self

    def computer(self, plug, uptime_s=0, name=None):
        """One that is switched on, for `uptime_s` longer than this one has been; a plug has an address of its own."""
        return Computer(self, plug, uptime_s, name or plug)

    def __exit__(self, *error):
        for computer in list(self.computers):
            computer.off()
        self.switch.end()


class Computer:
    def __init__(self, network, plug, uptime_s, name):
        self.network, self.port, self.programs = network, f"to-{plug}", []
        new = ["--net", "--uts", "--time", f"--monotonic={uptime_s}", "--fork", "--kill-child"]
        self.held = Held(name, network.switch.enter("--user"), new)
        number = network.numbers.setdefault(plug, len(network.numbers) + 1)
        self.address, self.card = f"10.7.0.{number}", f"02:00:00:00:00:{number:02x}"
        network.computers.append(self)
        network.switch.run(
            f"ip link add {self.port} type veth peer name eth0 address {self.card} netns {self.held.pid}; "
            f"ip link set {self.port} master switch up"
        )
        self.run(
            f"ip link set lo up; ip address add {self.address}/24 dev eth0; ip link set eth0 up; "
            "ip route add default dev eth0"  # LSL's searches need one
        )

    def run(self, script):
        return self.held.run(script)

    def command(self, *command):
        """The command, run there."""
        return [*self.held.enter("--user", "--net", "--uts", "--time"), *command]

    def start(self, *command, **options):
        """A program that runs until the computer is off."""
        environment = {key: value for key, value in os.environ.items() if key != "LSLAPICFG"}
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        program = subprocess.Popen(self.command(*command), env=environment, **(streams | options))
        self.programs.append(program)
        return program

    def unplug(self):
        """As beyond a router: no card and no ARP notices, so that TCP waits ever longer for an answer."""
        for here in self.network.computers:
            for there in self.network.computers:
                if here is not there:
                    here.run(f"ip neighbour replace {there.address} lladdr {there.card} dev eth0 nud permanent")
        self.network.switch.run(f"ip link set {self.port} nomaster")

    def plug(self):
        self.network.switch.run(f"ip link set {self.port} master switch")

    def off(self):
        """No word of it leaves the computer, not even that its connections end."""
        self.network.computers.remove(self)
        self.network.switch.run(f"ip link delete {self.port}")
        for program in self.programs:
            program.kill()
            program.communicate(timeout=20)
        self.held.end()


class Held:
    """Namespaces, held by a process that waits in them."""

    def __init__(self, name, inside, new):
        self.process = subprocess.Popen(
            [*inside, "unshare", *new, sys.executable, "-c", HOLD, name],
            stdin=subprocess.PIPE,  # whose end is its end, should the tests be killed
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = int(self.process.stdout.readline())

    def enter(self, *kinds):
        return ["nsenter", "--target", str(self.pid), "--preserve-credentials", *kinds]

    def run(self, script):
        done = subprocess.run([*self.enter("--user", "--net"), "sh", "-ec", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def end(self):
        self.process.kill()
        self.process.communicate(timeout=20)
