"""Two-dimensional densities whose truth is known, by chains of MALA.

    python run.py --config=configs/density2d.py [--config.data.name=two_moons|checkerboard|rings|spirals|pinwheel]

The eight Gaussians, or another density by its name. Every 2,000 steps and at the end it writes a picture of data,
samples and learned density side by side, and the exact KL divergence and negative log-likelihood, by integration over a
grid. Not in the paper. The chain is MALA: at walls as steep as the checkerboard's, tied Langevin without the Metropolis
test is so far off its law that training diverges.

2 cores of an AMD EPYC, JAX 0.10.2: 42 to 52 s, compiling and pictures included (commit 26dbfb6). KL divergence after
4,000 steps, nats: eight_gaussians 0.011, two_moons 0.009, checkerboard 0.130, rings 0.041, spirals 0.054, pinwheel
0.023 (docs/results.md).
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "density"
    config.data.name = "eight_gaussians"
    config.data.shape = (2,)
    config.model.name = "mlp"
    config.model.width = 64
    config.model.activation = "swish"
    config.model.spectral_norm = False
    config.chain.kernel = "mala"
    config.chain.langevin.tied = True
    config.chain.num_steps = 20
    config.chain.step_size = 3e-4
    config.chain.grad_clip = 60.0  # clips the proposal alone: chains on steep walls keep moving, the law stays exact
    config.buffer.capacity = 256
    config.buffer.restart_prob = 0.02
    config.loss.energy_l2 = 1e-3
    config.optim.learning_rate = 2e-3
    config.train.batch_size = 256
    config.train.num_steps = 4_000
    config.sample.num_images = 2_048
    config.sample.batch_size = 2_048
    config.sample.num_steps = 500
    config.sample.quiet_steps = 0
    config.log.every = 500
    config.log.images_every = 2_000
    config.checkpoint.every = 2_000
    return config
