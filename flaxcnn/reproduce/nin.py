"""Network In Network (arXiv:1312.4400)."""

from flaxcnn.reproduce.experiment import Experiment, Row

CONFIG, SOURCE = "configs/nin.py", "the README of mavenlin/cuda-convnet"

NIN = Experiment(
    "Network In Network on CIFAR-10, by its author's recipe",
    (
        Row("nin", CONFIG, {}, 0.104, SOURCE),
        Row("nin_augmented", CONFIG, {"data.flip": "true", "data.translate": "5"},
            0.088, "arXiv:1312.4400, unchecked; how far it translates is ours"),
    ),
    published="its author",
    measure="error",
)  # fmt: skip
