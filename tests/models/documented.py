"""What the models' docstrings say: endpoints, pooled width, smallest input."""

import fnmatch

BOTTLENECKS = {"stem": (4, 64), "layer1": (4, 256), "layer2": (8, 512),
               "layer3": (16, 1024), "layer4": (32, 2048)}  # fmt: skip
BASIC = {"stem": (4, 64), "layer1": (4, 64), "layer2": (8, 128), "layer3": (16, 256),
         "layer4": (32, 512)}  # fmt: skip
ALLCNN = {"block1": (2, 96), "block2": (4, 192)}
VGG = {"block1": (2, 64), "block2": (4, 128), "block3": (8, 256), "block4": (16, 512),
       "block5": (32, 512)}  # fmt: skip
GOOGLENET = {
    "conv1": (2, 64), "conv3": (4, 192), "inception3a": (8, 256),
    "inception3b": (8, 480), "inception4a": (16, 512), "inception4b": (16, 512),
    "inception4c": (16, 512), "inception4d": (16, 528), "inception4e": (16, 832),
    "inception5a": (32, 832), "inception5b": (32, 1024),
}  # fmt: skip


def mobile(*channels):
    """MobileNet v2 and MNASNet: seven blocks of these channels."""
    strides = (2, 4, 8, 16, 16, 32, 32)
    blocks = enumerate(zip(strides, channels, strict=True), start=1)
    return {**{f"block{i}": row for i, row in blocks}, "conv_head": (32, 1280)}


# The first pattern that a name matches: ({endpoint: (stride, channels)}, width, size).
# None is the number of input channels, or what they make of the width.
ROWS = {
    "allconv_mnist": ({"block1": (2, 4), "block2": (4, 8), "block3": (8, 16)}, 16, 1),
    "*cnn_[abc]*": (ALLCNN, 192, 9),
    "nin*": ({"block1": (2, 96), "block2": (4, 192), "block3": (4, 192)}, 192, 5),
    "resblocks_identity": ({"block1": (1, None), "block2": (1, None)}, None, 1),
    "resblocks_resized": ({"block1": (2, 8), "block2": (4, 32)}, 7 * 7 * 32, 1),
    "resnet18": (BASIC, 512, 1),
    "resnet34": (BASIC, 512, 1),
    "plain*": (BASIC, 512, 1),
    "resnet*_cifar": (
        {"stem": (1, 16), "layer1": (1, 16), "layer2": (2, 32), "layer3": (4, 64)},
        64, 1,
    ),
    "inception_v4": (
        {
            "stem": (8, 384), "inception_a": (8, 384), "reduction_a": (16, 1024),
            "inception_b": (16, 1024), "reduction_b": (32, 1536),
            "inception_c": (32, 1536),
        },
        1536, 75,
    ),
    "inception_resnet_v1": (
        {
            "stem": (8, 256), "repeat": (8, 256), "mixed_6a": (16, 896),
            "repeat_1": (16, 896), "mixed_7a": (32, 1792), "repeat_2": (32, 1792),
        },
        1792, 75,
    ),
    "inception_resnet_v2": (
        {
            "stem": (8, 192), "mixed_5b": (8, 320), "repeat": (8, 320),
            "mixed_6a": (16, 1088), "repeat_1": (16, 1088), "mixed_7a": (32, 2080),
            "repeat_2": (32, 2080), "block8": (32, 2080), "conv2d_7b": (32, 1536),
        },
        1536, 75,
    ),
    "*resne*t*": (BOTTLENECKS, 2048, 1),
    "vgg*": (VGG, 4096, 32),
    "alexnet": (
        {"block1": (8, 64), "block2": (16, 192), "block3": (32, 256)}, 4096, 63
    ),
    "squeezenet1_0": (
        {"stem": (2, 96), "block1": (4, 256), "block2": (8, 512), "block3": (16, 512)},
        512, 21,
    ),
    "squeezenet1_1": (
        {"stem": (2, 64), "block1": (4, 128), "block2": (8, 256), "block3": (16, 512)},
        512, 17,
    ),
    "googlenet": (GOOGLENET, 1024, 15),
    "googlenet_paper": (GOOGLENET, 1024, 31),
    "bn_inception": (
        {
            "Conv2d_1a_7x7": (2, 64), "Conv2d_2c_3x3": (4, 192), "Mixed_3b": (8, 256),
            "Mixed_3c": (8, 320), "Mixed_4a": (16, 576), "Mixed_4b": (16, 576),
            "Mixed_4c": (16, 576), "Mixed_4d": (16, 576), "Mixed_4e": (16, 576),
            "Mixed_5a": (32, 1024), "Mixed_5b": (32, 1024), "Mixed_5c": (32, 1024),
        },
        1024, 1,
    ),
    "inception_v3": (
        {
            "Conv2d_4a_3x3": (4, 192), "Mixed_5b": (8, 256), "Mixed_5c": (8, 288),
            "Mixed_5d": (8, 288), "Mixed_6a": (16, 768), "Mixed_6b": (16, 768),
            "Mixed_6c": (16, 768), "Mixed_6d": (16, 768), "Mixed_6e": (16, 768),
            "Mixed_7a": (32, 1280), "Mixed_7b": (32, 2048), "Mixed_7c": (32, 2048),
        },
        2048, 75,
    ),
    "randwire_*_small": (
        {"conv1": (2, 39), "conv2": (4, 78), "conv3": (8, 78), "conv4": (16, 156),
         "conv5": (32, 312)},
        1280, 1,
    ),
    "randwire_*_c109": (
        {"conv1": (2, 54), "conv2": (4, 109), "conv3": (8, 218), "conv4": (16, 436),
         "conv5": (32, 872)},
        1280, 1,
    ),
    "randwire_*_c154": (
        {"conv1": (2, 77), "conv2": (4, 154), "conv3": (8, 308), "conv4": (16, 616),
         "conv5": (32, 1232)},
        1280, 1,
    ),
    "densenet121": (
        {"stem": (4, 64), "denseblock1": (4, 256), "denseblock2": (8, 512),
         "denseblock3": (16, 1024), "denseblock4": (32, 1024)},
        1024, 29,
    ),
    "densenet161": (
        {"stem": (4, 96), "denseblock1": (4, 384), "denseblock2": (8, 768),
         "denseblock3": (16, 2112), "denseblock4": (32, 2208)},
        2208, 29,
    ),
    "densenet169": (
        {"stem": (4, 64), "denseblock1": (4, 256), "denseblock2": (8, 512),
         "denseblock3": (16, 1280), "denseblock4": (32, 1664)},
        1664, 29,
    ),
    "densenet201": (
        {"stem": (4, 64), "denseblock1": (4, 256), "denseblock2": (8, 512),
         "denseblock3": (16, 1792), "denseblock4": (32, 1920)},
        1920, 29,
    ),
    "shufflenet_v2_x0_5": (
        {"stem": (4, 24), "stage2": (8, 48), "stage3": (16, 96), "stage4": (32, 192),
         "conv5": (32, 1024)},
        1024, 1,
    ),
    "shufflenet_v2_x1_0": (
        {"stem": (4, 24), "stage2": (8, 116), "stage3": (16, 232), "stage4": (32, 464),
         "conv5": (32, 1024)},
        1024, 1,
    ),
    "shufflenet_v2_x1_5": (
        {"stem": (4, 24), "stage2": (8, 176), "stage3": (16, 352), "stage4": (32, 704),
         "conv5": (32, 1024)},
        1024, 1,
    ),
    "shufflenet_v2_x2_0": (
        {"stem": (4, 24), "stage2": (8, 244), "stage3": (16, 488), "stage4": (32, 976),
         "conv5": (32, 2048)},
        2048, 1,
    ),
    "mobilenet_v2": (mobile(16, 24, 32, 64, 96, 160, 320), 1280, 1),
    "mnasnet0_5": (mobile(8, 16, 24, 40, 48, 96, 160), 1280, 1),
    "mnasnet0_75": (mobile(16, 24, 32, 64, 72, 144, 240), 1280, 1),
    "mnasnet1_0": (mobile(16, 24, 40, 80, 96, 192, 320), 1280, 1),
    "mnasnet1_3": (mobile(24, 32, 56, 104, 128, 248, 416), 1280, 1),
}  # fmt: skip


def documented(name):
    """The row of a registered name."""
    return next(row for key, row in ROWS.items() if fnmatch.fnmatchcase(name, key))
