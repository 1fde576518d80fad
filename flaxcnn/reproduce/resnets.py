"""ResNets on CIFAR-10: depth (arXiv:1512.03385), EvoNorm (arXiv:2004.02967)."""

from flaxcnn.reproduce.experiment import Experiment, Row

CONFIG = "configs/resnet_cifar.py"
ERRORS = {20: 0.0875, 32: 0.0751, 44: 0.0717, 56: 0.0697, 110: 0.0643}
NORMS = {
    "BN-ReLU": "batchnorm", "EvoNorm-B0": "evonorm_b0", "EvoNorm-S0": "evonorm_s0"
}  # fmt: skip

RESNETS = Experiment(
    "CIFAR-10 ResNets by the paper's recipe",
    tuple(
        Row(f"resnet{depth}_cifar", f"{CONFIG}:resnet{depth}_cifar", {}, error,
            "arXiv:1512.03385, as quoted in akamaster/pytorch_resnet_cifar10")
        for depth, error in ERRORS.items()
    ),
    published="the paper",
    measure="error",
)  # fmt: skip

EVONORM = Experiment(
    "EvoNorm and BatchNorm-ReLU in a ResNet-20 on CIFAR-10, batches of 128 and of 4",
    tuple(
        Row(f"{name}, batch {size}", f"{CONFIG}:resnet20_cifar",
            {"model.norm": norm, "batch_size": str(size),
             "optim.lr": f"{0.1 * size / 128:g}"},
            None, "nothing is published of this setting")
        for size in (128, 4)
        for name, norm in NORMS.items()
    ),
    published="published",
    measure="error",
)  # fmt: skip
