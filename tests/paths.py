"""Where things are."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"  # not part of the repository
