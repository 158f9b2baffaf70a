"""dSprites, 64x64, conditional on shape: square, ellipse or heart.

    python run.py --config=configs/dsprites_shape.py

The network is the release's DspritesNet, the constants are from its dSprites command (openai/ebm_code_release at
051850e, README "Concept Combination") with --cond_shape: 20 steps of 500, no clip, swish, its default batch of 256
(train.py:45). It starts chains from N(0.5, 0.5²) and feeds pixels of exactly 0 and 1 (data.py: DSprites); ours start
from U[0, 1] and the pixels get the noise of 1/256 that all data get. The learning rate is the paper's 1e-4, not the
release's default 3e-4.

The paper composes models of several factors in figures. Ours: not measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "dsprites"
    config.data.condition = "shape"
    config.data.shape = (64, 64, 1)
    config.model.name = "dsprites"
    config.model.width = 64
    config.model.num_classes = 3
    config.model.activation = "swish"
    config.chain.num_steps = 20
    config.chain.step_size = 500.0
    config.chain.grad_clip = float("inf")
    config.train.batch_size = 256
    return config
