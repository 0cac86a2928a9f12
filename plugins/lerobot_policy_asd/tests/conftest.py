"""The plug-in is tested from its folder, installed or not, with the law tests of asd-policy's core."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent
sys.path[:0] = map(str, [TESTS.parent, TESTS, TESTS.parents[2] / "tests" / "core"])
