"""The networks of MTT, DC, TESLA, DATM, CAFE and RaT-BPTT: their layers in a table, narrow.

Written anew from what `get_network`, `get_arch` and `networks.py` of their repositories build. What
matters here is the order of their layers, and how they flatten: all but one by ``view``, which
takes no channels-last maps. Where names differ in widths alone, or repeat the same blocks, one
stands for the others.
"""

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn
from torch.nn import functional as F

CLASSES = 3
EPS = 0.1  # maps of few pixels may have a variance so small that 1e-5 blows rounding up
NORMS = {
    "none": lambda *maps: [],
    "batch": lambda channels, *_: [nn.BatchNorm2d(channels, EPS)],
    "layer": lambda *maps: [nn.LayerNorm(maps, EPS)],
    "instance": lambda channels, *_: [nn.GroupNorm(channels, channels, EPS)],
    "group": lambda channels, *_: [nn.GroupNorm(2, channels, EPS)],
}
POOLINGS = {
    "avg": lambda: [nn.AvgPool2d(2, 2)],
    "max": lambda: [nn.MaxPool2d(2, 2)],
    "none": lambda: [],
}


class Swish(nn.Module):
    """As DC writes it."""

    def forward(self, maps):
        return maps * maps.sigmoid()


ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "sigmoid": nn.Sigmoid,
    "leaky": lambda: nn.LeakyReLU(0.01),
    "swish": Swish,
}


class Viewed(nn.Module):
    """Features, ``view``, linear maps; CAFE and RaT-BPTT return what they saw on the way too."""

    def __init__(self, features, sizes, with_features=False, pooling=None):
        super().__init__()
        self.features, self.pooling = nn.Sequential(*features), pooling
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in pairwise([*sizes, CLASSES]))
        self.with_features = with_features

    def see(self, images):
        maps = self.features(images)
        return [maps if self.pooling is None else self.pooling(maps)]

    def forward(self, images):
        seen = self.see(images)
        flat = seen[-1].view(seen[-1].size(0), -1)
        for linear in self.linears[:-1]:
            flat = F.relu(linear(flat))
        logits = self.linears[-1](flat)
        return (logits, [flat, *seen]) if self.with_features else logits


class Sliced(Viewed):
    """CAFE's ConvNet: slices of its Sequential, so that it sees the maps between the blocks."""

    def see(self, images):
        seen = [self.features[:-9](images)]
        for part in (self.features[-9:-5], self.features[-5:-1], self.features[-1:]):
            seen.append(part(seen[-1]))
        return seen


def convnet(
    depth=3, norm="instance", act="relu", pooling="avg", growth=1, ends_in_mean=False, cls=Viewed,
    **options,
):  # fmt: skip
    """Of images of 16 pixels, or 32 where it is deep."""
    layers, before, width, size = [], 3, 4, 16 if depth < 5 else 32
    for _ in range(depth):
        layers += [nn.Conv2d(before, width, 3, padding=1), *NORMS[norm](width, size, size)]
        layers += [ACTIVATIONS[act](), *POOLINGS[pooling]()]
        size //= 1 if pooling == "none" else 2
        before, width = width, growth * width
    if ends_in_mean:
        return cls(layers, [before], pooling=nn.AdaptiveAvgPool2d((1, 1)), **options)
    return cls(layers, [before * size**2], **options)


def mlp(size=8):
    return Viewed([], [3 * size**2, 8, 8])


def lenet(stride=1):
    layers = [nn.Conv2d(3, 2, 5, stride=stride), nn.ReLU(inplace=True), *POOLINGS["max"]()]
    layers += [nn.Conv2d(2, 4, 5), nn.ReLU(inplace=True), *POOLINGS["max"]()]
    return Viewed(layers, [4, 6, 5])


ALEXNET = ((4, 5, True), (6, 5, True), (5, 3, False), (6, 3, False), (6, 3, True))


def alexnet(norm="none", pooling="max", stride=1, **options):
    layers, before = [], 3
    for width, kernel, ends in (
        (4, 5, True),
        (6, 5, True),
        (5, 3, False),
        (6, 3, False),
        (6, 3, True),
    ):
        step = stride if before == 3 else 1
        layers += [nn.Conv2d(before, width, kernel, step, kernel // 2), *NORMS[norm](width)]
        layers += [nn.ReLU(inplace=True), *POOLINGS[pooling if ends else "none"]()]
        before = width
    return Viewed(layers, [6 * 2 * 2], **options)


VGG = {
    11: "1M2M44M88M88M",
    13: "11M22M44M88M88M",
    16: "11M22M444M888M888M",
    19: "11M22M4444M8888M8888M",
}


def vgg(depth, norm="instance", last_stride=1, **options):
    layers, before = [], 3
    for letter in VGG[depth]:
        if letter == "M":
            layers += POOLINGS["max"]()
        else:
            width = int(letter) if norm == "batch" else 2 * int(letter)
            layers += [nn.Conv2d(before, width, 3, padding=1), *NORMS[norm](width)]
            layers.append(nn.ReLU(inplace=True))
            before = width
    layers.append(nn.AvgPool2d(kernel_size=1, stride=last_stride))
    return Viewed(layers, [before], **options)


class Block(nn.Module):
    """BasicBlock and Bottleneck; in the _AP networks an average pooling halves, not the stride."""

    def __init__(self, before, width, stride, norm, bottleneck, by_pooling):
        super().__init__()
        after, self.halving = 4 * width if bottleneck else width, int(bottleneck)
        self.by_pooling = by_pooling and stride > 1
        stride = 1 if by_pooling else stride
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = [before, *[width] * (len(kernels) - 1), after]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for index, (kernel, (old, new)) in enumerate(zip(kernels, pairwise(widths), strict=True)):
            step = stride if index == self.halving else 1
            self.convs.append(nn.Conv2d(old, new, kernel, step, kernel // 2, bias=False))
            self.norms.extend(NORMS[norm](new))
        self.shortcut = nn.Sequential()
        if stride != 1 or self.by_pooling or before != after:
            pooling = POOLINGS["avg"]() if self.by_pooling else []
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, *pooling, *NORMS[norm](after))

    def forward(self, x):
        out = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if index + 1 < len(self.convs):
                out = F.relu(out)
            if index == self.halving and self.by_pooling:
                out = F.avg_pool2d(out, kernel_size=2, stride=2)
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """A stem, four stages of blocks, then, of maps of two pixels, their mean or all of them."""

    def __init__(self, *blocks, norm="instance", bottleneck=False, by_pooling=False, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 3, stride, padding=1, bias=False)
        (self.bn1,) = NORMS[norm](2)
        before, stages = 2, []
        for stage, number in enumerate(blocks):
            for block in range(number):
                step = 2 if stage and not block else 1
                stages.append(Block(before, 2, step, norm, bottleneck, by_pooling))
                before = 8 if bottleneck else 2
        self.blocks = nn.Sequential(*stages)
        self.window = 1 if by_pooling else 2
        self.classifier = nn.Linear(before * (4 if by_pooling else 1), CLASSES)

    def stem(self, images):
        return F.relu(self.bn1(self.conv1(images)))

    def flat(self, maps):
        maps = F.avg_pool2d(maps, self.window)
        return maps.view(maps.size(0), -1)

    def forward(self, images):
        return self.classifier(self.flat(self.blocks(self.stem(images))))


class ResNetImageNet(ResNet):
    """With a strided stem, a max pooling after it, and ``flatten`` in the end."""

    def __init__(self, *blocks):
        super().__init__(*blocks)
        self.conv1 = nn.Conv2d(3, 2, 7, stride=2, padding=3, bias=False)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))

    def stem(self, images):
        return self.maxpool(super().stem(images))

    def flat(self, maps):
        return self.avgpool(maps).flatten(1)


class ResNetWithFeatures(ResNet):
    """As CAFE and RaT-BPTT return them."""

    def forward(self, images):
        maps = self.blocks(self.stem(images))
        flat = self.flat(maps)
        return self.classifier(flat), [flat, maps]


class Network(NamedTuple):
    """How to make it, for which images, and which names of the repositories it stands for."""

    make: Any
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})
    size: int = 16
    names: str = ""

    def build(self):
        return self.make(*self.arguments, **self.options)


NETWORKS = {
    "MLP": Network(mlp, size=8, names="MLP MLP_Tiny"),
    "LeNet": Network(lenet),
    "LeNet_Tiny": Network(lenet, (2,), size=32),
    "AlexNet": Network(alexnet),
    "AlexNet_Tiny": Network(alexnet, (), {"stride": 2}, size=32),
    "AlexNetBN": Network(alexnet, ("batch",)),
    "AlexNet of RaT-BPTT": Network(alexnet, ("instance", "avg"), {"with_features": True}),
    "VGG11": Network(vgg, (11,), size=32),
    "VGG11_Tiny": Network(vgg, (11,), {"last_stride": 2}, size=64),
    "VGG11BN": Network(vgg, (11, "batch"), size=32),
    "VGG11 of RaT-BPTT": Network(vgg, (11,), {"with_features": True}, size=32),
    "VGG13": Network(vgg, (13,), size=32),
    "VGG16": Network(vgg, (16,), size=32),
    "VGG19": Network(vgg, (19,), size=32),
    "ResNet18": Network(ResNet, (2, 2, 2, 2), names="ResNet18 ResNet34"),
    "ResNet18BN": Network(ResNet, (1, 2, 1, 1), {"norm": "batch"}),
    "ResNet18_AP": Network(ResNet, (1, 2, 1, 1), {"by_pooling": True}),
    "ResNet18BN_AP": Network(ResNet, (1, 2, 1, 1), {"norm": "batch", "by_pooling": True}),
    "ResNet18_Tiny": Network(ResNet, (1, 2, 1, 1), {"stride": 2}, size=32),
    "ResNet18BN_Tiny": Network(ResNet, (1, 2, 1, 1), {"norm": "batch", "stride": 2}, size=32),
    "ResNet18 of CAFE and RaT-BPTT": Network(ResNetWithFeatures, (1, 2, 1, 1), {"norm": "batch"}),
    "ResNet50": Network(
        ResNet, (1, 2, 1, 1), {"bottleneck": True}, names="ResNet50 ResNet101 ResNet152"
    ),
    "ResNet50 of RaT-BPTT": Network(
        ResNetWithFeatures,
        (1, 2, 1, 1),
        {"bottleneck": True, "norm": "batch"},
        names="ResNet34, ResNet50, ResNet101 and ResNet152 of RaT-BPTT",
    ),
    "ResNet6ImageNet": Network(
        ResNetImageNet, (1, 1, 1, 1), size=64, names="ResNet6ImageNet ResNet18ImageNet"
    ),
    "ConvNet": Network(
        convnet,
        names="ConvNet ConvNetD3 ConvNetIN ConvNetAR ConvNetAP ConvNetW32 ConvNetW64 ConvNetW128 "
        "ConvNetW256 ConvNetW512 ConvNetW1024",
    ),
    "ConvNetD1": Network(convnet, (1,)),
    "ConvNetD2": Network(convnet, (2,)),
    "ConvNetD4": Network(convnet, (4,)),
    "ConvNetD5": Network(convnet, (5,), size=32, names="ConvNetD5 ConvNetD6 ConvNetD7 ConvNetD8"),
    "ConvNetNN": Network(convnet, (), {"norm": "none"}, names="ConvNetNN ConvNetKIP"),
    "ConvNetBN": Network(convnet, (), {"norm": "batch"}),
    "ConvNetD4BN": Network(convnet, (4,), {"norm": "batch"}),
    "ConvNetLN": Network(convnet, (), {"norm": "layer"}),
    "ConvNetGN": Network(convnet, (), {"norm": "group"}),
    "ConvNetAS": Network(convnet, (), {"act": "sigmoid"}),
    "ConvNetAL": Network(convnet, (), {"act": "leaky"}),
    "ConvNetASwish": Network(convnet, (), {"act": "swish"}),
    "ConvNetASwishBN": Network(convnet, (), {"act": "swish", "norm": "batch"}),
    "ConvNetNP": Network(convnet, (), {"pooling": "none"}),
    "ConvNetMP": Network(convnet, (), {"pooling": "max"}),
    "ConvNetGAP": Network(convnet, (), {"ends_in_mean": True}),
    "ConvNet of CAFE": Network(convnet, (), {"cls": Sliced, "with_features": True}),
    "ConvNet of RaT-BPTT": Network(
        convnet, (), {"with_features": True}, names="convnet and convnet4 of RaT-BPTT"
    ),
    "ConvNet2 of RaT-BPTT": Network(convnet, (), {"growth": 2, "with_features": True}),
}
