"""Where scripts look for schedules, configs and the engine."""

from . import lr_schedules  # noqa: F401
