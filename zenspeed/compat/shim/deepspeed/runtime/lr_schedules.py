"""Schedules."""

import sys

from zenspeed.compat import lr_schedules

sys.modules[__name__] = lr_schedules
