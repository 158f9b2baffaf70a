"""Your own images: equilibrium matching, in sizes for the machine.

    python run.py --config=configs/folder.py --config.data.source=folder:PATH

Unconditional, by a U-Net; the run keeps the sizes of the machine that it begins on. PATH holds images, or one
sub-folder of images for each class, or these below PATH/train and PATH/test. The run uses the classes if
--config.model.num_classes gives their number. Images of any size are cut to the aspect of `data.shape` around their
centre and resized to it. Without PATH/test a tenth of the images is kept back as the split test (`data.holdout`). An
.npz file of arrays `images` and `labels` works too: --config.data.source=npz:PATH.

| | 32x32x3, on a CPU | 32x32x3, on a GPU or TPU |
|---|---|---|
| network | width 32, of squares of 2x2 pixels | width 64 (2 M parameters) |
| budget | 3,000 steps of 32 images | 30,000 steps of 256 images |

The choice is kept in the run's config.json as `train.machine`, so the same command goes on with it on any machine;
--config.train.machine=cpu or =accelerator chooses by hand. Not in the paper. The 2019 method: folder_contrastive.py.

Measured on a CPU, with 300 crops of ten photos: a run takes 12 minutes of CPU time on one core. Its samples have the
colours and textures of the photos; flowers and skies can be recognised, faces and machines cannot (docs/results.md).
On a GPU not measured.
"""

from configs import cifar10_equilibrium
from ebm_jax import machine as machines


def get_config(machine=None):
    """The config for a kind of machine of ebm_jax/machine.py; None: of this one.

    Empty: that of runs that began before there was a choice. They kept no images back.
    """
    machine = machines.kind() if machine is None else machine
    config = cifar10_equilibrium.get_config()
    config.data.source = "folder:images"
    config.data.name = "folder"
    config.data.crop = True
    config.data.holdout = 0.1 if machine else 0.0
    config.model.num_classes = 1
    config.model.width = 64
    config.model.unet.blocks = 1
    config.train.machine = machine
    return for_cpu(config) if machine == machines.CPU else config


def for_cpu(config):
    """The same in sizes that end within minutes on two cores."""
    config.model.width = 32
    config.model.unet.patch = 2
    config.optim.learning_rate = 2e-3
    config.optim.warmup_steps = 100
    config.optim.decay_steps = config.train.num_steps = 3_000
    config.optim.ema_decay = 0.998
    config.train.batch_size = 32
    config.log.every = 20
    config.log.images_every = config.checkpoint.every = 1_000
    return config
