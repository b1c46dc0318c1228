"""Learn one step size for each step of a training, by differentiating through it.

python examples/learn_step_size.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import mim4dd
from mim4dd.distill.data import load_data


def main() -> tuple[float, float]:
    """Loss on held-out digits after ten steps, by the first step sizes and by those learned."""
    torch.manual_seed(0)
    data = load_data("digits")
    step_size = mim4dd.PositiveStepSize(0.02, (10,))  # one for each of ten steps
    optimizer = torch.optim.Adam(step_size.parameters(), lr=0.3)
    losses = []
    for _ in range(40):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        theta_T = mim4dd.unroll_sgd(
            network,
            mim4dd.flatten_parameters(network),
            data.image_train,
            data.label_train,
            torch.randint(len(data.image_train), (10, 64)),
            lr=step_size(),
            momentum=0.9,
        )
        weight, bias = theta_T[:640].view(10, 64), theta_T[640:]
        loss = F.cross_entropy(data.image_test.flatten(1) @ weight.T + bias, data.label_test)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses[0], losses[-1]


if __name__ == "__main__":
    before, after = main()
    print(f"loss after ten steps: {before:.2f} with the first step sizes, {after:.2f} learned")
