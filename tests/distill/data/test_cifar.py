"""CIFAR-10 and CIFAR-100 as their archives hold them, and pickles that are up to something."""

import pickle
import struct

import numpy as np
import pytest
import torch
from labelled_images import CIFAR, assert_holds, random_bytes

from mim4dd.distill.data import load_data
from mim4dd.distill.files.plain_pickle import load_plain_pickle


def python_2(value):
    """The opcodes by which Python 2 and NumPy 1 pickled the archives' files, in protocol 2."""
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()  # SHORT_BINSTRING
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)  # BININT
    if isinstance(value, list):
        return b"](" + b"".join(map(python_2, value)) + b"e"  # EMPTY_LIST MARK … APPENDS
    if isinstance(value, dict):
        items = b"".join(python_2(key) + python_2(item) for key, item in value.items())
        return b"}(" + items + b"u"  # EMPTY_DICT MARK … SETITEMS
    shape = b"".join(map(python_2, value.shape))
    content = value.contiguous().numpy().tobytes()
    new = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    byte = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + 2 * python_2(-1) + b"K\x00tb"
    state = b"(K\x01(" + shape + b"t" + byte + b"\x89T" + struct.pack("<i", len(content)) + content
    return new + state + b"tb"


def dump_python_2(value):
    return b"\x80\x02" + python_2(value) + b"."


def dump_python_3(value):
    """As people write such files today."""
    if isinstance(value.get("data"), torch.Tensor):
        value = value | {"data": value["data"].numpy()}
    return pickle.dumps(value, protocol=2)


def dump_column_major(value):
    if isinstance(value.get("data"), torch.Tensor):
        value = value | {"data": np.asfortranarray(value["data"].numpy())}
    return pickle.dumps(value, protocol=4)


def as_bytes(value):
    """What pickle.load(file, encoding="bytes") makes of the strings of the archive."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return [as_bytes(item) for item in value]
    if isinstance(value, dict):
        return {as_bytes(key): as_bytes(item) for key, item in value.items()}
    return value


def dump_again(protocol):
    """As who has read the archive's files by Python 3 writes them again."""

    def dump(value):
        if isinstance(value.get("data"), torch.Tensor):
            value = value | {"data": value["data"].numpy(), "batch_label": ""}
        return pickle.dumps(as_bytes(value), protocol=protocol)

    return dump


DUMPS = [
    dump_python_2,
    dump_python_3,
    dump_column_major,
    *map(dump_again, range(pickle.HIGHEST_PROTOCOL + 1)),
]
NAMES_10 = [f"class{label}" for label in range(10)]
NAMES_100 = [f"fine{label}" for label in range(100)]


def write_cifar10(folder, dump=dump_python_2):
    """What the training and the test part hold."""
    folder.mkdir()
    (folder / "batches.meta").write_bytes(dump({"label_names": NAMES_10, "num_vis": 3072}))
    parts = []
    for file in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        images, labels = random_bytes(12, 3, 32, 32), [label % 10 for label in range(3, 15)]
        batch = {"batch_label": "a batch", "labels": labels, "data": images.flatten(1)}
        (folder / file).write_bytes(dump(batch | {"filenames": ["a.png"] * 12}))
        parts.append((images, labels))
    return (torch.cat([images for images, _ in parts[:5]]), parts[0][1] * 5), parts[5]


def write_cifar100(folder, dump=dump_python_2):
    folder.mkdir()
    names = {"fine_label_names": NAMES_100, "coarse_label_names": ["coarse"] * 20}
    (folder / "meta").write_bytes(dump(names))
    parts = []
    for file, count in (("train", 200), ("test", 7)):
        images, labels = random_bytes(count, 3, 32, 32), [label % 100 for label in range(count)]
        batch = {"coarse_labels": [0] * count, "fine_labels": labels, "data": images.flatten(1)}
        (folder / file).write_bytes(dump(batch))
        parts.append((images, labels))
    return parts


@pytest.mark.parametrize("dump", DUMPS)
def test_python_version(dump, tmp_path):
    parts = write_cifar10(tmp_path / "cifar-10-batches-py", dump)
    data = load_data("cifar10", data_path=tmp_path)
    assert_holds(data, *parts, *CIFAR)
    assert data.class_names == tuple(NAMES_10)
    parts = write_cifar100(tmp_path / "cifar-100-python", dump)
    data = load_data("cifar100", data_path=tmp_path)
    assert_holds(data, *parts, *CIFAR)  # of CIFAR-10: the field's
    assert data.class_names == tuple(NAMES_100)


def records(images, *labels):
    """One byte for each label, then the pixels, image after image."""
    columns = [torch.tensor(column, dtype=torch.uint8)[:, None] for column in labels]
    return torch.cat([*columns, images.flatten(1)], 1).numpy().tobytes()


def write_binary(root):
    """CIFAR-10's parts, CIFAR-100's parts."""
    ten, hundred = root / "cifar-10-batches-bin", root / "cifar-100-binary"
    ten.mkdir()
    hundred.mkdir()
    (ten / "batches.meta.txt").write_text("\n".join(NAMES_10) + "\n\n")
    (hundred / "fine_label_names.txt").write_text("\n".join(NAMES_100) + "\n")
    batches = [(random_bytes(10, 3, 32, 32), list(range(10))) for _ in range(6)]
    for number, batch in enumerate(batches[:5], 1):
        (ten / f"data_batch_{number}.bin").write_bytes(records(*batch))
    (ten / "test_batch.bin").write_bytes(records(*batches[5]))
    fine = [(random_bytes(100, 3, 32, 32), list(range(100))) for _ in range(2)]
    for file, (images, labels) in zip(("train.bin", "test.bin"), fine, strict=True):
        (hundred / file).write_bytes(records(images, [19] * 100, labels))
    train = torch.cat([images for images, _ in batches[:5]]), list(range(10)) * 5
    return (train, batches[5]), fine


def test_binary_version(tmp_path):
    ten, hundred = write_binary(tmp_path)
    data = load_data("cifar10", data_path=tmp_path)
    assert_holds(data, *ten, *CIFAR)
    assert data.class_names == tuple(NAMES_10)
    data = load_data("cifar100", data_path=tmp_path)
    assert_holds(data, *hundred, *CIFAR)
    assert data.class_names == tuple(NAMES_100)


def test_missing_files(tmp_path):
    for name, folders in (
        ("cifar10", r"cifar-10-batches-py \(or cifar-10-batches-bin\)"),
        ("cifar100", r"cifar-100-python \(or cifar-100-binary\)"),
    ):
        url = r"https://www\.cs\.toronto\.edu/~kriz/cifar-10+-python\.tar\.gz$"
        with pytest.raises(ValueError, match=rf"{folders} is missing: {name} expects .*{url}"):
            load_data(name, data_path=tmp_path)
    write_binary(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_4\.bin is missing.*cifar-10-binary\.tar\.gz"):
        load_data("cifar10", data_path=tmp_path)
    write_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "batches.meta").unlink()
    with pytest.raises(ValueError, match=r"batches\.meta is missing.*cifar-10-python\.tar\.gz"):
        load_data("cifar10", data_path=tmp_path)


@pytest.mark.parametrize("archive", ["python.tar.gz", "python.tar", "binary.tar.gz"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_an_archive_that_lies_beside_is_named(name, archive, tmp_path):
    path = tmp_path / f"{name.replace('cifar', 'cifar-')}-{archive}"
    path.write_bytes(b"")
    (tmp_path / f"unrelated-{archive}").write_bytes(b"")
    message = rf"missing: {name} .*; {path} is there: unpack or move it, so that cifar-\S+ exists$"
    with pytest.raises(ValueError, match=message) as error:
        load_data(name, data_path=tmp_path)
    assert str(error.value).count("is there") == 1


def test_bad_binary_files(tmp_path):
    write_binary(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    for content in (path.read_bytes()[:-1], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"data_batch_2\.bin is truncated or foreign: .* 3073"):
            load_data("cifar10", data_path=tmp_path)


PIXELS = torch.zeros(2, 3072, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": [0, 1]}, r"must hold 'data', an array of bytes \(N, 3072\)"),
        ({"data": PIXELS[:, 1:], "labels": [0, 1]}, "must hold 'data', an array of bytes"),
        ({"data": PIXELS}, "must hold 'labels', a list of integers"),
        ({"data": PIXELS, "labels": ["0", "1"]}, "must hold 'labels', a list of integers"),
        ({"data": PIXELS, "labels": [0]}, "must hold as many labels as images, got 1"),
    ],
)
def test_foreign_batches(batch, message, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder)
    (folder / "data_batch_3").write_bytes(dump_python_2(batch))
    with pytest.raises(ValueError, match=message):
        load_data("cifar10", data_path=tmp_path)


class Attack:
    """A pickle of it calls a function with an argument of the attacker's choice."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_cannot_run_code(protocol, tmp_path):
    import os

    victim, file = tmp_path / "touched", tmp_path / "data_batch_1"
    for function, argument in (
        (os.mkdir, str(victim)),
        (eval, f"__import__('os').mkdir({str(victim)!r})"),
        (np.memmap, str(victim)),
        (getattr, "data"),
        (bytearray, 7),
    ):
        content = pickle.dumps({"data": Attack(function, argument)}, protocol=protocol)
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"data_batch_1 is truncated or not a plain pickle: it ask"
        ):
            load_plain_pickle(file)
        assert not victim.exists()
    # The same pickle does what it says where nothing holds it back.
    file.write_bytes(pickle.dumps(Attack(os.mkdir, str(victim)), protocol=protocol))
    pickle.loads(file.read_bytes())
    assert victim.exists()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3), np.int64),
        np.array([print, None]),
        np.zeros(3, "u1,u1"),
        np.zeros((0, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array, tmp_path):
    file = tmp_path / "batch"
    file.write_bytes(pickle.dumps({"data": array}, protocol=2))
    with pytest.raises(ValueError, match="batch is truncated or not a plain pickle"):
        load_plain_pickle(file)


def test_forged_arrays_are_refused(tmp_path):
    file = tmp_path / "batch"
    honest = dump_python_2({"data": PIXELS[:, :8]})
    file.write_bytes(honest)
    assert load_plain_pickle(file)["data"].tolist() == PIXELS[:, :8].tolist()
    rows, columns = python_2(2), python_2(8)
    for forged in (python_2(3) + columns, python_2(-2) + python_2(-8), rows + columns + rows):
        content = honest.replace(rows + columns, forged)
        assert content != honest
        file.write_bytes(content)
        with pytest.raises(ValueError, match="batch is truncated or not a plain pickle"):
            load_plain_pickle(file)


def test_every_truncation_of_a_pickle_is_refused(tmp_path):
    file = tmp_path / "batch"
    content = dump_python_2({"labels": [1, 2], "data": PIXELS[:, :8]})
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="batch is truncated or not a plain pickle"):
            load_plain_pickle(file)
    file.write_bytes(dump_python_2([1, 2]))
    with pytest.raises(ValueError, match="batch must hold a dictionary, got list"):
        load_plain_pickle(file)
