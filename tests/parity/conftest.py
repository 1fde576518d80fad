"""Makes torchvision importable beside the CPU build of torch."""

import pytest

torch = pytest.importorskip("torch")

library = torch.library.Library("torchvision", "DEF")
for op in ("nms", "qnms"):
    library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
