"""The example subscribers as processes, and a publisher that sends them what it likes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import zmq
from station import until

from rtdsae import wire

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
WIRE = EXAMPLES.parent / "wire.md"
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
SANITIZERS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
OWN_HEADER = Path(__file__).parent  # of libzmq's API, where the computer has none


class Program:
    """A subscriber that runs, and what it has said so far, in whole lines."""

    def __init__(self, command, folder):
        self.command = [str(word) for word in command]
        self.said, self.remarked = folder / "stdout", folder / "stderr"

    def __enter__(self):
        with self.said.open("w") as out, self.remarked.open("w") as err:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=err)
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait(20)

    @property
    def bins(self):
        """The words of each bin's line."""
        return [line.split() for line in _lines(self.said) if line[0] != "#"]

    @property
    def remarks(self):
        """What else it had to say, but for what Octave says when it ends Java."""
        lines = _lines(self.remarked) + [line[2:] for line in _lines(self.said) if line[0] == "#"]
        return [line for line in lines if "while preparing to exit" not in line]

    def until(self, true, what):
        """Waits until `true()`, while it runs."""
        until(lambda: true() or self.process.poll() is not None, what)
        assert true(), f"{what} did not happen, it ended with {self.process.returncode}: {self.remarked.read_text()}"


def _lines(path):
    return path.read_text().rpartition("\n")[0].splitlines()


def free_endpoint():
    """Where nobody is yet."""
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.bind("tcp://127.0.0.1:*")  # not ipc, which JeroMQ has only among its own
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)


class Bare:
    """A publisher of any frames whatever."""

    def __init__(self):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.set(zmq.XPUB_VERBOSE, 1)
        self.socket.set(zmq.SNDHWM, 0)
        self.socket.bind("tcp://127.0.0.1:*")
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.run = 7

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.context.destroy(linger=0)

    def wait_for(self, *topics):
        """Returns when each of these has been subscribed to."""
        wanted = {b"\x01" + topic for topic in topics}
        while wanted:
            assert self.socket.poll(20_000), f"nobody subscribed to {wanted}"
            wanted -= {self.socket.recv()}

    def announce(self, schema):
        """From here on its bins are of this schema."""
        self.use(schema)
        self.socket.send(schema.encode())

    def use(self, schema):
        """The same, and nobody is told."""
        self.encoder = wire.Encoder(schema, self.run)

    def bins(self, *seqs, flags=0):
        """Publishes bins whose values are `values(seq)`."""
        for seq in seqs:
            self.encoder.run = self.run
            self.encoder.values[:] = [seq + i / 8 for i in range(self.encoder.schema.count)]
            self.socket.send(self.encoder.encode(seq, seq + 100, seq * 0.02, 0.0, 0.0, flags))


def c_program(source, folder, *options):
    """Compiles it; skips where this computer has no compiler."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("there is no C compiler: install gcc")
    program = folder / "program"
    command = [compiler, *WARNINGS, *options, f"-I{EXAMPLES}", source, *_libzmq(compiler), "-o", program]
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert compiled.returncode == 0, compiled.stderr
    return program


def _libzmq(compiler):
    """The system's, or else pyzmq's."""
    command = [compiler, "-E", "-include", "zmq.h", "-xc", os.devnull, "-o", os.devnull]
    if not subprocess.run(command, capture_output=True, check=False).returncode:
        return ["-lzmq"]
    libraries = Path(zmq.__file__).parents[1] / "pyzmq.libs"
    if not (found := sorted(libraries.glob("libzmq*.so*"))):
        pytest.skip("there is no libzmq to link with: install libzmq3-dev")
    return [f"-I{OWN_HEADER}", found[0], f"-Wl,-rpath,{libraries}"]


def js_program(folder):
    """Beside the modules that it imports."""
    places = [Path(place) for place in os.environ.get("NODE_PATH", "").split(os.pathsep) if place]
    found = [place for place in places if (place / "zeromq").is_dir()]
    if not (shutil.which("node") and found):
        pytest.skip("needs Node, and NODE_PATH set to a node_modules where `npm install zeromq@6` was run")
    (folder / "node_modules").symlink_to(found[0])
    return shutil.copy(EXAMPLES / "subscriber.mjs", folder)
