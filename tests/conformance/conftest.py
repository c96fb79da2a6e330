"""`integrations` is run from the checkout and belongs to no installed package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
