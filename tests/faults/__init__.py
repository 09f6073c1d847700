"""Faults that a run meets: what is promised of each stands in docs/reliability.md."""
