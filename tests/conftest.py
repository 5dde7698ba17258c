"""LSL on loopback for the whole session, children included: set before anything imports pylsl."""

import os
import tempfile
from pathlib import Path

LSL_CONFIG = """\
[multicast]
ResolveScope = machine
Interfaces = {127.0.0.1}
[lab]
KnownPeers = {127.0.0.1}
[tuning]
UnicastMinRTT = 0.05
MulticastMinRTT = 0.05
[log]
level = -2
"""

_folder = tempfile.TemporaryDirectory(prefix="rtdsae-tests-")
_config = Path(_folder.name) / "lsl_api.cfg"
_config.write_text(LSL_CONFIG)
os.environ["LSLAPICFG"] = str(_config)
