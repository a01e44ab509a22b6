"""The service under kills, faults and stalls: real processes, a child that does no work to speak of.

`python -m tests.chaos` runs everything at full length and prints a table; `test_chaos.py` is its short form.
"""
