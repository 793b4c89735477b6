"""FedRep (arXiv 2102.07078): a shared body and a private head per client, trained one after the other."""

from dataclasses import replace

from floral.core.spec import Method, Phase, Problem
from floral.methods import fedper


def build(problem: Problem, *, head_epochs: int) -> Method:
    """FedRep: a client trains its private head first, then the shared body.

    The PRIVATE head trains for `head_epochs` epochs while the body is fixed. Then the SHARED body trains for the task's
    epochs while the head is fixed. The head is the last linear layer, as in FedPer.

    Limiting cases: if the learning rate of the body is 0, this equals FedPer with a body of learning rate 0 and
    `head_epochs` in place of the task's epochs. If the learning rate of the head is 0, it equals FedPer with a head of
    learning rate 0.

    Costs: with one epoch for the head and one for the body, a client processes twice as many samples as in FedAvg.

    Raises:
        Refused: the model has no layer before its head.
    """
    phases = (Phase(train=("head",), epochs=head_epochs), Phase(train=("base",)))
    return replace(fedper.build(problem), phases=phases)
