"""A CPU build of torch lacks two operators that torchvision asks for on import."""

import importlib.util

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["*"]
else:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):
        library.define(
            f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
