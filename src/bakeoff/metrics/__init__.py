"""Metrics: one small file each.

A metric module gives ``INFO`` (name, direction, unit, range) and
``score(predictions, references) -> one float per item``. Averaging is analysis' work, never the
metric's, so that every difference can be paired by item.
"""
