"""A long life in little time: spans open and close, workers join and leave, the collector comes and goes.

``python -m soak --minutes 30`` in ``tests/``; CI runs a short one.
"""
