# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "matplotlib>=3.8.4", "imageio>=2.34", "pillow>=10.1", "pytest>=8"]
# ///
"""Run all tests: `uv run tests/run.py`, or `python3 tests/run.py`, with pytest's flags.

Tests on the real CIFAR-10 run where $HINTON_CIFAR_CACHE is a folder that holds it.
"""

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    tests = Path(__file__).resolve().parent
    sys.exit(pytest.main([str(tests), "--rootdir", str(tests), *sys.argv[1:]]))
