"""Every network that torchvision has, against torchvision, with random weights."""

import pytest
import torchvision

from tests.parity.reference import (
    compare_evaluation,
    compare_gradients,
    compare_training,
    images,
    randomize,
)

# Our endpoints that bear no name of a torchvision module.
MODULES = {
    "resnet": {"stem": "maxpool"},
    "resnext": {"stem": "maxpool"},
    "wide_resnet": {"stem": "maxpool"},
}
