"""Network In Network (arXiv:1312.4400)."""

from flaxcnn.reproduce.experiment import Experiment, Row

CONFIG, SOURCE = "configs/nin.py", "arXiv:1312.4400"

NIN = Experiment(
    "Network In Network on CIFAR-10, by its author's recipe",
    (
        Row("nin", CONFIG, {}, 0.104, SOURCE),
        Row("nin_augmented", CONFIG, {"data.flip": "true", "data.translate": "5"},
            0.088, f"{SOURCE}; how far it translates is ours"),
    ),
    published="the paper",
    measure="error",
)  # fmt: skip
