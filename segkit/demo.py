"""The main job on real MRI: train, score and predict with what an install brings along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from segkit.config import read_config
from segkit.experiment import train_experiment
from segkit.inference.predictor import Predictor
from segkit.metrics.scores import Scores
from segkit.parts import open_masks, open_part
from segkit.shipped import find_config


def run_demo(out: Path, data: Path, *, tell: Callable[[str], None], progress: Any) -> Scores:
    """Train on slices of the MNI152 head, score the held-out slices, predict them into `out`/predictions."""
    config = read_config(find_config(Path("mni152_multiclass_unet")), [f"data.root={data}"])
    tell("MNI152: average T1 of 152 heads; gray and white matter, axial slices, real data from the nilearn package")
    scores = train_experiment(config, out, tell=tell, progress=progress)
    test = open_part(config, "test", open_masks(config))
    predictor = Predictor(out, device=config.train.device)
    with progress("predicting") as update:
        report = predictor.predict_files([test.images], out / "predictions", overlay=True, progress=update)
    tell(f"predicted masks:  {out / 'predictions'} ({report.done} slices)")
    tell(f"overlays:         {out / 'predictions' / '_overlay'}")
    tell(f"pictures:         {out / 'pictures'} (image, truth, prediction)")
    tell(f"model (bundle):   {out / 'model'}")
    tell("Try next:")
    tell(f"  segkit predict {out} YOUR_IMAGES --out predictions --overlay")
    tell(f"  segkit evaluate --predictions {out / 'predictions'} --masks {test.masks} --config {out / 'config.yaml'}")
    tell("  segkit init dsb2018_binary_unet     a config to start from with your own images and masks")
    return scores
