"""A folder of your own images, unconditional: equilibrium matching of a U-Net (2 M parameters), on a GPU.

    python run.py --config=configs/folder.py --config.data.source=folder:PATH

PATH holds images, or one sub-folder of images for each class, or these below PATH/train and PATH/test. The run
uses the classes if --config.model.num_classes gives their number. Images of any size are cut to the aspect of
`data.shape` around their centre and resized to it. Without PATH/test, --config.data.holdout=0.1 keeps a tenth of the
images back as the split test. An .npz file of arrays `images` and `labels` works too:
--config.data.source=npz:PATH.

On a laptop: --config.model.width=32 --config.model.unet.patch=2 --config.train.batch_size=64. Not in the paper.
Not measured. The 2019 method: folder_contrastive.py.
"""

from configs import cifar10_equilibrium


def get_config():
    config = cifar10_equilibrium.get_config()
    config.data.source = "folder:images"
    config.data.name = "folder"
    config.data.crop = True
    config.model.num_classes = 1
    config.model.width = 64
    config.model.unet.blocks = 1
    return config
