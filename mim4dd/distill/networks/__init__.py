"""The networks of the field, in its variants for small images."""

from mim4dd.distill.networks._layers import Norm, Pooling
from mim4dd.distill.networks.alexnet import AlexNet
from mim4dd.distill.networks.convnet import ConvNet
from mim4dd.distill.networks.lenet import LeNet
from mim4dd.distill.networks.mlp import MLP
from mim4dd.distill.networks.registry import (
    NETWORKS,
    make_network,
    network,
    network_title,
    networks_with,
)
from mim4dd.distill.networks.resnet18 import ResNet18
from mim4dd.distill.networks.vgg11 import VGG11

__all__ = [
    "MLP",
    "NETWORKS",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "LeNet",
    "Norm",
    "Pooling",
    "ResNet18",
    "make_network",
    "network",
    "network_title",
    "networks_with",
]
