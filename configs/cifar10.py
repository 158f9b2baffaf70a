"""CIFAR-10 with ResNet32, unconditional, on a TPU or GPU.

    python run.py --config=configs/cifar10.py

Constants are the release's for CIFAR-10 (openai/ebm_code_release at 051850e). The network is ResNet32 of width 128; the
paper's unconditional numbers are for its larger ResNet32Large. Samples, FID and speed on a TPU or GPU: not measured.
"""

from configs import default


def get_config():
    return default.get_config()
