"""XDF files for tests, written chunk by chunk as the format's description has them."""

import struct
from xml.sax.saxutils import escape

import numpy as np

BOUNDARY = bytes.fromhex("43a546dccbf5410fb30ed5467383cbe4")
FORMATS = {"float32": "<f4", "double64": "<f8", "int16": "<i2", "int32": "<i4", "int8": "<i1", "int64": "<i8"}


def length(n, size=4):
    return bytes([size]) + n.to_bytes(size, "little")


def chunk(tag, content):
    return length(len(content) + 2) + struct.pack("<H", tag) + content


class XdfFile:
    """`add` streams, then `write`. Each has its samples in chunks of a few, as LabRecorder has them."""

    def __init__(self):
        self.chunks = [chunk(1, b'<?xml version="1.0"?><info><version>1.0</version></info>')]
        self.n = 0

    def add(
        self,
        name,
        values,
        stamps,
        *,
        rate=0.0,
        type="Spikes",
        fmt="float32",
        labels=(),
        spike_labels=(),
        bin_width_s=None,
        source_id="",
        offsets=(),
        per_chunk=7,
        stamped=None,
    ):
        """`offsets`: (time, value) of the clock; `stamped`: which samples carry their stamp, all where None."""
        self.n += 1
        sid = struct.pack("<I", self.n)
        n_channels = len(values[0]) if fmt == "string" else np.shape(values)[1]
        desc = self.channels("channels", labels) + self.channels("spike_channels", spike_labels)
        if bin_width_s is not None:
            desc += f"<bin_width_s>{bin_width_s!r}</bin_width_s>"
        header = (
            f"<info><name>{escape(name)}</name><type>{type}</type><channel_count>{n_channels}</channel_count>"
            f"<nominal_srate>{rate!r}</nominal_srate><channel_format>{fmt}</channel_format>"
            f"<source_id>{source_id}</source_id><desc>{desc}</desc></info>"
        )
        self.chunks.append(chunk(2, sid + header.encode()))
        for time, value in offsets:
            self.chunks.append(chunk(4, sid + struct.pack("<dd", time, value)))
        for at in range(0, len(stamps), per_chunk):
            rows = range(at, min(at + per_chunk, len(stamps)))
            content = b"".join(self.sample(values[i], stamps[i], fmt, stamped is None or stamped[i]) for i in rows)
            self.chunks.append(chunk(3, sid + length(len(rows), 1 if len(rows) < 256 else 4) + content))
        self.chunks.append(chunk(5, BOUNDARY))
        self.chunks.append(chunk(6, sid + f"<info><sample_count>{len(stamps)}</sample_count></info>".encode()))
        return self

    @staticmethod
    def channels(name, labels):
        inner = "".join(f"<channel><label>{escape(label)}</label></channel>" for label in labels)
        return f"<{name}>{inner}</{name}>" if labels else ""

    @staticmethod
    def sample(row, stamp, fmt, stamped):
        head = b"\x08" + struct.pack("<d", stamp) if stamped else b"\x00"
        if fmt == "string":
            return head + b"".join(length(len(text.encode()), 1) + text.encode() for text in row)
        return head + np.asarray(row, FORMATS[fmt]).tobytes()

    def bytes(self):
        return b"XDF:" + b"".join(self.chunks)

    def write(self, path):
        path.write_bytes(self.bytes())
        return path
