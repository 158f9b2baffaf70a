"""CIFAR-10 by its ten classes, with a wider ResNet32; a TPU or GPU.

    python run.py --config=configs/cifar10_wider_conditional.py

ResNet32Wider of width 192. The release uses this network in its classification and robustness runs
(openai/ebm_code_release at 051850e, README: exp cifar10_wider_model_cond), but does not publish its training command.
The other constants are the release's for CIFAR-10; the learning rate is the paper's 1e-4.

Paper: 49.1 % of the test images classified rightly by their energies. Ours: not measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model.name = "resnet32_wider"
    config.model.width = 192
    config.model.num_classes = 10
    return config
