"""Lets the tests of this folder import `killable`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
