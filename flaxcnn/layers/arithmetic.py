"""Size arithmetic of convolution and pooling, along one axis.

Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning",
arXiv:1603.07285. Sizes are in pixels; `padding` is added on both sides.
"""

from collections.abc import Sequence

from flaxcnn.errors import FlaxcnnError


def conv_output_size(
    size: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> int:
    """Output size of a convolution or pooling: floor((size + 2p - k) / stride) + 1.

    k is the dilated kernel, dilation * (kernel - 1) + 1 (arXiv:1603.07285, relationship
    15). `ceil_mode` rounds up instead, as torch's pooling: the last window may leave
    the input but has to start inside it or its left padding. Raises FlaxcnnError if
    the kernel does not fit.
    """
    span = dilation * (kernel - 1) + 1
    room = size + 2 * padding - span
    output = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (output - 1) * stride >= size + padding:
        output -= 1
    if output < 1:
        raise FlaxcnnError(
            f"input of size {size} with padding {padding} is smaller than the window "
            f"of {span}; use a larger input"
        )
    return output


def conv_input_size(
    output: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> int:
    """The smallest input size whose `conv_output_size` is `output`.

    Raises FlaxcnnError if there is none (the padding alone gives more).
    """
    smallest = (output - 1) * stride + dilation * (kernel - 1) + 1 - 2 * padding
    if output < 1 or smallest + stride <= 1:
        raise FlaxcnnError(
            f"no input gives the output size {output} with kernel {kernel}, stride "
            f"{stride} and padding {padding}; change one of them"
        )
    return max(smallest, 1)


def same_padding(kernel: int, dilation: int = 1) -> int:
    """The padding that keeps the size at stride 1: dilation * (kernel - 1) / 2.

    Raises FlaxcnnError for an even kernel, which has no symmetric one.
    """
    if kernel % 2 == 0:
        raise FlaxcnnError(
            f"an even kernel ({kernel}) has no symmetric same padding; use an odd one"
        )
    return dilation * (kernel - 1) // 2


def receptive_field(layers: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Receptive field of a stack of (kernel, stride[, dilation]) layers, input first.

    Returns (size, jump): how many input pixels an output sees along the axis, and how
    many lie between the centres of neighbouring outputs.
    """
    size = jump = 1
    for kernel, stride, *dilation in layers:
        size += (kernel - 1) * (dilation[0] if dilation else 1) * jump
        jump *= stride
    return size, jump


def seen_pixels(
    place: int, size: int, out: int, stride: int, padding: int
) -> tuple[slice, slice]:
    """What a place of the window sees along an axis: pixels, and the windows of those.

    The windows before and after them see padding there. `place` is from the window's
    start, `size` the number of pixels, `out` that of windows, `padding` that before.
    """
    first = max(0, -((place - padding) // stride))
    start = first * stride + place - padding
    count = len(range(start, size, stride)[: max(0, out - first)])
    return slice(start, start + count * stride, stride), slice(first, first + count)
