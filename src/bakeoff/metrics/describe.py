"""From answers to scores: find the study's metric, check its options, score item by item.

Stands between the metrics and ``evaluate``. ``find`` turns what a study file names into a
``Metric``; ``items`` runs one over answers, and whatever goes wrong on an item is an error that
names the item.
"""

from __future__ import annotations

from bakeoff.metrics.load import FOLDER, Source, describe, digest, load
from bakeoff.metrics.run import Metric, MetricError

__all__ = ["FOLDER", "Metric", "MetricError", "Source", "describe", "digest", "load"]
