"""Judges of a chain of thought: does it give a value away, and is it valid? One interface, three kinds.

`RulesJudge` applies rules, offline. `AskingJudge` asks a language model, on a server (`Endpoint`) or on this machine
(`judging.LocalModel`); `Consultation` sends its questions, keeps the replies and counts the tokens.
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
