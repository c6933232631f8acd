"""Optimizers under the names scripts know."""

from . import adagrad, adam, lamb, lion  # noqa: F401
