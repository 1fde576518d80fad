"""The lecture's notebooks (STAT 453, L13) as they are coded.

    python train.py --config configs/notebooks.py:resnet34
    flaxcnn reproduce notebooks --workdir runs/notebooks      all, one after the other

Adam with its defaults, pixels in [0, 1], no augmentation, decay or schedule. What they
print for the test images (CIFAR-10, or MNIST for the last three):

    vgg16 70.27 %, resnet34 73.24, resnet152 69.59, allconv 96.42,
    identity_blocks 92.47, resized_blocks 97.68

`resnet152` has the notebook's 140 layers, 4 blocks in a stage that should have 8;
`resnet152_intended` has them all. Here all 50,000 images are trained on, where vgg16
sets 1,000 aside, and torch's seeds give other numbers. Of the other two notebooks see
configs/nin.py:lecture and configs/vgg16_transfer.py.
Seen so far, in results/notebooks: the three for MNIST; the others shortened.
"""

from ml_collections import ConfigDict

from flaxcnn import FlaxcnnError, default_config

NOTEBOOKS = {
    # model, data, batch size, learning rate, epochs
    "vgg16": ("vgg16_cifar", "cifar10", 256, 1e-4, 50),
    "resnet34": ("resnet34", "cifar10", 256, 1e-3, 50),
    "resnet152": ("resnet152", "cifar10", 256, 1e-3, 50),
    "resnet152_intended": ("resnet152", "cifar10", 256, 1e-3, 50),
    "allconv": ("allconv_mnist", "mnist", 256, 1e-3, 15),
    "identity_blocks": ("resblocks_identity", "mnist", 128, 1e-4, 10),
    "resized_blocks": ("resblocks_resized", "mnist", 128, 1e-4, 10),
}


def get_config(notebook: str = "") -> ConfigDict:
    if notebook not in NOTEBOOKS:
        names = ", ".join(NOTEBOOKS)
        raise FlaxcnnError(f"notebooks.py:{notebook}; there are {names}")
    model, data, batch_size, lr, epochs = NOTEBOOKS[notebook]
    config = default_config()
    config.model.name = model
    if notebook == "resnet152":
        config.model.stages = (3, 4, 36, 3)
    config.data.name = f"tfds:{data}"
    config.data.preprocess = "unit"
    config.batch_size = batch_size
    config.epochs = epochs
    config.optim.name = "adam"
    config.optim.lr = lr
    return config
