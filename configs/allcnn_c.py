"""All-CNN-C, the recipe of the paper (arXiv:1412.6806).

    python train.py --config configs/allcnn_c.py              CIFAR-10, 350 epochs
    python train.py --config configs/allcnn_c.py:cifar100
    python train.py --config configs/allcnn_c.py:digits       the quick start

Any other of the twelve networks of Table 3: --config.model.name=strided_cnn_a.
Expected on CIFAR-10 without augmentation: 9.08 % error in the paper, whose learning
rate is the best of 0.25, 0.1, 0.05 and 0.01. The loss stays near ln(10) at first.
Seen so far: results/runs.csv.
"""

from ml_collections import ConfigDict

from flaxcnn import FlaxcnnError, default_config


def get_config(data: str = "cifar10") -> ConfigDict:
    config = default_config()
    config.model.name = "allcnn_c"
    if data == "digits":
        return digits(config)
    if data not in ("cifar10", "cifar100"):
        raise FlaxcnnError(f"allcnn_c.py:{data}; there are cifar10, cifar100, digits")
    config.data.name = f"tfds:{data}"
    config.data.preprocess = "gcn_zca"
    config.batch_size = 128
    config.epochs = 350
    config.optim.name = "sgd"
    config.optim.lr = 0.05
    config.optim.momentum = 0.9
    config.optim.weight_decay = 1e-3
    config.optim.schedule = "step"
    config.optim.milestones = (200, 250, 300)
    return config


def digits(config: ConfigDict) -> ConfigDict:
    """8x8 digits: a recipe that leaves the plateau within an epoch."""
    config.data.name = "digits"
    config.data.image_size = 12  # the smallest that halves evenly twice
    config.model.input_dropout = 0.1
    config.model.dropout = 0.25
    config.batch_size = 64
    config.epochs = 8
    config.optim.name = "adamw"
    config.optim.lr = 2e-3
    config.optim.weight_decay = 1e-4
    config.optim.schedule = "onecycle"
    return config
