"""The fast recipe beside the fastest ones that are published."""

from flaxcnn.reproduce.experiment import Experiment, Row

CONFIG = "configs/allcnn_c_fast.py"

FAST = Experiment(
    "Our fast recipe on CIFAR-10, whose aim is airbench94's accuracy",
    (
        Row("allcnn_c_bn", CONFIG, {}, 0.9401,
            "github.com/KellerJordan/cifar10-airbench, airbench94_muon.py: another "
            "network, 2.59 s on an A100"),
    ),
    published="airbench94",
)  # fmt: skip
