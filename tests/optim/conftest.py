import sys
from pathlib import Path

import pytest
import torch

# Workers import their targets by name, so the helpers of these tests are a module on the path.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_run():
    torch.manual_seed(0)
