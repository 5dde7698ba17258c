"""The floor: the least a Python program can do between LSL and ZeroMQ. No checks, no bins, no gaps, no clock.

    python tools/bench_floor.py STEP.onnx SOURCE_ID ENDPOINT

A frame is f64 stamp, f64 t_in, f64 t_out (LSL seconds), then the step's factors in float32.
"""

import struct
import sys

import numpy as np
import onnxruntime
import pylsl
import zmq

path, source_id, endpoint = sys.argv[1:]

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
shapes = {node.name: node.shape for node in session.get_inputs()}
feed = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
feed["observed"][:] = 1.0

publisher = zmq.Context().socket(zmq.PUB)
publisher.setsockopt(zmq.LINGER, 0)
publisher.bind(endpoint)

(info,) = pylsl.resolve_byprop("source_id", source_id, timeout=30)
inlet = pylsl.StreamInlet(info, max_buflen=10, max_chunklen=1)
chunk = np.zeros((64, shapes["x"][1]), np.float32)
while True:
    _, stamps = inlet.pull_chunk(timeout=1.0, max_samples=64, min_samples=1, dest_obj=chunk)
    t_in = pylsl.local_clock()
    for i, stamp in enumerate(stamps):
        feed["x"][:] = chunk[i]
        feed["state"], factors = session.run(["state_out", "factors"], feed)
        t_out = pylsl.local_clock()
        publisher.send(struct.pack("<ddd", stamp, t_in, t_out) + factors.tobytes())
