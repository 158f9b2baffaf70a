"""The peer's half of tests/test_inception_parity.py: the FID Inception on torchvision's blocks, in its own environment.

    TORCH_PYTHON benchmarks/inception_torch.py images.npy weights.pth legacy.pth out.npz

It knows nothing of ebm_jax. images.npy: float32 [n, h, w, c] in [0, 1]. It writes random weights in both formats of
torch.save, as a state dict, and the features [n, 2048] and probabilities [n, 1008] that they give.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]  # noqa: N812
from torchvision.models import inception  # pyright: ignore[reportMissingImports]


def mean_within(x: torch.Tensor) -> torch.Tensor:
    """The 3x3 mean over the pixels inside the image."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def greatest(x: torch.Tensor) -> torch.Tensor:
    """The 3x3 maximum."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def pooling(block: Any, pool: Callable, *args: int) -> torch.nn.Module:
    """A torchvision block; its last branch, the pooled one, pools by `pool`."""

    class Pooling(block):
        def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            *others, _ = super()._forward(x)
            return [*others, self.branch_pool(pool(x))]

    return Pooling(*args)


def network() -> torch.nn.Module:
    """torchvision's Inception3 without its second head, with 1,008 classes and the blocks above."""
    net = inception.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for name, pooled, c_in in (("Mixed_5b", 32, 192), ("Mixed_5c", 64, 256), ("Mixed_5d", 64, 288)):
        setattr(net, name, pooling(inception.InceptionA, mean_within, c_in, pooled))
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        setattr(net, name, pooling(inception.InceptionC, mean_within, 768, inner))
    net.Mixed_7b = pooling(inception.InceptionE, mean_within, 1280)
    net.Mixed_7c = pooling(inception.InceptionE, greatest, 2048)
    return net.eval()


def randomise(net: torch.nn.Module) -> None:
    """Weights that keep signals at about unit size in every layer, with normalisations that are not trivial."""
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.8, 1.2),
                (module.bias.data, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.7, 1.4),
            ):
                tensor.uniform_(low, high)


def main(images: str, weights: str, legacy: str, out: str) -> None:
    """Write the weights, and the features and probabilities that they give."""
    torch.manual_seed(0)
    net = network()
    randomise(net)
    torch.save(net.state_dict(), weights)
    torch.save(net.state_dict(), legacy, _use_new_zipfile_serialization=False)
    found = {}
    net.avgpool.register_forward_hook(lambda module, given, made: found.update(features=made.flatten(1)))
    with torch.no_grad():
        x = torch.from_numpy(np.load(images)).permute(0, 3, 1, 2)
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        net(2.0 * x.expand(-1, 3, -1, -1) - 1.0)
        probabilities = torch.softmax(found["features"] @ net.fc.weight.T, 1)
    np.savez(out, features=found["features"].numpy(), probabilities=probabilities.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
