"""Four ways to use a pretrained network on a data set."""

from flaxcnn.reproduce.experiment import Experiment, Row

# Of what the config says, each regime changes these keys.
WHOLE = {"transfer.train": "all", "transfer.cache_features": "false"}
SOURCE = "Karpathy et al., 2014 (CVPR), table 3: trained on Sports-1M, then on UCF-101"

REGIMES = Experiment(
    "Four ways to use a pretrained network",
    (
        Row("from scratch", "", {
            **WHOLE, "transfer.init_from": "", "optim.lr_factors": "()",
            "data.preprocess": "standardize",  # not that of other weights
        }, 0.413, SOURCE),
        Row("top layer", "", {"transfer.train": "head"}, 0.641, SOURCE),
        Row("top 3 layers", "", {
            "transfer.train": "last:3", "transfer.cache_features": "false"
        }, 0.654, SOURCE),
        Row("all layers", "", WHOLE, 0.622, SOURCE),
    ),
    published="Karpathy 2014, UCF-101",
    heading="trained",
)  # fmt: skip
