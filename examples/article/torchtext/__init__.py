"""A small stand-in for torchtext, which is no longer maintained: what the article's listing uses, over zenspeed's own parts."""
