"""Real images that are chosen to stand for all: baselines beside random ones."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.data.per_class import PerClass, class_counts
from mim4dd.distill.evaluation.recipe import Accuracy, Evaluation, evaluate, trained_network
from mim4dd.distill.training.features import embedding_read
from mim4dd.distill.training.passes import in_passes

__all__ = ["CORESETS", "choose_coreset", "evaluate_coresets", "herding", "k_centre", "least_el2n"]

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


def choose_coreset(
    choice: Choice, features: Tensor, errors: Tensor, data: ImageData, ipc: PerClass
) -> tuple[Tensor, Tensor]:
    """``ipc`` training images of every class, and their labels, ordered by class."""
    rows = []
    for label, count in enumerate(class_counts(ipc, data.num_classes)):
        members = torch.where(data.label_train == label)[0]
        rows.append(members[choice(features[members], errors[members], count)])
    chosen = torch.cat(rows)
    return data.image_train[chosen], data.label_train[chosen]


def evaluate_coresets(
    make_network: Callable[[], nn.Module],
    ipc: PerClass,
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
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

    Raises:
        ValueError: If a class has fewer images, or the network no linear layer.
    """
    data.require(ipc)
    whole, seed = (data.image_train, data.label_train), evaluation.eval_seed
    num_images = sum(class_counts(ipc, data.num_classes))
    teacher = trained_network(make_network, *whole, seed, lr, evaluation, num_images)
    features, errors = _looked_at(teacher.eval(), data)
    found = {}
    for name, choice in CORESETS.items():
        chosen = choose_coreset(choice, features, errors, data, ipc)
        found[name] = evaluate(make_network, *chosen, lr, data, evaluation)
    return found


@torch.no_grad()
def _looked_at(network: nn.Module, data: ImageData) -> tuple[Tensor, Tensor]:
    """Embeddings of the training images (N, D), and their EL2N (N,)."""
    with embedding_read(network) as read:
        logits = torch.cat([network(part) for part in in_passes(data.image_train)])
    truth = F.one_hot(data.label_train, data.num_classes).to(logits)
    return torch.cat(read), (logits.softmax(1) - truth).norm(dim=1)
