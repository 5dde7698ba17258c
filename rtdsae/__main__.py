"""`python -m rtdsae`, the same as `rtdsae`."""

import sys

from rtdsae.cli import main

sys.exit(main())
