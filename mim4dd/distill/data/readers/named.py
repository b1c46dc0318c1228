"""Data sets by name."""

from pathlib import Path

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.readers.elsewhere import ELSEWHERE, load_elsewhere
from mim4dd.distill.data.readers.folder import from_folder
from mim4dd.distill.data.registry import DATA_SETS
from mim4dd.distill.files.regular import naming

__all__ = ["load_data"]


def load_data(
    source: str,
    image_size: int | None = None,
    zca: bool = False,
    data_path: str | Path = "data",
    *,
    keep_bytes: bool = False,
    stream: bool = False,
    download: bool = False,
) -> ImageData:
    """Load a data set by name or path.

    Args:
        source: ``"digits"`` (scikit-learn's 1,797 real handwritten digits of 8 × 8 pixels),
            ``"wine"`` or ``"breast_cancer"`` (its rows of measurements), ``"shapes"`` (generated),
            a data set that lies in ``data_path`` (``"cifar10"``, …; docs/data.md has them all and
            which files each expects), or a folder of images, see :func:`from_folder`;
            ``"torchvision:NAME"`` or ``"hf:NAME"`` for what these libraries read.
        image_size: Height and width to resize the images of a folder or of an ImageNet subset to,
            or to draw shapes at.
        zca: Whiten by ZCA instead of standardising every channel.
        data_path: Folder of downloaded data sets.
        keep_bytes: Of a folder: keep images as bytes, and normalise samples as they are taken.
        stream: Of a folder: read images as they are taken.
        download: Let torchvision, or Hugging Face, fetch what is missing.

    Raises:
        ValueError: If ``source`` is none of these, a file is missing, or what it holds cannot be
            used.

    Example:
        >>> from mim4dd.distill.data import load_data
        >>> load_data("digits").image_train.shape
        torch.Size([1438, 1, 8, 8])
    """
    if source.partition(":")[0] in ELSEWHERE and ":" in source:
        with naming(source):
            return load_elsewhere(
                source,
                image_size,
                Path(data_path),
                download=download,
                zca=zca,
                keep_bytes=keep_bytes,
                stream=stream,
            )
    if download:
        raise ValueError(
            f"download must be False for {source}: only data of {' and '.join(ELSEWHERE)} are "
            "fetched, as in torchvision:FashionMNIST"
        )
    if source in DATA_SETS:
        if keep_bytes or stream:
            raise ValueError(
                f"{'stream' if stream else 'keep_bytes'} is for folders, and for "
                f"{'' if stream else 'tensors and '}data sets in Python, {source} is "
                "read into float32"
            )
        data_set = DATA_SETS[source]
        if data_set.sized:
            with naming(data_path):
                return data_set.make(Path(data_path), zca, image_size)
        if image_size is not None:
            raise ValueError(f"image_size does not apply to {source}, got {image_size}")
        with naming(data_path):
            return data_set.make(Path(data_path), zca)
    if Path(source).is_dir():
        with naming(source):
            return from_folder(source, image_size, zca, keep_bytes=keep_bytes, stream=stream)
    raise ValueError(
        f"data must be one of {', '.join(DATA_SETS)}, or an existing folder of images, "
        f"got {source!r}"
    )
