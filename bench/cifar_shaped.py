"""Write generated pictures as the files of CIFAR-10's binary version.

    python bench/cifar_shaped.py FOLDER [--images 5000]

With them every command runs as it does on CIFAR-10, published options included, where CIFAR-10 is
not at hand: `make demo-cifar-shaped`. The pictures are of ten shapes, drawn as `--data shapes`.
"""

import argparse
from pathlib import Path

import torch

from mim4dd.distill.data.readers.shapes import draw_shapes
from mim4dd.distill.files.atomic import write_atomically

_CLASSES = 10
_BATCHES = 5  # files of training images


def write_batch(path: Path, num_images: int, seed: int) -> None:
    """Records of a label and 3072 pixels, all red ones first."""
    labels = torch.arange(num_images) % _CLASSES
    pixels = draw_shapes(labels, 32, seed).flatten(1)
    records = torch.cat([labels.to(torch.uint8)[:, None], pixels], dim=1)
    write_atomically(path, records.numpy().tobytes())


def main() -> None:
    """Write five training batches, a test batch and the names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=5000, help="training images in all")
    arguments = parser.parse_args()
    root = arguments.folder / "cifar-10-batches-bin"
    for number in range(1, _BATCHES + 1):
        path = root / f"data_batch_{number}.bin"
        write_batch(path, arguments.images // _BATCHES, seed=number)
    write_batch(root / "test_batch.bin", arguments.images // _BATCHES, seed=0)
    names = "\n".join(f"shape_{label}" for label in range(_CLASSES))
    write_atomically(root / "batches.meta.txt", names.encode())


if __name__ == "__main__":
    main()
