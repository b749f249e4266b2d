"""Trained baselines for comparison: unlearning by gradient steps or pruning.

`peft` is imported where a baseline is trained or opened, not with this package.
"""

from rmuse_interp.baselines.methods import BASELINES, Baseline
from rmuse_interp.baselines.relearning import relearned
from rmuse_interp.baselines.store import open_baseline
from rmuse_interp.baselines.training import Trained, train
from rmuse_interp.baselines.trials import Trial

__all__ = ["BASELINES", "Baseline", "Trained", "Trial", "open_baseline", "relearned", "train"]
