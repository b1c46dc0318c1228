"""Networks with BatchNorm, and what SRe2L and its followers recover images from, by definition."""

import tiny


def maker(data, norm="batch"):
    return tiny.maker(data, norm)


def by_hand(network, images):
    """Logits of ConvNet in eval mode, and the input of every BatchNorm."""
    inputs = []
    for convolution, norm, *rest in network.blocks:
        images = convolution(images)
        inputs.append((norm, images))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        images = images * scale[:, None, None] + shift[:, None, None]
        for module in rest:
            images = module(images)
    return network.classifier(images.flatten(1)), inputs
