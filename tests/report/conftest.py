import sys
from pathlib import Path

# The example manifest stands beside these tests; under importlib mode their folder is on no path.
sys.path.insert(0, str(Path(__file__).parent))
