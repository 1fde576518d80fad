"""CIFAR-10 ResNets (arXiv:1512.03385, section 4.2), the recipe of the paper.

    python train.py --config configs/resnet_cifar.py                 ResNet-56
    python train.py --config configs/resnet_cifar.py:resnet20_cifar

Expected test error: ResNet-20 8.75 %, 32 7.51 %, 44 7.17 %, 56 6.97 %, 110 6.43 %
(the paper's, as akamaster/pytorch_resnet_cifar10 quotes them).

64,000 steps of 128 images, here of all 50,000 (the paper keeps 5,000 aside), each
channel standardized (the paper subtracts the mean of each pixel). The paper trains
ResNet-110 at a tenth of the rate at first, about 400 steps; here the rate rises
linearly over as many.
Seen so far: shortened, in results/resnets; with EvoNorm in results/evonorm.
"""

from ml_collections import ConfigDict

from flaxcnn import default_config


def get_config(model: str = "resnet56_cifar") -> ConfigDict:
    config = default_config()
    config.model.name = model
    config.data.name = "tfds:cifar10"
    config.data.preprocess = "standardize"
    config.data.flip = True
    config.data.translate = 4
    config.batch_size = 128
    config.epochs = 163.84  # 64,000 steps
    config.optim.name = "sgd"
    config.optim.lr = 0.1
    config.optim.momentum = 0.9
    config.optim.weight_decay = 1e-4
    config.optim.schedule = "step"
    config.optim.milestones = (81.92, 122.88)  # 32,000 and 48,000 steps
    if model == "resnet110_cifar":
        config.optim.warmup = "400 steps"
    return config
