"""The subsets of ImageNet that the field distils, from ILSVRC 2012's class folders.

The classes and their order are those of MTT's ``utils.py``, so that labels of others fit.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.readers.downloaded import missing_file
from mim4dd.distill.data.readers.image_files import image_files, read_squares
from mim4dd.distill.data.registry import data_set
from mim4dd.distill.data.standard import from_standard

__all__ = ["IMAGENET_SUBSETS", "load_imagenet_subset"]

_URL = "https://image-net.org/download.php (ILSVRC 2012, val sorted into class folders as well)"
_DEFAULT_SIZE = 128  # the field's

IMAGENET_SUBSETS = {
    "imagenette": {
        "n01440764": "tench",
        "n02102040": "English springer",
        "n02979186": "cassette player",
        "n03000684": "chain saw",
        "n03028079": "church",
        "n03394916": "French horn",
        "n03417042": "garbage truck",
        "n03425413": "gas pump",
        "n03445777": "golf ball",
        "n03888257": "parachute",
    },
    "imagewoof": {
        "n02096294": "Australian terrier",
        "n02093754": "Border terrier",
        "n02111889": "Samoyed",
        "n02088364": "beagle",
        "n02086240": "Shih-Tzu",
        "n02089973": "English foxhound",
        "n02087394": "Rhodesian ridgeback",
        "n02115641": "dingo",
        "n02099601": "golden retriever",
        "n02105641": "Old English sheepdog",
    },
    "imagemeow": {
        "n02123045": "tabby",
        "n02123159": "tiger cat",
        "n02123394": "Persian cat",
        "n02123597": "Siamese cat",
        "n02124075": "Egyptian cat",
        "n02129165": "lion",
        "n02129604": "tiger",
        "n02128925": "jaguar",
        "n02128757": "snow leopard",
        "n02127052": "lynx",
    },
    "imagesquawk": {
        "n01806143": "peacock",
        "n02007558": "flamingo",
        "n01818515": "macaw",
        "n02051845": "pelican",
        "n02056570": "king penguin",
        "n01614925": "bald eagle",
        "n01843383": "toucan",
        "n01518878": "ostrich",
        "n01860187": "black swan",
        "n01819313": "sulphur-crested cockatoo",
    },
    "imagefruit": {
        "n07753275": "pineapple",
        "n07753592": "banana",
        "n07745940": "strawberry",
        "n07747607": "orange",
        "n07749582": "lemon",
        "n07768694": "pomegranate",
        "n07753113": "fig",
        "n07720875": "bell pepper",
        "n07718472": "cucumber",
        "n07742313": "Granny Smith",
    },
    "imageyellow": {
        "n02206856": "bee",
        "n12057211": "yellow lady's slipper",
        "n07753592": "banana",
        "n07749582": "lemon",
        "n12144580": "corn",
        "n04146614": "school bus",
        "n03530642": "honeycomb",
        "n02129165": "lion",
        "n01773157": "black and gold garden spider",
        "n01531178": "goldfinch",
    },
}


def load_imagenet_subset(
    name: str, data_path: Path, zca: bool, image_size: int | None
) -> ImageData:
    """A subset from ``data_path/train/<wnid>``, its test part from ``data_path/val/<wnid>``.

    The shorter side is resized to ``image_size``, by default 128, and the middle cut out.
    """
    size = _DEFAULT_SIZE if image_size is None else image_size
    train, test = (_read(data_path / part, name, size) for part in ("train", "val"))
    return from_standard(name, train, test, list(IMAGENET_SUBSETS[name].values()), zca)


def _read(folder: Path, name: str, size: int) -> tuple[Tensor, Tensor]:
    files, labels = [], []
    for label, wnid in enumerate(IMAGENET_SUBSETS[name]):
        images = image_files(folder / wnid)
        if not images:
            raise missing_file(folder / wnid / "*.JPEG", name, _URL)
        files += images
        labels += [label] * len(images)
    return read_squares(files, size, f"{name} {folder.name}"), torch.tensor(labels)


for _name in IMAGENET_SUBSETS:
    data_set(_name, sized=True)(partial(load_imagenet_subset, _name))
