"""Layers: convolution, normalisation, pooling, dropout, and their arithmetic."""

from flaxcnn.layers.activation import relu, relu6
from flaxcnn.layers.arithmetic import (
    conv_input_size,
    conv_output_size,
    receptive_field,
    same_padding,
)
from flaxcnn.layers.conv import Conv, MapDense, conv, conv_to_dense, dense_to_conv
from flaxcnn.layers.dropout import Dropout, SpatialDropout
from flaxcnn.layers.evonorm import EvoNorm
from flaxcnn.layers.norm import BatchNorm, local_response_norm
from flaxcnn.layers.pool import (
    adaptive_avg_pool,
    avg_pool,
    global_avg_pool,
    max_pool,
    p_norm_pool,
)

__all__ = [
    "BatchNorm",
    "Conv",
    "Dropout",
    "EvoNorm",
    "MapDense",
    "SpatialDropout",
    "adaptive_avg_pool",
    "avg_pool",
    "conv",
    "conv_input_size",
    "conv_output_size",
    "conv_to_dense",
    "dense_to_conv",
    "global_avg_pool",
    "local_response_norm",
    "max_pool",
    "p_norm_pool",
    "receptive_field",
    "relu",
    "relu6",
    "same_padding",
]
