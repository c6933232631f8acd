"""Parameters that are cut over ranks."""

import sys

from zenspeed.compat import zero

sys.modules[__name__] = zero
