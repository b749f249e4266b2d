"""Metrics and judges: they read transcripts and never run a model."""

from rmuse_interp.evaluate.judges import Judge, RulesJudge
from rmuse_interp.evaluate.metrics import Metric
from rmuse_interp.evaluate.recovery import attack_scores
from rmuse_interp.evaluate.scores import measure, score, transcribe

__all__ = ["Judge", "Metric", "RulesJudge", "attack_scores", "measure", "score", "transcribe"]
