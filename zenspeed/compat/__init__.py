"""Doors for training loops written for other libraries. Adapters: the core knows none of them."""
