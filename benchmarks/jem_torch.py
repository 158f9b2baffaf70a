"""The peer's half of tests/test_conversion.py: JEM's network in PyTorch with random weights, in its own environment.

    TORCH_PYTHON benchmarks/jem_torch.py DEPTH WIDEN images.npy checkpoint.pt legacy.pt out.npz

It knows nothing of ebm_jax. images.npy: float32 [n, h, w, c] in [0, 1]. It writes the checkpoint in both formats of
torch.save, and the logits f_y(x) [n, 10], log Σ exp f_y [n], and the latter's gradient in the images [n, h, w, c].
"""

import sys

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

SLOPE = 0.2


class Block(nn.Module):
    """Activation, convolution, activation, convolution of every `stride`-th pixel, plus the input."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, stride=stride, padding=1)
        same = before == after and stride == 1
        self.shortcut = nn.Sequential(*([] if same else [nn.Conv2d(before, after, 1, stride=stride)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        act = nn.functional.leaky_relu
        return self.conv2(act(self.conv1(act(x, SLOPE)), SLOPE)) + self.shortcut(x)


class Wide(nn.Module):
    """The features of images from -1 to 1."""

    def __init__(self, depth: int, widen: int):
        super().__init__()
        self.conv1, channels = nn.Conv2d(3, 16, 3, padding=1), 16
        for stage in range(3):
            after, blocks = 16 * widen * 2**stage, []
            for index in range((depth - 4) // 6):
                blocks.append(Block(channels, after, 2 if stage and not index else 1))
                channels = after
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return nn.functional.leaky_relu(h, SLOPE).mean((2, 3))


class Classifier(nn.Module):
    """Logits of images from 0 to 1."""

    def __init__(self, depth: int, widen: int):
        super().__init__()
        self.f = Wide(depth, widen)
        features = self.f.linear.in_features
        self.energy_output, self.class_output = nn.Linear(features, 1), nn.Linear(features, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.class_output(self.f(2 * images.permute(0, 3, 1, 2) - 1))


def main() -> None:
    """Write the files."""
    depth, widen, images_file, checkpoint, legacy, out = sys.argv[1:]
    torch.manual_seed(0)
    network = Classifier(int(depth), int(widen))
    images = torch.tensor(np.load(images_file), requires_grad=True)
    logits = network(images)
    total = logits.logsumexp(1)
    (grad,) = torch.autograd.grad(total.sum(), images)
    state = {"model_state_dict": network.state_dict(), "replay_buffer": torch.rand(7, 3, 8, 8)}
    torch.save(state, checkpoint)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    arrays = {"logits": logits, "total": total, "grad": grad}
    np.savez(out, **{name: array.detach().numpy() for name, array in arrays.items()})


if __name__ == "__main__":
    main()
