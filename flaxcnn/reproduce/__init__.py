"""Experiments of the lecture and its papers: `flaxcnn reproduce <experiment>`.

An experiment is a table of recipes; adding one is adding a table.
"""

from flaxcnn.reproduce.allcnn import TABLE3, TABLE3_AUGMENTED
from flaxcnn.reproduce.dropout import DROPOUT
from flaxcnn.reproduce.fast import FAST
from flaxcnn.reproduce.inception import LADDER, RESIDUAL
from flaxcnn.reproduce.lecture import NOTEBOOKS
from flaxcnn.reproduce.nin import NIN
from flaxcnn.reproduce.randwire import GENERATORS
from flaxcnn.reproduce.regimes import REGIMES
from flaxcnn.reproduce.resnets import EVONORM, RESNETS

EXPERIMENTS = {
    "table3": TABLE3,
    "table3_augmented": TABLE3_AUGMENTED,  # table3 --augment
    "notebooks": NOTEBOOKS,
    "nin": NIN,
    "resnets": RESNETS,
    "inception": LADDER,
    "residual": RESIDUAL,
    "evonorm": EVONORM,
    "randwire": GENERATORS,
    "dropout": DROPOUT,
    "fast": FAST,
    "regimes": REGIMES,
}
