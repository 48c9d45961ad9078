"""Paired statistics, verdicts on claims, costs. Usable alone: no torch, no other room.

`docs/statistics.md` says what is computed, with formulae and measured coverage.
"""

from fastvim.analysis.claims import Claim, load_claims
from fastvim.analysis.contrasts import contrasts
from fastvim.analysis.ledger import ledger
from fastvim.analysis.paired import Comparison, compare_variants, paired_comparison

__all__ = [
    "Claim",
    "Comparison",
    "compare_variants",
    "contrasts",
    "ledger",
    "load_claims",
    "paired_comparison",
]
