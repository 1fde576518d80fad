"""Transfer learning: a pretrained network, a new head, your images.

    python train.py --config configs/transfer.py:resnet50 \
        --config.data.name=folder:/path/to/images

The images lie in <path>/train/<class>/ and <path>/test/<class>/ (or val). By default
only the head is trained, on features that the rest of the network computes once. More:

    --config.transfer.train=all --config.transfer.cache_features=false \
        --config.data.flip=true

All but the head then learns at a tenth of the rate.

Weights are torchvision's, downloaded once, unless --config.transfer.init_from names a
file. Seen: results/regimes.
"""

from ml_collections import ConfigDict

from flaxcnn import FlaxcnnError, default_config, model_info


def get_config(model: str = "resnet50") -> ConfigDict:
    config = default_config()
    info = model_info(model)
    if not info.weights:
        raise FlaxcnnError(
            f"transfer.py:{model}; of {model} no weights are published: start from a "
            "model that has some, or set transfer.init_from in a config of your own"
        )
    weights = info.weights[0]
    config.model.name = model
    config.data.name = "folder:images"
    config.data.image_size = weights.crop
    config.data.resize = weights.resize
    config.data.preprocess = weights.preprocess
    config.transfer.init_from = model
    config.transfer.train = "head"
    config.transfer.cache_features = True
    config.batch_size = 32
    config.epochs = 20
    config.optim.name = "adamw"
    config.optim.lr = 1e-3
    config.optim.lr_factors = (("head", 1.0), ("all", 0.1))
    config.optim.weight_decay = 1e-4
    config.optim.schedule = "cosine"
    return config
