"""CIFAR-10 by energy matching, with the published constants, on GPUs.

    python run.py --config=configs/cifar10_energy_matching.py

32x32x3, by Balcerak et al. (2025). 145,000 steps of the flow with exact pairs, then 2,000 with the
contrast of fresh chains. The network is the release's (m1balcerak/EnergyMatching at 18176e4): torchcfm's U-Net, 35.75 M
parameters, and a transformer, 14.24 M. Ours computes in bfloat16, the release in float32. The release mirrors images at
random, ours are as they are. Our running mean keeps its decay of 0.9999 to the end, the release's has 0.99 in the
second phase. Both phases share one batch a step here; the release draws one for each. The first 100 steps of our
samples are descent, where Heun's method takes them there.

ebm_jax.conversion.energy_matching opens the release's own checkpoint as such a model. Not trained. Not measured.
"""

from configs import cifar10_equilibrium


def get_config():
    config = cifar10_equilibrium.get_config()
    config.model.num_classes = 1
    config.model.name = "guided_unet"
    config.model.unet.multipliers = (1, 2, 2, 2)
    config.model.unet.blocks = 2
    config.model.unet.attention = 16
    config.model.unet.head_channels = 64
    config.model.unet.energy = "transformer"
    config.method.name = "energy_matching"
    config.method.then.name = "fresh_contrast"
    config.method.then.after = 145_000
    config.method.then.weight = 1e-3
    config.chain.kernel = "heun"
    config.chain.step_size = 0.0025  # 0.01 for pixels from -1 to 1
    config.chain.temperature = 0.01
    config.chain.num_steps = 100
    config.buffer.capacity = 512  # no chains are kept
    config.buffer.descent_steps = 100  # the first half of a chain, without noise
    config.chain.descent.look_ahead = 0.0
    config.sample.descent_steps = 100
    config.sample.num_steps = 225  # to t = 3.25
    config.optim.learning_rate = 1.2e-3
    config.optim.b2 = 0.95
    config.optim.warmup_steps = 10_000
    config.optim.decay_steps = 0
    config.optim.ema_decay = 0.9999
    config.train.batch_size = 512
    config.train.num_steps = 147_000
    return config
