"""Chaos tests: the service under kills, faults and stalls, with real processes and a stub child.

`python -m tests.chaos` runs all scenarios at full length; `test_chaos.py` runs them shortened.
"""
