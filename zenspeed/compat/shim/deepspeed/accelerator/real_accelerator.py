"""The same module under its longer name."""

import sys

from zenspeed.compat import accelerator

sys.modules[__name__] = accelerator
