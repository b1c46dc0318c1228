"""Folders with one sub-folder of images per class."""

import numpy as np
import pytest
from labelled_images import make_images
from PIL import Image

from mim4dd.distill.data import from_folder, load_data


def write_folder(root, images, labels, names=("ant", "bee", "cat")):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image.permute(1, 2, 0).squeeze(2).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_class_folders(channels, tmp_path):
    images, labels = make_images(channels=channels)
    write_folder(tmp_path, images, labels)
    (tmp_path / ".ipynb_checkpoints").mkdir()  # no class
    data = load_data(str(tmp_path))
    assert data.class_names == ("ant", "bee", "cat")
    assert data.name == tmp_path.name
    assert data.image_train.shape == (24, channels, 6, 6)
    assert load_data(str(tmp_path), image_size=4).image_train.shape == (24, channels, 4, 4)


def test_grey_and_coloured_images_share_a_folder(tmp_path):
    grey, labels = make_images()
    write_folder(tmp_path, grey, labels)
    Image.new("RGB", (6, 6), (255, 0, 0)).save(tmp_path / "ant" / "red.png")
    data = from_folder(tmp_path)
    assert data.channels == 3
    assert len(data.image_train) + len(data.image_test) == 31


def test_deep_images_are_refused(tmp_path):
    images, labels = make_images()
    write_folder(tmp_path, images, labels)
    Image.new("I;16", (6, 6), 40_000).save(tmp_path / "bee" / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png must have 8 bits per channel.*got I;16"):
        from_folder(tmp_path)


def test_a_folder_with_its_own_split(tmp_path):
    images, labels = make_images()
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / "val", images[:6], labels[:6])
    data = from_folder(tmp_path)
    assert (len(data.image_train), len(data.image_test)) == (30, 6)


def write_images(root, paths):
    """Grey images that differ, at paths such as ``train/cat/{0,1}.png train/dog/0.png``."""
    for number, path in enumerate(expand(paths)):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix:
            pixels = np.full((4, 4), 3 * number, np.uint8)
            pixels[0] = 255
            Image.fromarray(pixels).save(file)
        else:
            file.mkdir()


def expand(paths):
    for path in paths.split():
        head, brace, rest = path.partition("{")
        inner, _, tail = rest.partition("}")
        options = inner.split(",") if brace else [""]
        yield from (each for option in options for each in expand_rest(head + option, tail))


def expand_rest(head, tail):
    return expand(head + tail) if "{" in tail else [head + tail]


TRAIN = "{a,b}/{0,1,2,3,4}.png"  # ten images of two classes
TEST = "{a,b}/{0,1}.png"  # four
PAIRS = [
    *[("train", name) for name in ("val", "valid", "validation", "Test", "test_set", "TESTING")],
    *[("train", name) for name in ("dev", "eval", "Evaluation", "val-set", "test data")],
    *[(name, "test") for name in ("Train", "training", "train_set", "Training Set", "trainset")],
    ("train_images", "val_images"),
]


@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_parts_under_any_usual_name(train, test, tmp_path, recwarn):
    write_images(tmp_path / train, TRAIN)
    write_images(tmp_path / test, TEST)
    data = from_folder(tmp_path)
    assert data.class_names == ("a", "b")
    assert (len(data.image_train), len(data.image_test)) == (10, 4)
    assert data.label_test.tolist() == [0, 0, 1, 1]
    assert not recwarn.list


LAYOUTS = {
    "classes": (TRAIN, ("a", "b"), 8, 2),
    "the test part before the validation part": (
        f"train/{TRAIN} val/{TEST} test/{{a,b}}/0.png", ("a", "b"), 10, 2),
    "a training part alone": (f"train/{TRAIN}", ("a", "b"), 8, 2),
    "a class of trains": ("{bus,car,train}/{0,1,2,3,4}.png", ("bus", "car", "train"), 12, 3),
    "a class of trains in a part": (
        "train/{bus,train}/{0,1,2}.png test/{bus,train}/0.png", ("bus", "train"), 6, 2),
    "classes with words of parts in them": (
        "{test_tube,cat}/{0,1,2,3,4}.png", ("cat", "test_tube"), 8, 2),
    "folders in a class": ("{a,b}/{x,y}/{0,1,2,3,4}.png", ("a", "b"), 16, 4),
    "images beside the classes": (f"0.png 1.jpg train/2.png train/{TRAIN} test/{TEST}",
        ("a", "b"), 10, 4),
    "other folders without images": (f"train/{TRAIN} test/{TEST} docs/x/y", ("a", "b"), 10, 4),
    "hidden and stray ones at every level": (
        f"train/{TRAIN} test/{TEST} .git/{{a,b}}/0.png __MACOSX/train/a/0.png ._x.png "
        "train/.ipynb_checkpoints/0.png train/__MACOSX/a/0.png train/a/.ipynb_checkpoints/0.png "
        "train/a/._0.png test/a/.x/y/0.png test/.DS_Store/0.png test/@eaDir/a/0.png",
        ("a", "b"), 10, 4),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path, recwarn):
    paths, class_names, num_train, num_test = LAYOUTS[layout]
    write_images(tmp_path, paths)
    for name in ("Thumbs.db", "desktop.ini", "labels.csv"):
        (tmp_path / name).write_text("")
    data = from_folder(tmp_path)
    assert data.class_names == class_names
    assert (len(data.image_train), len(data.image_test)) == (num_train, num_test)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("paths", "num_test", "left_out"),
    [
        (f"train/{TRAIN} val/{TEST} test/{{0,1,2}}.png", 4, "test"),
        (f"train/{TRAIN} val/{TEST} test/images/{{0,1,2}}.png", 4, "test"),
        (f"train/{TRAIN} val/{TEST} test/x", 4, "test"),
        (f"train/{TRAIN} test/{TEST} testing/{{0,1,2}}.png", 4, "testing"),
        (f"train/{TRAIN} Test/{{0,1,2}}.png", 2, "Test"),  # and a fifth is held out
        (f"train/{TRAIN} valid/{{0,1,2}}.png", 2, "valid"),
    ],
)
def test_a_part_without_classes_is_left_out_with_a_word(paths, num_test, left_out, tmp_path):
    write_images(tmp_path, paths)
    with pytest.warns(UserWarning, match=f"/{left_out} is left out: it has no sub-folders of the"):
        data = from_folder(tmp_path)
    assert data.class_names == ("a", "b")
    assert len(data.image_test) == num_test


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("{cat,dog,test}/{0,1}.png", "holds test, which are named like parts, beside cat, dog"),
        ("{cat,dog,train,val}/{0,1}.png", "holds train, val, .* beside cat, dog"),
        (f"train/{TRAIN} cat/0.png", "holds train, which .* beside cat"),
        (f"{{train,Training}}/{TRAIN} test/{TEST}", "one part to train on.*Training, test, train"),
        (f"train/{TRAIN} {{test,test_set}}/{TEST}", "one part to test on, got test, test_set"),
        (f"train/{TRAIN} {{val,valid}}/{TEST}", "one part to test on, got val, valid"),
        (f"{{val,test}}/{TEST}", "must hold one part to train on, such as train, it holds test"),
        (f"{{images_train,images_test}}/{TRAIN}", "cannot be told which images_test, images_train"),
        ("{train,test}/{0,1}.png", r"train must hold one sub-folder of images per class.*got \[\]"),
        ("{a,b}/{train,test}/{0,1}.png", r"a must hold images of one class, .*parts test, train"),
        ("train/{a,b}/{train,val}/{0,1}.png", "must hold images of one class"),
        (f"train/{TRAIN} test/{TEST} test/c/0.png", r"test and not train has \['c'\]"),
        (f"train/{TRAIN} test/{{A,b}}/0.png", r"test and not train has \['A'\]"),
        (f"train/{TRAIN} train/c/0.png test/{TEST}", r"train and not test has \['c'\]"),
        (f"train/{TRAIN} train/c test/{TEST} test/c", "class 'c' must have at least one image"),
    ],
)
def test_layouts_that_are_refused(paths, message, tmp_path):
    write_images(tmp_path, paths)
    with pytest.raises(ValueError, match=message):
        from_folder(tmp_path)


def test_images_that_are_not_square_name_the_cure(tmp_path):
    write_images(tmp_path, TRAIN)
    for file in tmp_path.rglob("*.png"):
        Image.new("L", (9, 6)).save(file)
    with pytest.raises(ValueError, match=r"0\.png has 9 × 6 pixels: image_size \(--image-size\)"):
        from_folder(tmp_path)


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="one sub-folder of images per class"):
        load_data(str(tmp_path))
    write_folder(tmp_path, *make_images())
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="class 'dog' must have at least one image"):
        load_data(str(tmp_path))
    (tmp_path / "dog" / "0.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image"):
        load_data(str(tmp_path))
    Image.new("L", (9, 9)).save(tmp_path / "dog" / "0.png")
    with pytest.raises(ValueError, match="all images must have one size"):
        load_data(str(tmp_path))


def test_images_are_found_in_the_order_of_their_paths(tmp_path):
    """Whatever lies beside them, and through links to files but not to folders."""
    from mim4dd.distill.data.readers.image_files import image_files

    write_images(tmp_path, "b/0.png b-c/1.png b/a/2.PNG 3.png")
    write_images(tmp_path, ".hidden/4.png b/__MACOSX/5.png ._6.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "z.png").symlink_to(tmp_path / "3.png")
    (tmp_path / "again").symlink_to(tmp_path / "b")
    expected = [tmp_path / name for name in ("3.png", "b/0.png", "b/a/2.PNG", "b-c/1.png", "z.png")]
    assert image_files(tmp_path) == expected == sorted(expected)
    assert image_files(tmp_path / "again") == [tmp_path / "again" / "0.png",
                                               tmp_path / "again" / "a" / "2.PNG"]  # fmt: skip
    assert image_files(tmp_path / "nowhere") == []
