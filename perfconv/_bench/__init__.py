"""The benchmark suite behind ``perfconv bench``; private: its names may change.

``benchmarks/`` of the repository keeps results files and scripts that start parts of it.
"""
