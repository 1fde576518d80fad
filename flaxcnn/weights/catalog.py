"""Published weights: files, accuracies, preprocessing, classes.

torchvision's for ImageNet, from the metadata of torchvision 0.28
(`torchvision/models/*.py`), and the CIFAR-10 ResNets of
https://github.com/akamaster/pytorch_resnet_cifar10 (BSD 2-clause). Needs no jax.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from flaxcnn.errors import FlaxcnnError, unknown

# Of the files, by the data set of their weights.
DIRECTORIES = {
    "imagenet": "https://download.pytorch.org/models",
    "cifar10": "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/"
    "pretrained_models",
}
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """One published file of weights.

    Attributes:
      model: registered name.
      version: "AKAMASTER", or torchvision's name without "IMAGENET1K_".
      file: its name; what follows the last "-" begins its sha256.
      top1: accuracy on ImageNet val or CIFAR-10 test, in [0, 1]; None: no usable
        classifier.
      top5: likewise, of five guesses; None: not published.
      resize: shorter side before the crop, in pixels.
      crop: side of the central crop, in pixels.
      preprocess: normalisation, a kind of `flaxcnn.data.preprocess`. (torchvision's
        GoogLeNet and Inception v3 undo the ImageNet normalisation inside the model:
        the net proper sees "inception", [-1, 1].)
      data: what they were trained on, "imagenet" (its 1000 classes) or "cifar10".
    """

    model: str
    version: str
    file: str
    top1: float | None
    top5: float | None
    resize: int = 256
    crop: int = 224
    preprocess: str = "imagenet"
    data: str = "imagenet"

    @property
    def url(self) -> str:
        """Where the file is published."""
        return f"{DIRECTORIES[self.data]}/{self.file}"

    @property
    def sha256(self) -> str:
        """The first hex digits of the file's sha256, 8 or 10."""
        return Path(self.file).stem.rpartition("-")[-1]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes in the order of the logits."""
        return CIFAR10 if self.data == "cifar10" else imagenet_classes()


def weights_of(model: str) -> tuple[Weights, ...]:
    """The weights of a registered name, the default first; () if there are none."""
    return tuple(weights for weights in CATALOG if weights.model == model)


def weights_named(spec: str) -> Weights:
    """The weights called "resnet50" (its default ones) or "resnet50:V1".

    Raises:
      FlaxcnnError: an unknown model or version, or a model without weights.
    """
    model, colon, version = spec.partition(":")
    found = {weights.version: weights for weights in weights_of(model)}
    if not found:
        from flaxcnn.registry import list_models  # which imports this module

        if model in list_models():
            raise FlaxcnnError(
                f"model {model}: no weights are published; give a path of your own"
            )
        names = {weights.model for weights in CATALOG}
        raise unknown("model with published weights", model, names)
    if not colon:
        return next(iter(found.values()))
    if version not in found:
        raise FlaxcnnError(
            f"unknown version {version!r} of {model}'s weights; "
            f"there are: {', '.join(found)}"
        )
    return found[version]


def weights_of_file(file: str | os.PathLike[str]) -> Weights | None:
    """The published weights whose file has this name, in whatever directory."""
    name = Path(file).name
    return next((weights for weights in CATALOG if weights.file == name), None)


def fetch_weights(weights: Weights) -> Path:
    """The verified file: torch's own copy if there is one, else ours, downloaded once.

    torch keeps it in `hub/checkpoints` of $TORCH_HOME (default: `torch` in
    $XDG_CACHE_HOME or ~/.cache), flaxcnn in `flaxcnn/weights` of $XDG_CACHE_HOME or
    ~/.cache.

    Raises:
      FlaxcnnError: no network (told after 8 seconds), or a file with another sha256.
    """
    from flaxcnn.data.preprocess import default_cache_dir  # slow: numpy, urllib
    from flaxcnn.download import RemoteFile, fetch

    cache = default_cache_dir()
    torch_home = Path(os.environ.get("TORCH_HOME") or cache.with_name("torch"))
    theirs = torch_home.expanduser() / "hub" / "checkpoints" / weights.file
    ours = cache / "weights" / weights.file
    return fetch(
        RemoteFile(weights.url, weights.sha256),
        theirs if os.path.exists(theirs) else ours,
        f"put {weights.file} into {ours.parent} by hand, or give a path of your own",
    )


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet-1k's classes, in the order of torchvision's logits."""
    names = Path(__file__).with_name("imagenet.txt").read_text(encoding="utf-8")
    return tuple(names.splitlines())


# fmt: off
CATALOG = (
    Weights("alexnet", "V1", "alexnet-owt-7be5be79.pth", 0.56522, 0.79066),
    Weights("vgg11", "V1", "vgg11-8a719046.pth", 0.69020, 0.88628),
    Weights("vgg11_bn", "V1", "vgg11_bn-6002323d.pth", 0.70370, 0.89810),
    Weights("vgg13", "V1", "vgg13-19584684.pth", 0.69928, 0.89246),
    Weights("vgg13_bn", "V1", "vgg13_bn-abd245e5.pth", 0.71586, 0.90374),
    Weights("vgg16", "V1", "vgg16-397923af.pth", 0.71592, 0.90382),
    Weights("vgg16", "FEATURES", "vgg16_features-amdegroot-88682ab5.pth",
            None, None, preprocess="imagenet_255"),
    Weights("vgg16_bn", "V1", "vgg16_bn-6c64b313.pth", 0.73360, 0.91516),
    Weights("vgg19", "V1", "vgg19-dcbb9e9d.pth", 0.72376, 0.90876),
    Weights("vgg19_bn", "V1", "vgg19_bn-c79401a0.pth", 0.74218, 0.91842),
    Weights("resnet18", "V1", "resnet18-f37072fd.pth", 0.69758, 0.89078),
    Weights("resnet34", "V1", "resnet34-b627a593.pth", 0.73314, 0.91420),
    Weights("resnet50", "V2", "resnet50-11ad3fa6.pth", 0.80858, 0.95434, resize=232),
    Weights("resnet50", "V1", "resnet50-0676ba61.pth", 0.76130, 0.92862),
    Weights("resnet101", "V2", "resnet101-cd907fc2.pth", 0.81886, 0.95780, resize=232),
    Weights("resnet101", "V1", "resnet101-63fe2227.pth", 0.77374, 0.93546),
    Weights("resnet152", "V2", "resnet152-f82ba261.pth", 0.82284, 0.96002, resize=232),
    Weights("resnet152", "V1", "resnet152-394f9c45.pth", 0.78312, 0.94046),
    Weights("resnext50_32x4d", "V2", "resnext50_32x4d-1a0047aa.pth",
            0.81198, 0.95340, resize=232),
    Weights("resnext50_32x4d", "V1", "resnext50_32x4d-7cdf4587.pth", 0.77618, 0.93698),
    Weights("resnext101_32x8d", "V2", "resnext101_32x8d-110c445d.pth",
            0.82834, 0.96228, resize=232),
    Weights("resnext101_32x8d", "V1", "resnext101_32x8d-8ba56ff5.pth",
            0.79312, 0.94526),
    Weights("resnext101_64x4d", "V1", "resnext101_64x4d-173b62eb.pth",
            0.83246, 0.96454, resize=232),
    Weights("wide_resnet50_2", "V2", "wide_resnet50_2-9ba9bcbe.pth",
            0.81602, 0.95758, resize=232),
    Weights("wide_resnet50_2", "V1", "wide_resnet50_2-95faca4d.pth", 0.78468, 0.94086),
    Weights("wide_resnet101_2", "V2", "wide_resnet101_2-d733dc28.pth",
            0.82510, 0.96020, resize=232),
    Weights("wide_resnet101_2", "V1", "wide_resnet101_2-32ee1156.pth",
            0.78848, 0.94284),
    Weights("squeezenet1_0", "V1", "squeezenet1_0-b66bff10.pth", 0.58092, 0.80420),
    Weights("squeezenet1_1", "V1", "squeezenet1_1-b8a52dc0.pth", 0.58178, 0.80624),
    Weights("densenet121", "V1", "densenet121-a639ec97.pth", 0.74434, 0.91972),
    Weights("densenet161", "V1", "densenet161-8d451a50.pth", 0.77138, 0.93560),
    Weights("densenet169", "V1", "densenet169-b2777c0a.pth", 0.75600, 0.92806),
    Weights("densenet201", "V1", "densenet201-c1103571.pth", 0.76896, 0.93370),
    Weights("inception_v3", "V1", "inception_v3_google-0cc3c7bd.pth",
            0.77294, 0.93450, resize=342, crop=299, preprocess="inception"),
    Weights("googlenet", "V1", "googlenet-1378be20.pth",
            0.69778, 0.89530, preprocess="inception"),
    Weights("shufflenet_v2_x0_5", "V1", "shufflenetv2_x0.5-f707e7126e.pth",
            0.60552, 0.81746),
    Weights("shufflenet_v2_x1_0", "V1", "shufflenetv2_x1-5666bf0f80.pth",
            0.69362, 0.88316),
    Weights("shufflenet_v2_x1_5", "V1", "shufflenetv2_x1_5-3c479a10.pth",
            0.72996, 0.91086, resize=232),
    Weights("shufflenet_v2_x2_0", "V1", "shufflenetv2_x2_0-8be3c8ee.pth",
            0.76230, 0.93006, resize=232),
    Weights("mobilenet_v2", "V2", "mobilenet_v2-7ebf99e0.pth",
            0.72154, 0.90822, resize=232),
    Weights("mobilenet_v2", "V1", "mobilenet_v2-b0353104.pth", 0.71878, 0.90286),
    Weights("mnasnet0_5", "V1", "mnasnet0.5_top1_67.823-3ffadce67e.pth",
            0.67734, 0.87490),
    Weights("mnasnet0_75", "V1", "mnasnet0_75-7090bc5f.pth",
            0.71180, 0.90496, resize=232),
    Weights("mnasnet1_0", "V1", "mnasnet1.0_top1_73.512-f206786ef8.pth",
            0.73456, 0.91510),
    Weights("mnasnet1_3", "V1", "mnasnet1_3-a4c69d6f.pth",
            0.76506, 0.93522, resize=232),
    Weights("resnet20_cifar", "AKAMASTER", "resnet20-12fca82f.th",
            0.9173, None, resize=32, crop=32, data="cifar10"),
    Weights("resnet32_cifar", "AKAMASTER", "resnet32-d509ac18.th",
            0.9263, None, resize=32, crop=32, data="cifar10"),
    Weights("resnet44_cifar", "AKAMASTER", "resnet44-014dd654.th",
            0.9310, None, resize=32, crop=32, data="cifar10"),
    Weights("resnet56_cifar", "AKAMASTER", "resnet56-4bfd9763.th",
            0.9339, None, resize=32, crop=32, data="cifar10"),
    Weights("resnet110_cifar", "AKAMASTER", "resnet110-1d1ed7c2.th",
            0.9368, None, resize=32, crop=32, data="cifar10"),
    Weights("resnet1202_cifar", "AKAMASTER", "resnet1202-f3b1deed.th",
            0.9382, None, resize=32, crop=32, data="cifar10"),
)
# fmt: on
