"""MonteCLoRA: PEFT samples the weights, the variational term is left to the training loop."""

from bakeoff.methods.hook import Penalised


class MonteCLoRA(Penalised):
    """Adds PEFT's variational term."""

    term = "_get_monteclora_loss"


HOOK = MonteCLoRA
