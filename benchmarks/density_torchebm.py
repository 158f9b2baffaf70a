"""The peer's half of `benchmarks.density_peers`: torchebm's persistent contrastive divergence, in its own environment.

    PEER_PYTHON benchmarks/density_torchebm.py recipe.json in.npz out.npz

It knows nothing of ebm_jax. in.npz holds float32 `data` [n, 2] and `points` [m, 2]. out.npz gets the energies [m] under
the last and the averaged weights, the number of training steps, their seconds and CPU seconds.
"""

import json
import sys
import time

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.optim.swa_utils import (  # pyright: ignore[reportMissingImports]
    AveragedModel,
    get_ema_multi_avg_fn,
)
from torchebm.core import BaseModel  # pyright: ignore[reportMissingImports]
from torchebm.losses import ContrastiveDivergence  # pyright: ignore[reportMissingImports]
from torchebm.samplers import LangevinDynamics  # pyright: ignore[reportMissingImports]


class Mlp(BaseModel):
    """The same network: inputs scaled to [-4, 4], three hidden layers, swish; energies [b] of points [b, 2]."""

    def __init__(self, width: int):
        super().__init__()
        hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.SiLU())]
        self.net = nn.Sequential(nn.Linear(2, width), nn.SiLU(), *hidden, nn.Linear(width, 1))
        for layer in self.net:
            if isinstance(layer, nn.Linear):  # Flax's initialisation, the same as ours
                std = layer.in_features**-0.5
                nn.init.trunc_normal_(layer.weight, std=std / 0.8796, a=-2 * std / 0.8796, b=2 * std / 0.8796)
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(8.0 * (x - 0.5)).squeeze(-1)


def train(recipe: dict, data: torch.Tensor, seconds: float) -> tuple[dict[str, nn.Module], dict]:
    """The model's last and averaged weights, and the counts: steps, seconds and CPU seconds."""
    torch.manual_seed(recipe["seed"])
    model = Mlp(recipe["width"])
    sampler = LangevinDynamics(model, step_size=recipe["step_size"], noise_scale=1.0, clamp=(0.0, 1.0))
    loss_fn = ContrastiveDivergence(
        model,
        sampler,
        k_steps=recipe["chain_steps"],
        persistent=True,
        buffer_size=recipe["capacity"],
        init_steps=0,
        energy_reg_weight=recipe["energy_l2"],
    )
    loss_fn.initialize_buffer((2,))
    loss_fn.replay_buffer.uniform_(0.0, 1.0)  # torchebm starts at N(0, 0.01²), the box's corner
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe["learning_rate"], betas=(recipe["b1"], 0.999))
    averages = {
        f"ema {decay}": AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) for decay in recipe["ema_decays"]
    }
    start, start_cpu, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        loss, _ = loss_fn(data[torch.randint(len(data), (recipe["batch_size"],))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for average in averages.values():
            average.update_parameters(model)
        steps += 1
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return {"last": model, **averages}, {"steps": steps, "seconds": seconds, "cpu_seconds": cpu_seconds}


def main(recipe_path: str, in_path: str, out_path: str) -> None:
    """Train for the recipe's seconds after one second of warm-up, and write the energies."""
    with open(recipe_path) as file:
        recipe = json.load(file)
    arrays = np.load(in_path)
    data, points = torch.from_numpy(arrays["data"]), torch.from_numpy(arrays["points"])
    torch.set_num_threads(recipe["threads"])
    train(recipe, data, 1.0)
    models, counts = train(recipe, data, recipe["seconds"])
    with torch.no_grad():
        energies = {name: model(points).numpy() for name, model in models.items()}
    np.savez(out_path, **counts, **energies)


if __name__ == "__main__":
    main(*sys.argv[1:])
