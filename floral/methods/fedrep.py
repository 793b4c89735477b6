"""FedRep (arXiv 2102.07078): a shared body and a private head per client, trained one after the other."""

from dataclasses import replace

from floral.core.spec import Method, Phase, Problem
from floral.methods import fedper


def build(problem: Problem, *, head_epochs: int) -> Method:
    """FedRep: train the private head first, then the shared body.

    A client trains the PRIVATE head for `head_epochs` epochs with a fixed body. Then it trains the SHARED body for the
    task's epochs with a fixed head. The head is the last linear layer, as in FedPer.

    Limiting cases: with a body of learning rate 0 it is FedPer with such a body, with `head_epochs` in place of the
    task's epochs. With a head of learning rate 0 it is FedPer with such a head.

    Running statistics belong to the body and follow the batches of both phases. In the paper the head trains for 10
    epochs and the body for 1. With the default of 1 here, a client processes twice as many samples as in FedAvg if the
    task has one epoch.

    Raises:
        Refused: the model has no layer before its head.
    """
    phases = (Phase(train=("head",), epochs=head_epochs), Phase(train=("base",)))
    return replace(fedper.build(problem), phases=phases)
