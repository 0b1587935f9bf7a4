"""Metrics: how well one prediction fits its reference. ``builtin/`` has one file for each.

A metric module defines

- ``INFO``: name, direction, unit and range (``core.record.MetricInfo``);
- ``TASKS``: the tasks that it can score, ``("classify", "sft", "choice")`` or fewer;
- ``score(prediction, reference, **options) -> float``: the score of one item. The analysis takes
  means, never the metric, so that every difference can be paired by item. Its keyword arguments
  are the metric's options, under ``[task.metric_options]`` of a study file; one without a default
  is required. It raises ``ValueError`` for a reference that no prediction could match;
- ``LATER_OPTIONS``, if it has options that studies of earlier versions do not know: their names.
  They are part of a trial's id only where they are set;
- ``check(**options)``, if options can be invalid: ``ValueError`` says how;
- ``NEEDS``, if it imports a package that bakeoff does not install: ``(package, extra)``.

A metric of losses defines ``score_loss(total, units) -> float`` instead of ``score``: the summed
loss of an item in nats and its number of supervised units; no prediction is made for it.
"""
