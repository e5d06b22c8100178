"""Where kernels are tested: compiled on a GPU if there is one, else on the CPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# `pytest -m gpu` runs these as well, where they are compiled. The interpreter's numpy warns of what where() leaves out.
MARKS = [pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"), *([pytest.mark.gpu] if ON_GPU else [])]
