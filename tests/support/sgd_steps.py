"""Something that happens in the middle of a training: before a step of SGD, by its number."""

import torch


def acting_at(number, act):
    """SGD's step, which calls ``act`` before it is taken for the ``number``-th time, and its calls.

    With 0 it only notes them.
    """
    step, calls = torch.optim.SGD.step, []

    def noted(*arguments):
        calls.append(None)
        if len(calls) == number:
            act()
        return step(*arguments)

    return noted, calls
