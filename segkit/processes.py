"""Which of several processes this is."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """True in the process that writes and tells; launchers number the others in the environment."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
