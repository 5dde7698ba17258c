"""LSL on loopback for the whole session, children included: set before anything imports pylsl."""

import os
from pathlib import Path

os.environ["LSLAPICFG"] = str(Path(__file__).parent.parent / "configs" / "lsl_loopback.cfg")
