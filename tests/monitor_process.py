"""`rtdsae monitor` in a process of its own, and its page's WebSocket."""

import contextlib
import re
import signal
import subprocess
import sys

from websockets.sync.client import connect

RTDSAE = [sys.executable, "-m", "rtdsae", "monitor"]


class Monitor:
    """Runs with these arguments until the block ends.

    Attributes:
        pages: what shuts the pages that are open: before the monitor goes, which cuts off what they still load.
    """

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [*RTDSAE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.said)
        assert found, self.process.communicate(timeout=20)
        self.address, self.port = found[0], int(found[1])
        self.pages = contextlib.ExitStack()

    def page(self, **options):
        """A WebSocket as the page opens it."""
        return connect(f"ws://127.0.0.1:{self.port}/feed", **{"origin": self.address, "proxy": None, **options})

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        said = self.process.communicate(timeout=20)
        return self.process.returncode, said

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.pages.close()
        self.process.kill()
        with contextlib.suppress(ValueError):
            self.process.communicate(timeout=20)
