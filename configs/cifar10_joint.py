"""CIFAR-10: a classifier that is an energy, JEM's WRN-28-10; a GPU.

    python run.py --config=configs/cifar10_joint.py

By Grathwohl et al. (2020). The constants of the release (wgrathwohl/JEM at 3d01161), in our pixels from 0 to 1: its
step of 1 is 0.25, its noise of 0.01 is 0.005, that on data 0.015. Its images are cropped and mirrored at random and its
chains are not kept in the box; ours are neither, and our chains stay inside. Its learning rate falls by 0.3 after 160
and 180 of 200 epochs; ours falls as a cosine over as many steps. Paper: 92.9 % of test images, FID 38.4, and runs of it
diverge; here the guard is on.

ebm_jax.conversion.jem opens the release's own checkpoint as such a model. Not trained here. Not measured.
"""

from configs import digits_joint


def get_config():
    config = digits_joint.get_config()
    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.shape = (32, 32, 3)
    config.model.name = "wide_resnet"
    config.model.width = 160
    config.model.activation = "leaky_relu"
    config.buffer.capacity = 10_000
    config.optim.learning_rate = 1e-4
    config.optim.b1 = 0.9
    config.optim.clip_offset = float("inf")
    config.optim.warmup_steps = 1_000
    config.optim.decay_steps = config.train.num_steps = 156_000
    config.optim.final_share = 0.09
    config.log.every = 100
    config.log.images_every = config.checkpoint.every = 2_000
    return config
