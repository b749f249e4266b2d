"""Judges of a chain of thought: does it give a value away, is it valid. One interface, three kinds.

`RulesJudge` goes by rules, offline. `AskingJudge` asks a language model: a server's (`Endpoint`) or one of this machine
(`judging.LocalModel`); how it asks, keeps replies and counts tokens is `Consultation`'s.
"""

from rmuse_interp.evaluate.judges.asking import AskingJudge
from rmuse_interp.evaluate.judges.cases import ChainCase, Judge, LeakCase, Verdict
from rmuse_interp.evaluate.judges.consulting import Answerer, Budget, Consultation, Quote, Reply, Unreadable
from rmuse_interp.evaluate.judges.endpoint import Endpoint
from rmuse_interp.evaluate.judges.rules import CONTENT_AGREEMENT, RulesJudge

__all__ = [
    "CONTENT_AGREEMENT",
    "Answerer",
    "AskingJudge",
    "Budget",
    "ChainCase",
    "Consultation",
    "Endpoint",
    "Quote",
    "Judge",
    "LeakCase",
    "Reply",
    "RulesJudge",
    "Unreadable",
    "Verdict",
]
