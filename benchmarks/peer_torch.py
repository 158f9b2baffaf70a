"""The peers' half of `python -m benchmarks`: the same work in PyTorch, in an environment of its own.

    PEER_PYTHON benchmarks/peer_torch.py

It knows nothing of ebm_jax, and takes one JSON line on its standard input for each request: [name, arguments]. The
answer is one JSON line, seconds of a run or energies. The network and train() of rosinality/igebm-pytorch run as its
clone has them. Four things are replaced: the data set's download, the batch size, the progress bar, and the device
"cuda", because its train() does not pass the device on everywhere.
"""

import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

NOISE, STEP_SIZE, CLIP = 0.005, 10.0, 0.01


class Block(nn.Module):
    """The residual block of ebm_jax's ResNet32, without spectral normalisation: the kernels come normalised."""

    def __init__(self, c_in: int, c_out: int, num_classes: int, downsample: bool):
        super().__init__()
        self.bias1, self.bias2 = nn.Embedding(num_classes, c_in), nn.Embedding(num_classes, c_out)
        self.gain2 = nn.Embedding(num_classes, c_out)
        self.conv1, self.conv2 = (nn.Conv2d(c, c_out, 3, padding=1, bias=False) for c in (c_in, c_out))
        self.skip = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False) if c_in != c_out else nn.Identity()
        self.downsample = downsample

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        h = functional.leaky_relu(self.conv1(x + self.bias1(labels)[:, :, None, None]), 0.2)
        h = self.conv2(h + self.bias2(labels)[:, :, None, None]) * self.gain2(labels)[:, :, None, None]
        h = h + self.skip(x)
        return functional.leaky_relu(functional.avg_pool2d(h, 2) if self.downsample else h, 0.2)


class ResNet32(nn.Module):
    """ebm_jax's ResNet32 of a width."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        double = 2 * width
        sizes = [(width, 1), (width, 0), (double, 1), (double, 0), (double, 1), (double, 0)]
        before = [width, *(features for features, _ in sizes)]
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            Block(c_in, c_out, num_classes, bool(down)) for c_in, (c_out, down) in zip(before, sizes, strict=False)
        )
        self.head = nn.Linear(double, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        h = functional.leaky_relu(self.stem(x), 0.2)
        for block in self.blocks:
            h = block(h, labels)
        pooled = functional.leaky_relu(h, 0.2).float().sum((2, 3))
        with torch.autocast("cpu", enabled=False):  # the head works in float32, as ours does
            return self.head(pooled)[:, 0]


def load_resnet32(path: str) -> ResNet32:
    """The network with the weights of an .npz of ebm_jax's parameters, "block0/conv1/kernel" and so on."""
    with np.load(path) as arrays:
        found = {name: torch.from_numpy(array) for name, array in arrays.items()}
    network = ResNet32(found["stem/kernel"].shape[3], found["block0/bias1/table"].shape[0])
    state = {}
    for name, array in found.items():
        layer, _, kind = name.rpartition("/")
        target = layer.replace("block", "blocks.").replace("/", ".")
        if array.ndim == 4:
            array = array.permute(3, 2, 0, 1)
        elif kind == "kernel":
            array = array.T
        state[f"{target}.{'bias' if kind == 'bias' else 'weight'}"] = array
    network.load_state_dict(state)
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


def langevin_chain(energy: Callable, x: torch.Tensor, num_steps: int) -> torch.Tensor:
    """The paper's chain, as lean as eager PyTorch has it."""
    for _ in range(num_steps):
        x = (x + NOISE * torch.randn_like(x)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(energy(x).sum(), x)
        x = (x.detach() - STEP_SIZE * gradient.clamp(-CLIP, CLIP)).clamp_(0, 1)
    return x


class Shipped:
    """rosinality/igebm-pytorch's train() in a thread, one training step for each request."""

    def __init__(self, clone: str, batch_size: int, chain_steps: int):
        sys.path.insert(0, clone)
        import train  # pyright: ignore[reportMissingImports]

        self.go, self.done, self.chain_seconds = threading.Semaphore(0), threading.Semaphore(0), 0.0
        images = torch.utils.data.TensorDataset(
            torch.rand(16 * batch_size, 3, 32, 32), torch.arange(16 * batch_size) % 10
        )
        train.datasets.CIFAR10 = lambda *args, **kwargs: images
        train.DataLoader = lambda data, **kwargs: torch.utils.data.DataLoader(data, batch_size=batch_size, shuffle=True)
        train.sample_buffer = partial(train.sample_buffer, device="cpu")
        get = train.SampleBuffer.get
        train.SampleBuffer.get = lambda buffer, n_samples, device="cpu": get(buffer, n_samples, "cpu")
        train.utils.save_image = lambda *args, **kwargs: None
        train.tqdm = self.bar
        network = train.IGEBM(10)
        run = partial(train.train, network, sample_step=chain_steps, device="cpu")
        threading.Thread(target=run, daemon=True).start()
        self.done.acquire()

    def bar(self, steps: Any) -> Any:
        """Replaces the progress bars: the outer one waits for requests, the inner one takes the chain's time."""
        return self.chain(steps) if isinstance(steps, range) else Outer(self, steps)

    def chain(self, steps: range) -> Iterator[int]:
        start = time.perf_counter()
        yield from steps
        self.chain_seconds = time.perf_counter() - start

    def step(self) -> tuple[float, float]:
        """Seconds of a training step, and of its chain."""
        start = time.perf_counter()
        self.go.release()
        self.done.acquire()
        return time.perf_counter() - start, self.chain_seconds


class Outer:
    """The outer progress bar."""

    def __init__(self, shipped: Shipped, steps: Any):
        self.shipped, self.steps = shipped, steps

    def __iter__(self) -> Iterator[Any]:
        for step in self.steps:
            self.shipped.done.release()
            self.shipped.go.acquire()
            yield step

    def set_description(self, words: str) -> None:
        """Nothing is shown."""


class Matching:
    """Equilibrium matching on a U-Net's scalar: the work of benchmarks/matching.py, channels-last."""

    def __init__(self, file: str, batch: int, side: int):
        arrays = dict(np.load(file))
        self.x = torch.from_numpy(arrays.pop("x")).permute(0, 3, 1, 2)
        self.p = {name: self._parameter(torch.from_numpy(value)) for name, value in arrays.items()}
        self.ema = [value.detach().clone() for value in self.p.values()]
        self.optimizer = torch.optim.Adam(self.p.values(), 1e-4, betas=(0.9, 0.99))
        self.images, self.batch = torch.randint(0, 256, (10_000, 1, side, side), dtype=torch.uint8), batch

    @staticmethod
    def _parameter(value: torch.Tensor) -> torch.Tensor:
        if value.ndim == 4:
            value = value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        return value.requires_grad_()

    def convolve(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        kernel = self.p[f"{name}.kernel"]
        return functional.conv2d(x, kernel, self.p[f"{name}.bias"], stride, kernel.shape[-1] // 2)

    def activate(self, name: str, x: torch.Tensor) -> torch.Tensor:
        gain, shift = self.p[f"{name}.gain"], self.p[f"{name}.shift"]
        return functional.silu(functional.group_norm(x, x.shape[1] // 8, gain, shift))

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        h = x
        for part in (f"{name}.0", f"{name}.1"):
            h = self.convolve(part, self.activate(part, h))
        return h + (self.convolve("skip", x) if name == "up0" else x)

    def unet(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.block("down0", self.convolve("stem", functional.pixel_unshuffle(x, 2)))
        coarse = self.convolve("double", self.block("up1", self.block("down1", self.convolve("half", fine, 2))))
        joined = torch.cat([functional.interpolate(coarse, scale_factor=2), fine], 1)
        return functional.pixel_shuffle(self.convolve("head", self.activate("head", self.block("up0", joined))), 2)

    def field(self, x: torch.Tensor, dtype: str, create_graph: bool) -> torch.Tensor:
        """The input gradient of U(x) = <x, f(x)>."""
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            out = self.unet(x)
        return torch.autograd.grad((x * out.float()).sum(), x, create_graph=create_graph)[0]

    def step(self, dtype: str) -> None:
        """One training step: draws, gradient, clipping, Adam, running mean."""
        x = self.images[torch.randint(len(self.images), (self.batch,))].float() / 127.5 - 1
        noise, g = torch.randn_like(x), torch.rand(self.batch, 1, 1, 1)
        target = 4 * torch.clamp((1 - g) / 0.2, max=1.0) * (noise - x)
        loss = (self.field(g * x + (1 - g) * noise, dtype, True) - target).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.p.values(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, list(self.p.values()), 0.005)


class Peers:
    """The requests, a method each."""

    def resnet32(self, weights: str, images: str, num_steps: int) -> list[float]:
        """Load the network and a batch; the energies of the images."""
        self.network, self.num_steps = load_resnet32(weights), num_steps
        self.compiled = torch.compile(self.network)
        with np.load(images) as arrays:
            x, self.labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
        self.x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return self.network(self.x, self.labels).tolist()

    def tuned(self, dtype: str, compiled: bool) -> float:
        """Seconds of a chain step: channels-last, float32 or bfloat16 autocast, eager or compiled."""
        network = self.compiled if compiled else self.network

        def energy(x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                return network(x, self.labels)

        start = time.perf_counter()
        langevin_chain(energy, self.x, self.num_steps)
        return (time.perf_counter() - start) / self.num_steps

    def igebm(self, clone: str, batch_size: int, chain_steps: int) -> None:
        """Start igebm-pytorch's training."""
        self.chain_steps, self.shipped = chain_steps, Shipped(clone, batch_size, chain_steps)

    def igebm_step(self) -> tuple[float, float]:
        """Seconds of one of its training steps, and of one step of its chain."""
        step, chain = self.shipped.step()
        return step, chain / self.chain_steps

    def matching(self, weights: str, batch: int, side: int) -> list[float]:
        """Take the U-Net's weights; the input gradient at the images of the file, flat, in float32."""
        self.taught = Matching(weights, batch, side)
        return self.taught.field(self.taught.x, "float32", False).permute(0, 2, 3, 1).flatten().tolist()

    def matching_step(self, dtype: str) -> tuple[float, float]:
        """Seconds and CPU seconds of one training step of equilibrium matching."""
        start = time.perf_counter(), time.process_time()
        self.taught.step(dtype)
        return time.perf_counter() - start[0], time.process_time() - start[1]

    def planar(self, library: str, problem: str, hidden: int, chains: int, num_steps: int, step_size: float) -> float:
        """Seconds of Langevin chains in two dimensions, by a library's own sampler."""
        import ebm  # pyright: ignore[reportMissingImports]
        from torchebm.core import BaseModel, DoubleWellModel  # pyright: ignore[reportMissingImports]
        from torchebm.samplers import LangevinDynamics  # pyright: ignore[reportMissingImports]

        class Mlp(BaseModel):
            def __init__(self) -> None:
                super().__init__()
                self.net = ebm.nets.MLPEnergy(2, (hidden, hidden))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.net(x)

        torch.manual_seed(0)
        model = DoubleWellModel() if problem == "double well" else Mlp()
        model.requires_grad_(False)
        x = torch.randn(chains, 2)
        if library == "torchebm":
            sampler = LangevinDynamics(model, step_size=step_size, noise_scale=1.0)
            run = partial(sampler.sample, x=x, n_steps=num_steps)
        else:
            sampler = ebm.samplers.LangevinDynamics(step_size=step_size, steps=num_steps)
            run = partial(sampler.sample, model, x)
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def main() -> None:
    """Answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print is no answer
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    peers = Peers()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(peers, name)(**arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
