"""Which folders of a folder of images are classes, which are its parts, and which are neither."""

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from mim4dd.distill.data.readers.image_files import has_images, subfolders

__all__ = ["find_parts"]

_TRAIN = ("train", "training")
_TEST = ("test", "testing")
_VALIDATION = ("val", "valid", "validation", "dev", "eval", "evaluation")
_NOUNS = ("set", "data", "images", "split")


def find_parts(root: Path) -> tuple[list[str], list[Path]]:
    """Names of the classes, in alphabetical order, and the one or two folders that hold them.

    The second, if there is one, is the test part: a folder ``test``, or else ``val``, beside
    ``train``, under any usual name of these. A warning names a part that has no class folders.

    Raises:
        ValueError: If it cannot be told which folders are classes, there are fewer than two, or the
            test part has others than the training part.
    """
    if not root.is_dir():
        raise ValueError(f"{root} must be a folder of images")
    folders = subfolders(root)
    train, test, validation = (_named(folders, names) for names in (_TRAIN, _TEST, _VALIDATION))
    parts = [*train, *test, *validation]
    others = [each for each in folders if each not in parts and has_images(each)]
    if others and parts == train and not any(map(_labelled, train)):
        parts = []  # a class of trains: nobody has images without labels to train on
    if not parts:
        _refuse_compound_names(root, folders)
        return _class_names(root), [root]
    if others:
        raise ValueError(
            f"{root} must hold either classes or parts, it holds {_names(parts)}, which are named "
            f"like parts, beside {_names(others)}. Move the classes into a folder named train"
        )
    if len(train) != 1:
        raise ValueError(
            f"{root} must hold one part to train on, such as train, it holds {_names(parts)}"
        )
    class_names = _class_names(train[0])
    for candidates in (test, validation):
        usable = [part for part in candidates if _is_of_classes(part, class_names)]
        if len(usable) > 1:
            raise ValueError(f"{root} must hold one part to test on, got {_names(usable)}")
        if usable:
            _require_same_classes(train[0], usable[0], class_names)
            return class_names, [train[0], usable[0]]
    return class_names, train


def _named(folders: Iterable[Path], names: Sequence[str]) -> list[Path]:
    """The folders of these names, in any case, and with or without a noun such as in test_set."""
    pattern = re.compile(f"({'|'.join(names)})({'|'.join(_NOUNS)})?")
    return [each for each in folders if pattern.fullmatch(re.sub(r"[\W_]", "", each.name.lower()))]


def _refuse_compound_names(root: Path, folders: Sequence[Path]) -> None:
    """Refuse parts under names that are not usual, such as images_train beside images_test."""
    words = [set(re.split(r"[\W_\d]+", folder.name.lower())) for folder in folders]
    tested = {*_TEST, *_VALIDATION}
    if (
        any(each & {*_TRAIN} for each in words)
        and any(each & tested for each in words)
        and all(each & {*_TRAIN, *tested} for each in words)
    ):
        raise ValueError(
            f"{root} must hold either classes or parts, and it cannot be told which "
            f"{_names(folders)} are: call parts train and test"
        )


def _labelled(folder: Path) -> bool:
    """Whether images lie in sub-folders of it."""
    return any(map(has_images, subfolders(folder)))


def _class_names(folder: Path) -> list[str]:
    classes = subfolders(folder)
    if len(classes) < 2:
        raise ValueError(
            f"{folder} must hold one sub-folder of images per class, at least 2, "
            f"got {[each.name for each in classes]}"
        )
    for each in classes:
        inner = subfolders(each)
        if _named(inner, _TRAIN) and _named(inner, (*_TEST, *_VALIDATION)):
            raise ValueError(
                f"{each} must hold images of one class, it holds the parts {_names(inner)}: parts "
                f"must lie above the classes, as in train/{each.name}"
            )
    return [each.name for each in classes]


def _is_of_classes(part: Path, class_names: Sequence[str]) -> bool:
    """Whether a part is sorted into classes; a warning says so where it is not."""
    inner = [each.name for each in subfolders(part) if has_images(each)]
    if len(inner) > 1 or set(inner) & set(class_names):
        return True
    warnings.warn(f"{part} is left out: it has no sub-folders of the classes", stacklevel=4)
    return False


def _require_same_classes(train: Path, test: Path, class_names: Sequence[str]) -> None:
    found = {each.name for each in subfolders(test)}
    for what, names in (
        (f"{test.name} and not {train.name}", sorted(found - set(class_names))),
        (f"{train.name} and not {test.name}", sorted(set(class_names) - found)),
    ):
        if names:
            raise ValueError(
                f"{train.parent} must have the same classes in both parts, {what} has {names}"
            )


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(sorted(folder.name for folder in folders))
