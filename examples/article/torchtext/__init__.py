"""A small stand-in for torchtext, which is no longer maintained: only what the article's listing uses."""
