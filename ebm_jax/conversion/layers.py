"""PyTorch's layers in a state dict, taken out of it, as this package's."""

import numpy as np


def gain(rest: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Gain and bias of a normalisation."""
    return {"gain": rest.pop(f"{name}.weight"), "bias": rest.pop(f"{name}.bias")}


def linear(rest: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Kernel [in, out] and bias [out] of a linear layer of PyTorch's, [out, in] there, or of its 1x1 convolution."""
    kernel = rest.pop(f"{name}.weight")
    return {"kernel": kernel.reshape(kernel.shape[:2]).T, "bias": rest.pop(f"{name}.bias")}


def biased(rest: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Kernel [h, w, in, out] and bias [out] of a convolution of PyTorch's."""
    kernel, bias = convolution(rest, name)
    return kernel | {"bias": bias["table"][0]}


def convolution(rest: dict[str, np.ndarray], name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Kernel [h, w, in, out] and bias [1, out] of a convolution of PyTorch's, [out, in, h, w] there."""
    kernel, bias = rest.pop(f"{name}.weight"), rest.pop(f"{name}.bias")
    return {"kernel": kernel.transpose(2, 3, 1, 0)}, {"table": bias[None]}
