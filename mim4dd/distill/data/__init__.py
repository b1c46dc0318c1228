"""Data sets: where they come from, their split, their normalisation."""

from mim4dd.distill.data.datasets import from_dataset
from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.readers.folder import from_folder
from mim4dd.distill.data.readers.named import load_data
from mim4dd.distill.data.registry import DATA_SETS, data_set
from mim4dd.distill.data.tensors import from_tensors

__all__ = [
    "DATA_SETS",
    "ImageData",
    "data_set",
    "from_dataset",
    "from_folder",
    "from_tensors",
    "load_data",
]
