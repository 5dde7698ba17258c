"""A control program: says what it receives, a line of JSON each, and asks the daemon for its status when told to."""

import json
import sys
import threading

from rtdsae.client import Control, Subscriber
from rtdsae.errors import RtdsaeError


def say(**what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def answer(control):
    for _ in sys.stdin:
        try:
            say(status=dict(control.status()))
        except RtdsaeError as error:
            say(refused=str(error))


def main(latents, control, keys=None):
    with (
        Control(control, keys=keys, timeout_s=2) as asking,
        Subscriber(latents, keys=keys, timeout_s=0.5) as subscriber,
    ):
        threading.Thread(target=answer, args=(asking,), daemon=True).start()
        while True:
            message = subscriber.receive()
            if message is None:
                say(silent=subscriber.why_silent())
                continue
            times = {"t_bin": message.t_bin, "behind_s": message.t_out - message.t_bin}
            account = {"holes": subscriber.holes, "restarts": subscriber.restarts}
            say(seq=message.seq, flags=int(message.flags), factors=message["factors"].tolist(), **times, **account)


if __name__ == "__main__":
    main(*sys.argv[1:])
