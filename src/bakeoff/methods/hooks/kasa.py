"""KaSA: attached by PEFT's config; its two regularisation terms are added to the loss."""

from bakeoff.methods.hook import PenaltyHook


class KaSA(PenaltyHook):
    """Adds the paper's L2 and orthogonality terms (arXiv 2412.06071, eq. 9-12)."""

    term = "_get_kasa_loss"


HOOK = KaSA
