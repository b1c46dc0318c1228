"""The oldest and smallest network of the cross-architecture tables."""

from torch import Tensor, nn

from mim4dd.distill.networks._layers import check_image_size, check_images, check_sizes
from mim4dd.distill.networks.registry import network
from mim4dd.distill.registry import NoSettings

__all__ = ["LeNet"]


class LeNet(nn.Module):
    """LeNet: two blocks of a 5 × 5 convolution, ReLU, max pooling; then three linear maps.

    Parameters come in the order of MTT's LeNet. As there, the first maps are of 28 pixels: images
    of 28 are padded, images of 32 not. Below 28 pixels, where the field has no LeNet, both
    convolutions keep the size of their maps.

    Args:
        num_classes: Number of classes C.
        channels: Channels of the images.
        image_size: Height and width of the images, in pixels; at least 4.

    Raises:
        ValueError: If a size is not positive, or the image is too small.

    Example:
        >>> import torch
        >>> from mim4dd.distill.networks import LeNet
        >>> LeNet(num_classes=10, channels=1, image_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    References:
        LeCun, Bottou, Bengio, Haffner. Gradient-Based Learning Applied to Document Recognition.
        1998; with ReLU and max pooling as in the code of DC and MTT.
    """

    def __init__(self, num_classes: int, channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, channels=channels)
        check_image_size("LeNet", image_size, 4)
        self.channels, self.image_size = channels, image_size
        size, before, stages = image_size, channels, []
        for width, keeps_size in ((6, image_size < 32), (16, image_size < 28)):
            padding = 2 if keeps_size else 0
            stages.append(
                nn.Sequential(
                    nn.Conv2d(before, width, kernel_size=5, padding=padding),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                )
            )
            size, before = (size + 2 * padding - 4) // 2, width
        self.stages = nn.Sequential(*stages)
        self.hidden = nn.Sequential(
            nn.Sequential(nn.Linear(16 * size * size, 120), nn.ReLU()),
            nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
        )
        self.classifier = nn.Linear(84, num_classes)

    @property
    def feature_layers(self) -> list[str]:
        """Names of the submodules whose outputs are the features of the layers, early to late."""
        return ["stages.0", "stages.1", "hidden.0", "hidden.1"]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, channels, image_size, image_size)."""
        check_images(images, self.channels, self.image_size)
        return self.classifier(self.hidden(self.stages(images).flatten(1)))


@network("lenet", title="LeNet")
def _make(num_classes: int, channels: int, image_size: int, _settings: NoSettings) -> LeNet:
    return LeNet(num_classes, channels, image_size)
