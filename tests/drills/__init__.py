"""Fault drills: a whole fleet of real processes under live calls and messages, while its parts are broken on purpose.

`python -m tests.drills` runs them at full length and prints one table; `test_drills.py` runs each of them short.
"""
