"""What a lab does to a running daemon, for the latency benchmark: requests, scrapes and 50 subscribers.

    python tools/bench_company.py CONTROL METRICS PUB

Thirty requests a second (status, a page of history, and an anchor, which is a line in the daemon's log), a scrape of
HOST:PORT a second, and subscribers that keep only the newest message, so that they cost the daemon what any do and this
computer little. Says `ready` when all of it has worked, and ends when its standard input does.
"""

import select
import sys
import time
import urllib.request

import zmq

from rtdsae.client import Control
from rtdsae.errors import RtdsaeError

control_endpoint, metrics, pub = sys.argv[1:]
context = zmq.Context()
subscribers = [context.socket(zmq.SUB) for _ in range(50)]
for subscriber in subscribers:
    subscriber.setsockopt(zmq.CONFLATE, 1)
    subscriber.subscribe(b"latents\0")
    subscriber.connect(pub)

rounds, scraped, ready, ended = 0, 0, False, False
with Control(control_endpoint) as control:
    while not ended:
        try:
            bins = control.status()["bins"]
            control.history(max(0, bins - 50), bins)
            control.anchor()
            rounds += 1
            if rounds % 10 == 0:
                scraped += bool(urllib.request.urlopen(f"http://{metrics}/metrics", timeout=2).read())
        except (RtdsaeError, OSError):  # the daemon begins later and ends first
            time.sleep(0.1)
        if not ready and scraped and all(subscriber.poll(0) for subscriber in subscribers):
            ready = True
            print("ready", flush=True)
        ended = bool(select.select([sys.stdin], [], [], 0.1)[0])
context.destroy(0)
