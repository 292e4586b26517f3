import sys
from pathlib import Path

# Workers import their targets by name, so the helpers of these tests are a module on the path.
sys.path.insert(0, str(Path(__file__).parent))
