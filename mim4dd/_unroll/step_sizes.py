"""Step sizes by step, and by parameter tensor or parameter."""

import torch
from torch import Tensor


class StepSizes:
    """η_t for every step t, from a tensor that broadcasts to (T, 1), (T, L) or (T, P).

    L is the number of parameter tensors, P that of parameters. The 1-d shapes (T,), (L,) and (P,)
    are shorthands for (T, 1), (1, L) and (1, P).

    Raises:
        ValueError: If ``lr`` has none of these shapes, or fits two of them.
    """

    def __init__(self, lr: Tensor, num_steps: int, sizes: list[int]) -> None:
        self.table = lr.detach().view(_table_shape(lr, num_steps, sizes))
        self.sizes = sizes
        self.num_parameters = sum(sizes)

    def at(self, step: int) -> Tensor:
        """η_t: (), or (P,) where parameters differ."""
        row = self.table[step if len(self.table) > 1 else 0]
        if len(row) == 1:
            return row[0]
        if len(row) == self.num_parameters:
            return row
        repeats = torch.tensor(self.sizes, device=row.device)
        return row.repeat_interleave(repeats, output_size=self.num_parameters)

    def add_gradient(self, total: Tensor, step: int, gradient: Tensor) -> None:
        """Add ∂L/∂η_t, of the shape of :meth:`at`, to ``total``, of the shape of ``table``."""
        row = total[step if len(total) > 1 else 0]
        if len(row) not in (1, self.num_parameters):
            gradient = torch.stack([part.sum() for part in gradient.split(self.sizes)])
        row += gradient


def _table_shape(lr: Tensor, num_steps: int, sizes: list[int]) -> tuple[int, int]:
    num_tensors, num_parameters = len(sizes), sum(sizes)
    if lr.dim() == 0:
        return 1, 1
    if lr.dim() == 2:
        rows, columns = lr.shape
        if rows in (1, num_steps) and columns in (1, num_tensors, num_parameters):
            return rows, columns
    fitting = {(num_steps, 1), (1, num_tensors), (1, num_parameters)}
    shapes = [shape for shape in fitting if lr.dim() == 1 and len(lr) == shape[0] * shape[1]]
    if len(shapes) > 1:
        raise ValueError(
            f"lr of shape {tuple(lr.shape)} is ambiguous with T = {num_steps} steps, L = "
            f"{num_tensors} parameter tensors and P = {num_parameters} parameters: give it the "
            "shape (T, 1), (1, L) or (1, P)"
        )
    if not shapes:
        raise ValueError(
            f"lr must be (), (T,) = ({num_steps},), (L,) = ({num_tensors},), (P,) = "
            f"({num_parameters},), or broadcast to (T, 1), (T, L) or (T, P), "
            f"got shape {tuple(lr.shape)}"
        )
    return shapes[0]
