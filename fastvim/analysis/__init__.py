"""Paired statistics, verdicts on claims, costs."""
