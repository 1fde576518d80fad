"""The whole path in seconds: any model, a few steps on the digits.

    python train.py --config configs/debug.py
    python train.py --config configs/debug.py:nin

Trains 10 steps of 32 images; says nothing about accuracy.
"""

from ml_collections import ConfigDict

from flaxcnn import default_config, model_info


def get_config(model: str = "allconv_mnist") -> ConfigDict:
    config = default_config()
    config.model.name = model
    config.data.name = "digits"
    config.data.image_size = model_info(model).input_size[0]
    config.data.limit = 128
    config.batch_size = 32
    config.steps = 10
    config.optim.lr = 0.01
    config.optim.momentum = 0.9
    config.eval_every = "5 steps"
    config.log_every = "5 steps"
    config.checkpoint_every = "5 steps"
    return config
