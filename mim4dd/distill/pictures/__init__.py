"""Pictures of runs: images, rows, soft labels, curves, and what a network makes of them."""

from mim4dd.distill.pictures.by_ipc import draw_accuracy_by_ipc
from mim4dd.distill.pictures.curves import draw_curves, save_curves
from mim4dd.distill.pictures.embedding import draw_embedding
from mim4dd.distill.pictures.evolution import save_evolution
from mim4dd.distill.pictures.grid import draw_grid, save_grid
from mim4dd.distill.pictures.heat_maps import draw_rows, draw_soft_labels
from mim4dd.distill.pictures.similarity import class_similarity, draw_similarity
from mim4dd.distill.pictures.style import save_figure

__all__ = [
    "class_similarity",
    "draw_accuracy_by_ipc",
    "draw_curves",
    "draw_embedding",
    "draw_grid",
    "draw_rows",
    "draw_similarity",
    "draw_soft_labels",
    "save_curves",
    "save_evolution",
    "save_figure",
    "save_grid",
]
