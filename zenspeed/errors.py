"""The one error for what a user can put right."""


class InputError(ValueError):
    """What the user gave cannot be used. The message names the value, the place and the fix; the command line exits with 2."""
