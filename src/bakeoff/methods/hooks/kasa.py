"""KaSA: PEFT's config attaches it, its two regularisation terms are left to the training loop."""

from bakeoff.methods.hook import PenaltyHook


class KaSA(PenaltyHook):
    """Adds the paper's L2 and orthogonality terms (arXiv 2412.06071, eq. 9-12)."""

    term = "_get_kasa_loss"


HOOK = KaSA
