"""The process that atheris has to itself: `python -m tests.fuzz.guided TARGET`, and libFuzzer's own arguments.

atheris is no dependency of the project: tests/fuzz/driving.py comes here only where it is installed.
"""

import sys

import atheris

with atheris.instrument_imports(include=["relay", "fanout"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]].check)
    atheris.Fuzz()
