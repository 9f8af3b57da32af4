"""Puts the three scripts on the path of the tests."""

import os
import sys
from pathlib import Path

os.environ.pop("MPLBACKEND", None)  # a notebook's, which may not be installed here
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ff_cifar_locally_connected  # noqa: F401  before numpy, as a user should
