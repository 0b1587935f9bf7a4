"""Set the learning rate of modules of the base that methods train as a whole, the same for each.

``modules_to_save`` and ``trainable_token_indices`` of a method's arguments train embeddings or
output layers of the base in full. An adapter's rate is far too large for them, and the method with
the largest rate would change them most.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bakeoff.core.format import format_learning_rate
from bakeoff.core.trial import MethodEntry
from bakeoff.methods import registry
from bakeoff.study.planning.learning_rates import centre_rate
from bakeoff.study.setup.defaults import Choices, with_task

SAVED_ARGUMENTS = ("modules_to_save", "trainable_token_indices")
"""Arguments of PEFT that train parts of the base beside an adapter."""
KEY = "saved_learning_rate"


def set_saved_rate(
    choices: Choices, entries: Sequence[MethodEntry], parameters: int | None, started: bool
) -> Choices:
    """Return the choices with the rate of saved modules: that of full fine-tuning on this base.

    They are unchanged if the study states the rate or was ``started`` before, or if no method
    trains such modules.
    """
    saving = [e.title for e in entries if any(e.config.get(name) for name in SAVED_ARGUMENTS)]
    if started or choices.spec.task.saved_learning_rate is not None or not saving:
        return choices
    rate = centre_rate(registry.load("full", Path()), parameters).learning_rate
    note = (
        f"{format_learning_rate(rate)}: of the modules of the base that {', '.join(saving)} also "
        "trains; that of full fine-tuning"
    )
    spec = with_task(choices.spec, saved_learning_rate=rate)
    return choices._replace(spec=spec, notes={**choices.notes, KEY: note})
