"""MNIST, 28x28, unconditional, with the release's MnistNet.

    python run.py --config=configs/mnist.py

28x28x1. The release (openai/ebm_code_release at 051850e) has the network and the data but prints no command for them;
the constants are its CIFAR-10 ones. The paper uses it in a table of log-likelihood bounds. Ours: not measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "mnist"
    config.data.shape = (28, 28, 1)
    config.model.name = "mnist"
    config.model.width = 64
    return config
