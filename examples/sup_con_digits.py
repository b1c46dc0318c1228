"""Train an encoder by supervised contrastive learning, and classify by its nearest neighbours.

    python examples/sup_con_digits.py

Data: scikit-learn's 1,797 handwritten digits, a fifth of them held out.
"""

import torch
from torch import nn

import mim4dd
from mim4dd.distill.data import load_data


def main() -> tuple[float, float]:
    """Accuracy of the nearest neighbour before training and after it."""
    torch.manual_seed(0)
    data = load_data("digits")
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    criterion = mim4dd.SupConLoss(temperature=0.1, normalize=True)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)

    def accuracy() -> float:
        with torch.no_grad():
            train = nn.functional.normalize(encoder(data.image_train))
            test = nn.functional.normalize(encoder(data.image_test))
        nearest = (test @ train.T).argmax(1)
        return (data.label_train[nearest] == data.label_test).float().mean().item()

    before = accuracy()
    for _ in range(100):
        rows = torch.randperm(len(data.image_train))[:512]
        features, labels = encoder(data.image_train[rows]), data.label_train[rows]
        loss = criterion(features, features, labels, labels, exclude_self=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, accuracy()


if __name__ == "__main__":
    before, after = main()
    print(f"nearest neighbour in 8 features: {before:.1%} before training, {after:.1%} after")
