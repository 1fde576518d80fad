"""The ladder of Inception v3 (arXiv:1512.00567), and residual Inceptions (1602.07261).

Published are errors on ImageNet; here it is CIFAR-10 at 75 pixels.
"""

from collections.abc import Mapping

from flaxcnn.reproduce.experiment import Experiment, Row

CONFIG = "configs/inception_cifar.py"
SOURCE = "arXiv:1512.00567, table 3, ImageNet"
SLIM = "TensorFlow-slim, ImageNet"


def rung(name: str, argument: str, error: float, fields: Mapping[str, str]) -> Row:
    return Row(name, f"{CONFIG}:{argument}", fields, error, SOURCE)


# From Inception v3 on there is an auxiliary head.
V3 = {"model.aux_logits": "true"}
PLAIN = {**V3, "model.bn_aux": "false"}
BASIC = {**PLAIN, "model.factorized_7x7": "false"}
SMOOTH = {"label_smoothing": "0.1"}

LADDER = Experiment(
    "From GoogLeNet to Inception v3, one change after the other, on CIFAR-10",
    (
        rung("GoogLeNet", "googlenet_paper", 0.29, {}),
        rung("BN-GoogLeNet", "googlenet", 0.268,
             {"model.kernel_5x5": "5", "model.pool4": "3"}),
        rung("BN-Inception", "bn_inception", 0.252, {}),
        rung("v3 basic", "inception_v3", 0.234, BASIC),
        rung("+ RMSProp", "inception_v3,rmsprop", 0.231, BASIC),
        rung("+ label smoothing", "inception_v3,rmsprop", 0.228, {**BASIC, **SMOOTH}),
        rung("+ factorized 7x7", "inception_v3,rmsprop", 0.216, {**PLAIN, **SMOOTH}),
        rung("+ BN-auxiliary", "inception_v3,rmsprop", 0.212, {**V3, **SMOOTH}),
    ),
    published="the paper, ImageNet",
    measure="error",
)  # fmt: skip

# The rate at which all four begin to learn; Inception v4 does not at five times it.
SLOW = {"optim.lr": "0.002"}

RESIDUAL = Experiment(
    "Inceptions without and with residual connections on CIFAR-10",
    (
        Row("inception_v3", f"{CONFIG}:inception_v3", SLOW, 0.22, SLIM),
        Row("inception_resnet_v1", f"{CONFIG}:inception_resnet_v1", SLOW),
        Row("inception_v4", f"{CONFIG}:inception_v4", SLOW, 0.198, SLIM),
        Row("inception_resnet_v2", f"{CONFIG}:inception_resnet_v2", SLOW, 0.196, SLIM),
    ),
    published="slim, ImageNet",
    measure="error",
)
