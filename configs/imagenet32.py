"""ImageNet at 32x32, by its 1,000 classes, on a pod or many GPUs.

    python run.py --config=configs/imagenet32.py

With ResNet32Wider of width 256; a pod is one of TPUs. The release's command for "ImageNet 32x32 Conditional"
(openai/ebm_code_release at 051850e) writes `step_lr=10.0` without dashes; its flags silently drop that, so the printed
command runs with step 1. We follow the written 10, as for CIFAR-10. It runs batches of 32 on each of an unknown number
of workers; ours are 128 over all devices. The learning rate is the paper's 1e-4, not the release's default 3e-4.

Paper: not re-read, so not quoted. Ours: not measured. The set is 3.7 GiB of pixels and streams from disk;
`data.memory_gib` of 4 or more holds it in memory instead, after minutes of reading.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "imagenet_resized/32x32"
    config.model.name = "resnet32_wider"
    config.model.width = 256
    config.model.num_classes = 1_000
    return config
