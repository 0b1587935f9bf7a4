"""Looks at a study's results after each round of replicates, and the verdicts that they give."""

from bakeoff.analysis.rounds.comparisons import compare_again, compare_rounds
from bakeoff.analysis.rounds.look import ContenderLook, Look
from bakeoff.analysis.rounds.looks import run_looks
from bakeoff.analysis.rounds.plan import RoundsPlan, again_alpha, rule_hash

__all__ = [
    "ContenderLook",
    "Look",
    "RoundsPlan",
    "again_alpha",
    "compare_again",
    "compare_rounds",
    "rule_hash",
    "run_looks",
]
