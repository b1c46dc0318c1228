"""Mend wrong labels by differentiating through training on them.

    python examples/learn_labels.py

Many labels of 200 digits are wrong, and we learn them anew. A network trains for 30 steps on these
labels. The gradient of its loss on 100 clean digits tells how the labels should have been.
"""

import torch
import torch.nn.functional as F
from torch import nn

import mim4dd
from mim4dd.distill.data import load_data


def main() -> tuple[float, float]:
    """Share of right labels before and after."""
    torch.manual_seed(0)
    data = load_data("digits")
    image, label = data.image_train[:200], data.label_train[:200]
    image_clean, label_clean = data.image_train[200:300], data.label_train[200:300]
    wrong = torch.randint(10, (200,))
    given = torch.where(torch.rand(200) < 0.5, wrong, label)

    label_logits = (3.0 * F.one_hot(given, 10).float()).requires_grad_()
    optimizer = torch.optim.Adam([label_logits], lr=0.3)
    for _ in range(30):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        batches = torch.stack([torch.randperm(200)[:50] for _ in range(30)])
        theta_T = mim4dd.unroll_sgd(
            network,
            mim4dd.flatten_parameters(network),
            image,
            label_logits.softmax(1),
            batches,
            lr=0.1,
        )
        weight, bias = theta_T[:640].view(10, 64), theta_T[640:]
        loss = F.cross_entropy(image_clean.flatten(1) @ weight.T + bias, label_clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def share_right(labels: torch.Tensor) -> float:
        return (labels == label).float().mean().item()

    return share_right(given), share_right(label_logits.argmax(1))


if __name__ == "__main__":
    before, after = main()
    print(f"right labels: {before:.0%} as given, {after:.0%} as learned")
