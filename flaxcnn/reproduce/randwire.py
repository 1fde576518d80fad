"""Generators of random wirings (arXiv:1904.01569)."""

from flaxcnn.reproduce.experiment import Experiment, Row

CONFIG = "configs/randwire.py"

GENERATORS = Experiment(
    "RandWire's three generators on CIFAR-10 at 64 pixels",
    (
        Row("WS(4, 0.75)", f"{CONFIG}:randwire_ws_small", {}, 0.747,
            "arXiv:1904.01569, ImageNet"),
        Row("ER(0.2)", f"{CONFIG}:randwire_er_small"),
        Row("BA(5)", f"{CONFIG}:randwire_ba_small"),
    ),
    published="the paper, ImageNet",
)  # fmt: skip
