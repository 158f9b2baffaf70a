"""CIFAR-10, unconditional, with ResNet32Large, on a TPU or GPU.

    python run.py --config=configs/cifar10.py

Constants are the release's for CIFAR-10 (openai/ebm_code_release at 051850e): its command for "CIFAR-10 Unconditional".
Two that it leaves to defaults are not the paper's: the learning rate, 3e-4 there (train.py:69) and 1e-4 in the paper,
which we follow; and dropout 0.5, on in all of training, its chains included (train.py:548), which we keep. Its head has
ReLU where ours has LeakyReLU (models.py:342).

Paper: FID 40.58 for one model, 38.2 for ten snapshots of one run; a user measured the released weights at Inception
Score 6.40 and FID 51.9 on 50,000 samples. Ours, samples, FID and speed on a TPU or GPU: not measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model.name = "resnet32_large"
    config.model.resnet.dropout = 0.5
    return config
