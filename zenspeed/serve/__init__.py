"""Serving: a run or a folder behind an HTTP interface.

http.py ─ limits.py ─ deploy.py (models, versions, canary) ─ process.py ═ one process a version ═ worker.py
    ─ batching.py (many requests, one step) ─ kernel.cpp through native.py, or any model through plain.py
"""
