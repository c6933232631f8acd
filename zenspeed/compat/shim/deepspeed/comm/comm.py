"""The same module under its longer name."""

import sys

from zenspeed.compat import comm

sys.modules[__name__] = comm
