"""Models, declared as data (presets.py) and built from one configurable Transformer (transformer.py)."""
