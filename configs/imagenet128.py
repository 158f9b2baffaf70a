"""ImageNet at 128x128, by its 1,000 classes, on a pod or many GPUs.

    python run.py --config=configs/imagenet128.py --config.data.manual_dir=DIR

With ResNet128; a pod is one of TPUs. DIR holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which ImageNet
gives to registered users. Images are shrunk to 128 pixels on their shorter side, aspect kept, and cropped at the
centre; they stream from disk.

The release's command for "ImageNet 128x128 Conditional" (openai/ebm_code_release at 051850e) writes `step_lr=100.0`
without dashes; its flags silently drop that, so the printed command runs with step 1. We follow the written 100, with
no clip of the gradient. It runs batches of 16 on each of an unknown number of workers; ours are 128 over all devices.
The learning rate is the paper's 1e-4, not the release's default 3e-4. Its first block stays LeakyReLU under --swish_act
(models.py:602); ours is swish throughout.

Paper: not re-read, so not quoted. Ours: not measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "imagenet2012"
    config.data.shape = (128, 128, 3)
    config.data.crop = True
    config.model.name = "resnet128"
    config.model.width = 64
    config.model.num_classes = 1_000
    config.model.activation = "swish"
    config.chain.num_steps = 50
    config.chain.step_size = 100.0
    config.chain.grad_clip = float("inf")
    return config
