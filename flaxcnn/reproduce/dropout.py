"""Dropout of feature maps (arXiv:1411.4280) against dropout of elements."""

from flaxcnn.reproduce.experiment import Experiment, Row

CONFIG = "configs/allcnn_c.py"
SOURCE = "nothing is published of this setting"

# The image's own dropout, of elements, is the same in all of them.
DROPOUT = Experiment(
    "All-CNN-C on CIFAR-10 with dropout of elements, of feature maps, and of neither "
    "behind its reductions",
    (
        Row("elements", CONFIG, {}, None, SOURCE),
        Row("feature maps", CONFIG, {"model.spatial": "true"}, None, SOURCE),
        Row("neither", CONFIG, {"model.dropout": "0"}, None, SOURCE),
    ),
    published="published",
    measure="error",
    heading="dropout",
)
