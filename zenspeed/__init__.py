"""zenspeed: train a language model and put it to use."""

__version__ = "0.1.0"
