"""Network In Network (arXiv:1312.4400), the recipe of its author.

    python train.py --config configs/nin.py               CIFAR-10, 260 epochs
    python train.py --config configs/nin.py:lecture       the lecture's notebook

Expected on CIFAR-10 without augmentation: 10.4 % error, which its author's README
states. From his definition files (mavenlin/cuda-convnet) are the rates, doubled for
biases and a tenth of them for the last layer, and that they fall after 200 and 230
epochs; a batch of 128 is ours. The notebook: 52 % error on 1,000 validation images
after 50 epochs, measured with dropout on. Seen so far: shortened, in results/nin and
results/notebooks.
"""

from ml_collections import ConfigDict

from flaxcnn import FlaxcnnError, default_config


def get_config(recipe: str = "author") -> ConfigDict:
    config = default_config()
    config.data.name = "tfds:cifar10"
    config.batch_size = 128
    if recipe == "lecture":
        return lecture(config)
    if recipe != "author":
        raise FlaxcnnError(f"nin.py:{recipe}; there are author (default) and lecture")
    config.model.name = "nin"
    config.data.preprocess = "gcn_zca"
    config.epochs = 260
    config.optim.name = "sgd"
    config.optim.lr = 0.1
    config.optim.momentum = 0.9
    config.optim.weight_decay = 1e-4
    config.optim.schedule = "step"
    config.optim.milestones = (200, 230)
    config.optim.lr_factors = (
        ("classifier/.*kernel", 0.1), ("classifier/.*bias", 0.2), (".*bias", 2.0)
    )  # fmt: skip
    return config


def lecture(config: ConfigDict) -> ConfigDict:
    """nin-cifar10.ipynb: Adam at 1e-3, no decay, inputs in [0, 1]."""
    config.model.name = "nin_lecture"
    config.data.preprocess = "unit"
    config.batch_size = 256
    config.epochs = 50
    config.optim.name = "adam"
    config.optim.lr = 1e-3
    config.seed = 1
    return config
