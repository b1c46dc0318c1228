"""Random images of a few classes, and the field's normalisation written out."""

import torch

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CIFAR = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])


def make_images(per_class=10, num_classes=3, size=6, channels=1):
    labels = torch.arange(num_classes).repeat(per_class)
    return torch.rand(len(labels), channels, size, size), labels


def random_bytes(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


def assert_holds(data, train, test, mean, std):
    """The images and labels, normalised as the field does: bytes over 255, − mean, / std."""
    for images, labels, (expected, expected_labels) in (
        (data.image_train, data.label_train, train),
        (data.image_test, data.label_test, test),
    ):
        pixels = expected.double() / 255
        normalized = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        torch.testing.assert_close(images.double(), normalized, atol=1e-5, rtol=1e-5)
        assert labels.tolist() == list(expected_labels)
