"""Former public names still work."""

from __future__ import annotations

import importlib

import bakeoff
from bakeoff.integrations import export_weights, notebook


def test_delivery_module_keeps_old_names() -> None:
    """The module `delivery` maps its old names to `export_weights`."""
    delivery = importlib.import_module("bakeoff.delivery")
    assert delivery is bakeoff.delivery
    assert delivery.deliver is export_weights.export_weights
    assert delivery.Delivered is export_weights.ExportedWeights
    assert delivery.FORMS is export_weights.FORMS


def test_delivery_names_can_be_imported() -> None:
    from bakeoff.delivery import Delivered, deliver  # type: ignore[import-not-found]

    assert (deliver, Delivered) == (export_weights.export_weights, export_weights.ExportedWeights)


def test_comparison_aliases_study_result() -> None:
    """`Comparison` is an alias of `StudyResult`."""
    assert bakeoff.Comparison is bakeoff.StudyResult is notebook.StudyResult
