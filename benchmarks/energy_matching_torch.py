"""The peer's half of tests/test_conversion_of_matching.py: energy matching's network in PyTorch with random weights.

    TORCH_PYTHON benchmarks/energy_matching_torch.py WIDTH MULTIPLIERS LAYERS images.npy checkpoint.pt legacy.pt out.npz

It knows nothing of ebm_jax. The U-Net is torchcfm's own class (pip install torch torchcfm), the transformer PyTorch's;
MULTIPLIERS are such as 1,2,2,2. images.npy: float32 [n, 32, 32, 3] in [0, 1]. It writes the checkpoint in both formats
of torch.save, with the running mean, the optimiser and the schedule as the release's training writes them. In out.npz
are, of the running mean ("ema") and the last step ("raw"), energies [n] and their gradient in the images.
"""

import sys

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torchcfm.models.unet.unet import UNetModelWrapper  # pyright: ignore[reportMissingImports]

SIDE, PATCH, EMBEDDED, HEADS, SCALE, TIME, CLAMP = 32, 4, 384, 4, 1000.0, 0.5, 10_000.0


class Patches(nn.Module):
    """Tokens of squares of an image, with a vector of each place."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, EMBEDDED, PATCH, stride=PATCH)
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2, EMBEDDED))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.patch_embed(image).flatten(2).transpose(1, 2) + self.pos_embed


class Potential(UNetModelWrapper):
    """The energy of images from -1 to 1, [n, 3, 32, 32]; the names of its parts are the release's."""

    def __init__(self, width: int, multipliers: list[int], layers: int):
        size = {"num_channels": width, "channel_mult": multipliers, "num_res_blocks": 2}
        heads = {"attention_resolutions": "16", "num_heads": 4, "num_head_channels": 64}
        super().__init__(dim=(3, SIDE, SIDE), dropout=0.1, **size, **heads)
        self.patch_embed = Patches()
        layer = nn.TransformerEncoderLayer(
            EMBEDDED, HEADS, 4 * EMBEDDED, dropout=0.1, activation="gelu", batch_first=True
        )
        self.transformer_encoder = nn.TransformerEncoder(layer, layers)
        self.final_linear = nn.Linear(EMBEDDED, 1)

    def energies(self, x: torch.Tensor) -> torch.Tensor:
        image = super().forward(torch.full((len(x),), TIME), x)
        tokens = self.transformer_encoder(self.patch_embed(image))
        return SCALE * self.final_linear(tokens.mean(1))[:, 0]


def drawn(network: nn.Module) -> nn.Module:
    """The network with all parameters random, those too that start at 0 or 1."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network


def training(network: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Adam and its warm-up after one step; only the last layer has moments, so that the file stays small."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1.2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 10_000) / 10_000)
    for parameter in network.final_linear.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule.step()
    return optimizer, schedule


def main() -> None:
    """Write the files."""
    width, multipliers, layers, images_file, checkpoint, legacy, out = sys.argv[1:]
    torch.manual_seed(0)
    size = int(width), [int(word) for word in multipliers.split(",")], int(layers)
    networks = {name: drawn(Potential(*size)).eval() for name in ("raw", "ema")}
    optimizer, schedule = training(networks["raw"])
    state = {"net_model": networks["raw"].state_dict(), "ema_model": networks["ema"].state_dict()}
    state |= {"sched": schedule.state_dict(), "optim": optimizer.state_dict(), "step": 147_000}
    torch.save(state, checkpoint)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    arrays = {}
    for name, network in networks.items():
        images = torch.tensor(np.load(images_file), requires_grad=True)
        energies = network.energies(2 * images.permute(0, 3, 1, 2) - 1)
        (grad,) = torch.autograd.grad(energies.sum(), images)
        clamped = CLAMP * torch.tanh(energies / CLAMP)
        arrays |= {f"{name}_energy": energies, f"{name}_grad": grad, f"{name}_clamped": clamped}
    np.savez(out, **{name: array.detach().numpy() for name, array in arrays.items()})


if __name__ == "__main__":
    main()
