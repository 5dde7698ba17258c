"""Other people's subscribers, written from docs/wire.md: they hear what the Python one hears, whatever comes."""

import hashlib
import itertools
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from lsl_source import LslSource
from programs import SANITIZERS, WIRE, Bare, Program, c_program, free_endpoint
from station import OTHER, SCHEMA
from toy_bundle import Toy

from rtdsae import Subscriber
from rtdsae.wire import LATENTS, Encoder, Flags
from rtdsae.wire import SCHEMA as SCHEMA_TOPIC


@pytest.fixture
def publisher():
    with Bare() as publisher:
        yield publisher


def listening(publisher, program):
    """The program runs and has the first bins, 0 to 2, of the array z."""
    publisher.wait_for(SCHEMA_TOPIC, LATENTS)
    publisher.announce(SCHEMA)
    publisher.bins(0, 1, 2)
    program.until(lambda: program.bins and program.bins[-1][0] == "2", "the first bins")


def line(seq, array=range(3, 7), flags="-"):
    """What is printed of a bin of Bare, of these values of the payload."""
    return [str(seq), f"{seq * 0.02:.9f}", flags, *(f"{seq + i / 8:.9g}" for i in array)]


def names(flags):
    return "+".join(flag.name.lower() for flag in Flags if flags & flag) or "-"


def test_they_hear_what_the_python_subscriber_hears(subscriber, tmp_path):
    toy, endpoint = Toy(), free_endpoint()
    x, observed, offsets = toy.counts(3000), np.ones(3000, bool), (np.arange(3000) + 1) * 0.02
    observed[60::7] = False
    (tmp_path / "daemon").mkdir()
    with LslSource(x[observed], 50.0, offsets=offsets[observed], pace=100) as source:
        serve = [sys.executable, "-m", "rtdsae", "serve", toy.write(tmp_path / "toy"), "--pub", endpoint]
        with (
            Subscriber(endpoint, timeout_s=20) as python,
            subscriber(endpoint, "behaviour", "every", "60") as program,
            Program([*serve, "--stream", f"source_id={source.source_id}"], tmp_path / "daemon") as daemon,
        ):
            heard = {}
            while program.process.poll() is None or max(heard) < int(program.bins[-1][0]):
                message = python.receive()
                assert message, daemon.remarks
                assert not program.process.poll(), program.remarks
                heard[message.seq] = message
    first = int(program.bins[0][0])
    assert [int(words[0]) for words in program.bins] == list(range(first, first + 60))
    assert {words[2] for words in program.bins} >= {"-", "gap"}
    for seq, t_bin, flags, *values in program.bins:
        message = heard[int(seq)]
        assert (t_bin, flags) == (f"{message.t_bin:.9f}", names(message.flags))
        assert np.array_equal(np.array(values, np.float32), message["behaviour"])


def test_the_named_array_is_found_among_others_and_flags_are_named(subscriber, publisher):
    with subscriber(publisher.endpoint, "z", "every", "5") as program:
        listening(publisher, program)
        publisher.bins(3, flags=Flags.ANCHORED | Flags.SWAPPED | 1 << 9)
        publisher.bins(4, flags=Flags.GAP | Flags.LATE)
        assert program.process.wait(20) == 0
        assert program.bins == [line(0), line(1), line(2), line(3, flags="anchored+swapped"), line(4, flags="gap+late")]
        assert program.remarks == []


def test_holes_restarts_and_bins_that_came_before_are_told(subscriber, publisher):
    with subscriber(publisher.endpoint, "z", "every", "7") as program:
        listening(publisher, program)
        publisher.bins(5, 4, 6)
        publisher.run = 0xBEEF
        publisher.bins(3, 4)
        assert program.process.wait(20) == 0
        assert [words[0] for words in program.bins] == ["0", "1", "2", "5", "6", "3", "4"]
        assert program.remarks == [
            "2 bins are missing before seq 5",
            "seq 4 is passed over: it came before",
            "the daemon restarted: run 0000beef",
            "3 bins are missing before seq 3",
        ]


def test_a_swap_moves_the_array(subscriber, publisher):
    with subscriber(publisher.endpoint, "z", "every", "5") as program:
        listening(publisher, program)
        publisher.announce(OTHER)  # where z has 5 values, and is first
        publisher.bins(3, 4)
        assert program.process.wait(20) == 0
        assert program.bins[3:] == [line(3, range(5)), line(4, range(5))]


def test_an_array_that_is_not_there_is_missed(subscriber, publisher):
    with subscriber(publisher.endpoint, "factors", "every", "5") as program:
        publisher.wait_for(SCHEMA_TOPIC, LATENTS)
        publisher.announce(OTHER)
        publisher.bins(0, 1)
        publisher.announce(SCHEMA)
        publisher.bins(*range(2, 7))
        assert program.process.wait(20) == 0
        assert program.bins[0] == line(2, range(3))
        assert program.remarks == [f"schema {OTHER.id:08x} has no array factors"]


@pytest.mark.parametrize("mode", ["every", "newest"])
def test_a_bin_of_an_unknown_schema_is_passed_over_and_the_schema_asked_for(subscriber, publisher, mode):
    with subscriber(publisher.endpoint, "z", mode, "1") as program:
        publisher.wait_for(SCHEMA_TOPIC, LATENTS)
        publisher.use(SCHEMA)
        publisher.bins(0)
        publisher.wait_for(SCHEMA_TOPIC)  # again
        program.until(lambda: program.remarks, "a remark")
        assert program.remarks == [f"seq 0 is passed over: its schema {SCHEMA.id:08x} has not come"]
        publisher.announce(SCHEMA)
        seq = 0
        while program.process.poll() is None:  # where there are two sockets, the bin may come before the schema
            seq += 1
            publisher.bins(seq)
        assert program.process.returncode == 0
        assert program.bins == [line(int(program.bins[0][0]))]


def test_the_newest_bin_is_what_a_program_that_was_stopped_goes_on_with(subscriber, publisher):
    with subscriber(publisher.endpoint, "z", "newest") as program:
        publisher.wait_for(SCHEMA_TOPIC, LATENTS)
        publisher.announce(SCHEMA)
        seq = 0
        while not program.bins:
            publisher.bins(seq)
            seq += 1
        program.process.send_signal(signal.SIGSTOP)
        publisher.bins(*range(seq, 2000))
        program.process.send_signal(signal.SIGCONT)
        later = itertools.count(2000)
        program.until(lambda: publisher.bins(next(later)) or int(program.bins[-1][0]) >= 2000, "a new bin")
        bins = program.bins  # it prints on
        seqs = [int(words[0]) for words in bins]
        assert seqs == sorted(set(seqs))
        assert sum(seq < 2000 for seq in seqs) < 1900
        assert bins[-1] == line(seqs[-1])
        assert not any("missing" in remark for remark in program.remarks)


STRANGE = [b'{"', b"[[[[", b"\\", b'"arrays":', b"99999999999999999999", b"\0", b"-1e999"]
NO_SCHEMAS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"7",
    b'{"arrays":7}',
    b'{"arrays":[7]}',
    b'{"arrays":[{"name":7,"shape":{}}]}',
]


def garbage(dice):
    """Frames that are none, or nearly."""
    encoder = Encoder(SCHEMA, 7)
    good = [bytes(encoder.encode(3, 103, 0.06, 0.0, 0.0)), SCHEMA.encode()]
    for _ in range(3000):
        frame = bytearray(dice.choice(good))
        match dice.randrange(4):
            case 0:
                frame[dice.randrange(8, len(frame))] = dice.randrange(256)
            case 1:
                del frame[dice.randrange(8, len(frame)) :]
            case 2:
                frame[8:] = dice.randbytes(dice.randrange(100))
            case 3:
                at = dice.randrange(8, len(frame))
                frame[at:at] = dice.choice(STRANGE)
        yield bytes(frame)
    for json in NO_SCHEMAS:
        yield SCHEMA_TOPIC + json
    yield SCHEMA_TOPIC + b"[" * 100_000
    yield SCHEMA_TOPIC + b'{"x":' * 100_000
    yield SCHEMA_TOPIC + b'{"arrays":[{"name":"z","shape":[4294967295,4294967295,4294967295]}]}'


def test_garbage_is_survived(subscriber, publisher):
    with subscriber(publisher.endpoint, "z", "every") as program:
        listening(publisher, program)
        for frame in garbage(random.Random(0)):
            publisher.socket.send(frame)
        publisher.run = 0x12345678  # no garbage was of it
        publisher.announce(SCHEMA)
        publisher.bins(8, 9)
        program.until(lambda: program.bins[-2:] == [line(8), line(9)], "bins after the garbage")
        assert any("is no bin of version 1 is passed over" in remark for remark in program.remarks)
        assert any("schema that cannot be read is passed over" in remark for remark in program.remarks)
        assert not any("runtime error" in remark or "Sanitizer" in remark for remark in program.remarks)


@pytest.mark.parametrize("words", [[], ["tcp://127.0.0.1", "factors"], ["tcp://127.0.0.1", "factors", "often"]])
def test_wrong_usage_is_told(subscriber, words):
    with subscriber(*words) as program:
        assert program.process.wait(20) > 0
    assert any("usage: " in remark for remark in program.remarks)


def test_the_pages_own_c_program_ends_where_the_schema_changes(publisher, tmp_path):
    (source,) = re.findall(r"```c\n(#include.*?)```", WIRE.read_text(), re.DOTALL)
    file = tmp_path / "page.c"
    file.write_text(source.replace("tcp://127.0.0.1:5556", publisher.endpoint).replace("int on = 1", "int on = 0"))
    with Program([c_program(file, tmp_path, *SANITIZERS)], tmp_path) as program:
        publisher.wait_for(LATENTS)
        publisher.use(SCHEMA)
        publisher.bins(0, 1)
        publisher.socket.send(LATENTS + bytes(80))
        publisher.bins(4, flags=Flags.GAP)
        publisher.use(OTHER)
        publisher.bins(5)
        assert program.process.wait(20) == 1
        assert program.bins == [
            ["0", "0.000", "0"],
            ["1", "0.020", "1"],
            ["2", "bins", "passed", "over"],
            ["4", "0.080", "(forecast)", "4"],
        ]
        assert program.remarks == ["what is published has changed"]


def test_the_hash_of_the_c_program_is_sha_256(tmp_path):
    data = bytes(7 * i % 256 for i in range(300))
    source = tmp_path / "hash.c"
    source.write_text(
        '#include <stdio.h>\n#include "sha256.h"\n'
        f"static const uint8_t data[] = {{{', '.join(map(str, data))}}};\n"
        'int main(void) { for (size_t n = 0; n <= sizeof data; n++) printf("%u\\n", (unsigned)sha256_id(data, n)); }\n'
    )
    printed = subprocess.run([c_program(source, tmp_path, *SANITIZERS)], capture_output=True, text=True, check=True)
    expected = [hashlib.sha256(data[:n]).digest()[:4] for n in range(len(data) + 1)]
    assert printed.stdout.split() == [str(int.from_bytes(digest, "little")) for digest in expected]
