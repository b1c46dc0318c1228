"""Real images that are chosen to stand for all: baselines beside random ones."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.data.byte_images import taken
from mim4dd.distill.data.per_class import PerClass, class_counts, rows_of_classes
from mim4dd.distill.evaluation.recipe import Accuracy, Evaluation, evaluate, trained_network
from mim4dd.distill.training.features import embedding_read
from mim4dd.distill.training.passes import pass_size

__all__ = ["CORESETS", "choose_coresets", "evaluate_coresets", "herding", "k_centre", "least_el2n"]

# Of one class: features (N, D), errors (N,), how many; which rows, in the order of their choice.
Choice = Callable[[Tensor, Tensor, int], Tensor]


def herding(features: Tensor, errors: Tensor, count: int) -> Tensor:
    """One sample after another, each so that the mean of those chosen comes nearest to all's.

    Args:
        features: Of the samples of one class. (N, D)
        errors: Not used. (N,)
        count: How many to choose, at most N.

    Returns:
        Rows, in the order of their choice. (count,)

    Example:
        >>> import torch
        >>> from mim4dd.distill.evaluation.coresets import herding
        >>> herding(torch.tensor([[0.0], [1.0], [5.0]]), torch.zeros(3), 2)
        tensor([1, 2])

    References:
        Welling. Herding dynamical weights to learn. ICML 2009; for images as in iCaRL,
        arXiv:1611.07725.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    chosen = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    rows = []
    for number in range(1, count + 1):
        distances = ((total + features) / number - mean).square().sum(1)
        row = distances.masked_fill(chosen, torch.inf).argmin()
        chosen[row] = True
        total = total + features[row]
        rows.append(row)
    return torch.stack(rows)


def k_centre(features: Tensor, errors: Tensor, count: int) -> Tensor:
    """The sample nearest to the mean, then always the one farthest from all that are chosen.

    Args and returns as of :func:`herding`.

    Example:
        >>> import torch
        >>> from mim4dd.distill.evaluation.coresets import k_centre
        >>> k_centre(torch.tensor([[0.0], [1.0], [5.0]]), torch.zeros(3), 2)
        tensor([1, 2])

    References:
        Sener, Savarese. Active Learning for Convolutional Neural Networks: A Core-Set Approach.
        arXiv:1708.00489, Alg. 1; the start as in DC's comparison.
    """
    rows = [(features - features.mean(0)).square().sum(1).argmin()]
    nearest = torch.full_like(features[:, 0], torch.inf)
    for _ in range(count - 1):
        nearest = nearest.minimum((features - features[rows[-1]]).square().sum(1))
        nearest[rows[-1]] = -torch.inf  # so that equal samples do not come twice
        rows.append(nearest.argmax())
    return torch.stack(rows)


def least_el2n(features: Tensor, errors: Tensor, count: int) -> Tensor:
    """Those whose error, the length of softmax minus label, is least: the typical ones.

    EL2N was made to drop easy samples of a large set. Of a few per class the hardest are outliers,
    with which no network learns anything, so here the easiest are taken.

    Args and returns as of :func:`herding`.

    References:
        Paul, Ganguli, Dziugaite. Deep Learning on a Data Diet. arXiv:2107.07075.
    """
    return errors.argsort(stable=True)[:count]


CORESETS: Mapping[str, Choice] = MappingProxyType(
    {"herding": herding, "k-centre": k_centre, "EL2N": least_el2n}
)


def choose_coresets(
    look: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    data: ImageData,
    ipc: PerClass,
    choices: Mapping[str, Choice] = CORESETS,
) -> dict[str, tuple[Tensor, Tensor]]:
    """``ipc`` training images of every class, and their labels, ordered by class; by each choice.

    ``look`` gives features and errors of the rows of a class, the memory of which is all that is
    taken at a time.
    """
    chosen: dict[str, list[Tensor]] = {name: [] for name in choices}
    counts = class_counts(ipc, data.num_classes)
    classes = rows_of_classes(data.label_train, data.num_classes)
    for label, (count, members) in enumerate(zip(counts, classes, strict=True)):
        features, errors = look(members, label)
        for name, choice in choices.items():
            chosen[name].append(members[choice(features, errors, count)])
    together = {name: torch.cat(rows) for name, rows in chosen.items()}
    return {
        name: (data.image_train[rows], data.label_train[rows]) for name, rows in together.items()
    }


def evaluate_coresets(
    make_network: Callable[[], nn.Module],
    ipc: PerClass,
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
    *,
    num_tests: int = 1,
) -> dict[str, Accuracy]:
    """As :func:`~mim4dd.distill.evaluation.evaluate`, on each of ``CORESETS``.

    They are chosen by what one network makes of the training images that was trained on all of
    them, as the first one of :func:`~mim4dd.distill.evaluation.evaluate_full` is.

    Args:
        make_network: Makes a freshly initialised network with a linear layer at its end.
        ipc: Images per class, a number for all or one for each.
        lr: Step size of all networks.
        data: Where training and test images come from.
        evaluation: The recipe.
        num_tests: As of :func:`~mim4dd.distill.evaluation.evaluate`.

    Raises:
        ValueError: If a class has fewer images, or the network no linear layer.

    Example:
        >>> from torch import nn
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.evaluation import Evaluation, evaluate_coresets
        >>> recipe = Evaluation(num_eval=1, eval_epochs=5, eval_dsa_strategy="none")
        >>> make_network = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> len(evaluate_coresets(make_network, 1, 0.01, load_data("digits"), recipe))
        3
    """
    data.require(ipc)
    whole, seed = (data.image_train, data.label_train), evaluation.eval_seed
    num_images = sum(class_counts(ipc, data.num_classes))
    teacher = trained_network(make_network, *whole, seed, lr, evaluation, num_images)
    look = partial(_look, teacher.eval(), data)
    return {
        name: evaluate(make_network, *chosen, lr, data, evaluation, num_tests=num_tests)
        for name, chosen in choose_coresets(look, data, ipc).items()
    }


@torch.no_grad()
def _look(network: nn.Module, data: ImageData, rows: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Embeddings of training images of a class (n, D), and their EL2N (n,)."""
    parts = rows.split(pass_size(data.image_train))
    with embedding_read(network) as read:
        logits = torch.cat([network(part) for part in taken(data.image_train, parts)])
    truth = torch.zeros_like(logits)
    truth[:, label] = 1
    return torch.cat(read), (logits.softmax(1) - truth).norm(dim=1)
