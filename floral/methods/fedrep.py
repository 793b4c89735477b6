"""FedRep (arXiv 2102.07078): a shared body and a head of each client's own, trained one after the other."""

from dataclasses import replace

from floral.core.spec import Method, Phase, Problem
from floral.methods import fedper


def build(problem: Problem, *, head_epochs: int) -> Method:
    """First `head_epochs` epochs on the PRIVATE head with the body held, then the task's epochs on the SHARED body with
    the head held. The head is the last linear layer, as in FedPer.

    With a body of rate 0 it is FedPer with such a body, `head_epochs` in place of the task's epochs; with a head of
    rate 0 it is FedPer with such a head. Running statistics are the body's, and follow the batches of both phases. The
    paper's head takes 10 epochs to the body's 1; the default of 1 here costs a client twice FedAvg's samples where the
    task has one epoch.

    Raises:
        Refused: the model has no layer before its last.
    """
    phases = (Phase(train=("head",), epochs=head_epochs), Phase(train=("base",)))
    return replace(fedper.build(problem), phases=phases)
