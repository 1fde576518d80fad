"""All-CNN-C, fast: a recipe of our own for accelerators.

    python train.py --config configs/allcnn_c_fast.py
    python train.py --config configs/allcnn_c_fast.py --config.model.name=resnet20_cifar
    flaxcnn reproduce fast --workdir runs/fast            beside airbench's figures

Large batches in bfloat16, one cycle of the learning rate, flips, translations and
cut-out squares, label smoothing, averaged weights; less dropout than the paper's. The
aim is 94 % on CIFAR-10 in as little time as possible. Seen so far: shortened, in
results/fast; there is no expected result. The paper's recipe is configs/allcnn_c.py.
"""

from ml_collections import ConfigDict

from flaxcnn import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.name = "allcnn_c"
    config.model.input_dropout = 0.0
    config.model.dropout = 0.2
    config.data.name = "tfds:cifar10"
    config.data.preprocess = "gcn_zca"
    config.data.flip = True
    config.data.translate = 4
    config.data.cutout = 8
    config.batch_size = 512
    config.epochs = 50
    config.precision = "bf16"
    config.label_smoothing = 0.1
    config.ema = 0.995
    config.optim.name = "sgd"
    config.optim.lr = 0.2
    config.optim.momentum = 0.9
    config.optim.nesterov = True
    config.optim.weight_decay = 5e-4
    config.optim.clip = 1.0
    config.optim.schedule = "onecycle"
    config.eval_every = "5 epochs"
    return config
