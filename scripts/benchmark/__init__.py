"""The benchmark: every method and training-free rival on several kinds of data (``make
benchmark``), and docs/benchmark.md, which is made from what has been measured.
"""
