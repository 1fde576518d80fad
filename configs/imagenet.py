"""ImageNet from scratch, by the recipe of torchvision's first ResNets.

    python train.py --config configs/imagenet.py:resnet50 \
        --config.data.name=folder:/path/to/imagenet

The images lie in <path>/train/<class>/ and <path>/val/<class>/. SGD for 90 epochs, a
tenth of the rate after 30 and 60; random crops of 8 % of the area or more, flips; 256
images a step of all devices together. (torchvision's reference scripts,
github.com/pytorch/vision/tree/main/references/classification, have eight times 32
images, each with a BatchNorm of its own, in float32, and a rate of 0.01 for AlexNet and
for VGG without BatchNorm.)

Expected, top-1 accuracy of the central crop, as torchvision states of its weights V1:
ResNet-18 69.758 %, ResNet-34 73.314, ResNet-50 76.130, ResNet-101 77.374, ResNet-152
78.312. Not run here.
"""

from ml_collections import ConfigDict

from flaxcnn import default_config


def get_config(model: str = "resnet50") -> ConfigDict:
    config = default_config()
    config.model.name = model
    config.data.name = "folder:imagenet"
    config.data.image_size = 224
    config.data.resize = 256
    config.data.preprocess = "imagenet"
    config.data.random_crop = 0.08
    config.data.flip = True
    config.batch_size = 256
    config.epochs = 90
    config.precision = "bf16"
    config.optim.name = "sgd"
    config.optim.lr = 0.1
    config.optim.momentum = 0.9
    config.optim.weight_decay = 1e-4
    config.optim.decay_mask = ".*"
    config.optim.schedule = "step"
    config.optim.milestones = (30, 60)
    return config
