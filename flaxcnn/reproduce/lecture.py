"""The notebooks of STAT 453, L13."""

from flaxcnn.reproduce.experiment import Experiment, Row

CODED = "the notebook, as coded"
PRINTED = {  # accuracy on the test images
    "vgg16": (0.7027, CODED),
    "resnet34": (0.7324, CODED),
    "resnet152": (0.6959, f"{CODED}: a stage of 4 blocks, not 8"),
    "resnet152_intended": (0.6959, "the notebook, whose network lacks 4 blocks"),
    "allconv": (0.9642, CODED),
    "identity_blocks": (0.9247, CODED),
    "resized_blocks": (0.9768, CODED),
}
NIN, TRANSFER = "configs/nin.py:lecture", "configs/vgg16_transfer.py"

NOTEBOOKS = Experiment(
    "The lecture's notebooks (STAT 453, L13)",
    (
        *(
            Row(name, f"configs/notebooks.py:{name}", {}, accuracy, source)
            for name, (accuracy, source) in PRINTED.items()
        ),
        Row("nin", NIN, {}, 0.48, f"{CODED}: 1,000 validation images, dropout on"),
        Row("nin_intended", NIN, {"optim.lr": "5e-4", "epochs": "100"}, 0.802,
            "the author's later notebook (rasbt/deeplearning-models, nin-cifar10): "
            "1,000 validation images"),
        Row("vgg16_transfer", f"{TRANSFER}:notebook", {}, 0.579,
            f"{CODED}: 32 pixels, dropout on"),
        Row("vgg16_transfer_intended", TRANSFER, {}, 0.8423,
            "the author's later notebook (transferlearning-vgg16): 224 pixels"),
        Row("vgg16_transfer_two_layers", TRANSFER,
            {"transfer.train": "last:2", "transfer.cache_features": "false"}, None,
            "what a line of the notebook should have done, and did not"),
    ),
    published="the notebook",
)  # fmt: skip
