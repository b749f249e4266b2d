"""Judges of a chain of thought: does it give a value away, is it valid. One interface; the offline one goes by rules."""

from rmuse_interp.evaluate.judges.cases import ChainCase, Judge, LeakCase, Verdict
from rmuse_interp.evaluate.judges.rules import CONTENT_AGREEMENT, RulesJudge

__all__ = ["CONTENT_AGREEMENT", "ChainCase", "Judge", "LeakCase", "RulesJudge", "Verdict"]
