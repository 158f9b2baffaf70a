"""Your own images by the 2019 method: ResNet32 of width 64, on a GPU.

    python run.py --config=configs/folder_contrastive.py --config.data.source=folder:PATH

Unconditional. PATH holds images, or one sub-folder of images for each class, or these below PATH/train and PATH/test.
The run uses the classes if --config.model.num_classes gives their number. Images of any size are cut to the aspect of
`data.shape` around their centre and resized to it. Without PATH/test, --config.data.holdout=0.1 keeps a tenth of the
images back as the split test. An .npz file of arrays `images` and `labels` works too: --config.data.source=npz:PATH.

Not in the paper. Not measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "folder:images"
    config.data.name = "folder"
    config.data.crop = True
    config.model.name = "resnet32"
    config.model.width = 64
    return config
