"""CIFAR-10, unconditional, with ResNet32Large, on a TPU or GPU.

    python run.py --config=configs/cifar10.py

The constants are from the release's command for "CIFAR-10 Unconditional" (openai/ebm_code_release at 051850e). Two of
its defaults differ from the paper. Its learning rate is 3e-4 (train.py:69); we follow the paper, 1e-4. Its dropout of
0.5 is on in all of training, also in the chains (train.py:548); we keep that. Its head has ReLU, ours LeakyReLU
(models.py:342).

Paper: FID 40.58 for one model, 38.2 for ten snapshots of one run; a user measured the released weights at Inception
Score 6.40 and FID 51.9 on 50,000 samples. Our samples, FID and speed on a TPU or GPU: not measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model.name = "resnet32_large"
    config.model.resnet.dropout = 0.5
    return config
