"""Plain PyTorch networks to train: what the peers run, with nothing of ours in it."""

from torch import Tensor, nn


class ConvNet(nn.Sequential):
    """MTT's ConvNet with instance norm; its parameters are in the order of ours."""

    def __init__(self, width: int, image_size: int, depth: int = 3, num_classes: int = 10) -> None:
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [
                nn.Conv2d(3 if block == 0 else width, width, 3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
        pixels = (image_size >> depth) ** 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(width * pixels, num_classes))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 16), channels)


class _Residual(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            _group_norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            _group_norm(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), _group_norm(width)
            )

    def forward(self, images: Tensor) -> Tensor:
        return (self.body(images) + self.shortcut(images)).relu()


class ResNet18(nn.Sequential):
    """For small images: a 3×3 stem, no pooling before the end, group norm of 16 channels."""

    def __init__(self, width: int, num_classes: int = 10) -> None:
        blocks, channels = [], width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(_Residual(channels, width << stage, stride))
                channels = width << stage
        super().__init__(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            _group_norm(width),
            nn.ReLU(inplace=True),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, num_classes),
        )
