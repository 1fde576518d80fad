"""Exploring Randomly Wired Neural Networks for Image Recognition.

Xie, Kirillov, Girshick, He, 2019 (arXiv:1904.01569).

Every stage is a random graph: what is designed is the generator of the wiring. A node
takes a weighted sum of its inputs, each weight the sigmoid of a parameter, and applies
ReLU, a separable 3x3 convolution and BatchNorm. Nodes without predecessors read the
stage's input, with stride 2; the stage's output is the mean of the nodes without
successors. The wiring follows from `generator`, `parameters`, `nodes` and `seed`, each
stage having a graph of its own: `model.graphs()`.

What the paper leaves open: weights of edges start at 0 (a factor 1/2), and the only
edge into a node has none, as BatchNorm would undo it. conv1 and conv2 of the small
regime are ordinary convolutions: only so do the multiply-adds come to the paper's 583M.
The last 1x1 convolution stands between ReLUs. The edge that a mini-batch may lose
(`edge_drop`) is one of the whole network's, not one of each stage's. Weights are drawn
as by He et al. 2015, and those of the classifier as torch draws them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.errors import FlaxcnnError, unknown
from flaxcnn.graphs import Graph, draw
from flaxcnn.layers import BatchNorm, Conv, global_avg_pool, relu
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import he_normal_fan_in
from flaxcnn.layers.input import check_images
from flaxcnn.registry import Info, register

REGIMES = ("small", "regular")


class Node(nn.Module):
    """Weighted sum, ReLU, separable convolution, BatchNorm (figure 2).

    Parameters: those of the layers and, with several inputs, `edge_weights` [inputs].

    Attributes:
      features: channels of the output.
      stride: of the depthwise convolution.
      dtype: of the computation.
    """

    features: int
    stride: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, inputs: Sequence[jax.Array], dropped: int | jax.Array = -1, *, train: bool
    ) -> jax.Array:
        """[N, H, W, C] each to [N, H/s, W/s, features], without input `dropped`."""
        x = inputs[0]
        if len(inputs) > 1:
            zeros = nn.initializers.zeros
            weights = self.param("edge_weights", zeros, (len(inputs),), jnp.float32)
            weights = nn.sigmoid(weights) * (jnp.arange(len(inputs)) != dropped)
            weights = weights.astype(self.dtype)
            x = sum(weight * x for weight, x in zip(weights, inputs, strict=True))
        channels = x.shape[-1]
        x = Conv(channels, (3, 3), self.stride, 1, feature_group_count=channels,
                 use_bias=False, kernel_init=he_normal_fan_in, dtype=self.dtype,
                 name="depthwise")(relu(x))  # fmt: skip
        x = Conv(self.features, (1, 1), use_bias=False, kernel_init=he_normal_fan_in,
                 dtype=self.dtype, name="pointwise")(x)  # fmt: skip
        return BatchNorm(dtype=self.dtype, name="bn")(x, train=train)


class Stage(nn.Module):
    """A graph of nodes, [N, H, W, C] to [N, H/2, W/2, features] (section 3.2).

    Attributes:
      graph: the wiring.
      features: channels of every node.
      dtype: of the computation.
    """

    graph: Graph
    features: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, dropped: int | jax.Array, *, train: bool
    ) -> jax.Array:
        """`dropped` is the index among `removable_edges` of the one to leave out."""
        outputs: list[jax.Array] = []
        for i, sources in enumerate(self.graph.sources):
            node = Node(self.features, 1 if sources else 2, self.dtype, name=f"node{i}")
            inputs = [outputs[source] for source in sources] or [x]
            outputs.append(node(inputs, dropped, train=train))
            if len(inputs) > 1:
                dropped -= len(inputs)
        ends = [outputs[node] for node in self.graph.outputs]
        return sum(ends[1:], start=ends[0]) / len(ends)


def removable_edges(graph: Graph) -> int:
    """Number of edges whose target has another edge too."""
    return sum(len(sources) for sources in graph.sources if len(sources) > 1)


@register("randwire_ws_small", info=Info(
    params=5_601_850, macs=576_261_680, paper="1904.01569"))  # fmt: skip
@register("randwire_er_small", generator="er", parameters=(0.2,), info=Info(
    params=5_627_715, macs=581_306_720, paper="1904.01569"))  # fmt: skip
@register("randwire_ba_small", generator="ba", parameters=(5,), info=Info(
    params=5_677_900, macs=583_760_444, paper="1904.01569"))  # fmt: skip
@register("randwire_ws_regular_c109", channels=109, regime="regular", dropout=0.2,
    edge_drop=0.1, info=Info(
    params=31_957_094, macs=3_978_532_384, paper="1904.01569"))  # fmt: skip
@register("randwire_ws_regular_c154", channels=154, regime="regular", dropout=0.2,
    edge_drop=0.1, info=Info(
    params=61_561_053, macs=7_827_387_520, paper="1904.01569"))  # fmt: skip
class RandWire(nn.Module):
    """Table 1.

    Endpoints: "conv1" to "conv5", of strides 2 to 32 and C/2, C, C, 2C, 4C channels in
    the small regime, C/2, C, 2C, 4C, 8C in the regular one.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 1280].
      generator: of the graphs, "er", "ba" or "ws".
      parameters: of the generator, (P,), (M,) or (K, P), as in `flaxcnn.graphs.draw`.
      nodes: of a stage's graph, N; conv2 of the regular regime has half as many.
      channels: C, of which all widths are multiples.
      regime: "small" or "regular"; in the latter conv2 is random too.
      seed: decides the graphs; 2 is the first of about the paper's mean sizes.
      dropout: rate of dropout before the classifier.
      edge_drop: probability that a training step leaves one edge out.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    generator: str = "ws"
    parameters: tuple[float, ...] = (4, 0.75)
    nodes: int = 32
    channels: int = 78
    regime: str = "small"
    seed: int = 2
    dropout: float = 0.0
    edge_drop: float = 0.0
    dtype: Dtype = jnp.float32

    def graphs(self) -> dict[str, Graph]:
        """The wiring of each random stage, in order."""
        if self.regime not in REGIMES:
            raise unknown("RandWire regime", self.regime, REGIMES)
        nodes = dict.fromkeys(("conv3", "conv4", "conv5"), self.nodes)
        if self.regime == "regular":
            nodes = {"conv2": self.nodes // 2, **nodes}
        return {
            stage: draw(self.generator, n, self.parameters, f"{self.seed}/{stage}")
            for stage, n in nodes.items()
        }

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C] of any size."""
        check_images("RandWire", x)
        if not 0 <= self.edge_drop <= 1:
            raise FlaxcnnError(
                f"RandWire edge_drop {self.edge_drop} is no probability; use 0 to 1"
            )
        graphs = self.graphs()
        dropped = self._dropped(graphs) if train and self.edge_drop else -1
        ends = {}

        def conv(x: jax.Array, features: int, size: int, number: str) -> jax.Array:
            x = Conv(features, (size, size), 2 if size > 1 else 1, size // 2,
                     use_bias=False, kernel_init=he_normal_fan_in, dtype=self.dtype,
                     name=f"conv{number}")(x)  # fmt: skip
            return BatchNorm(dtype=self.dtype, name=f"bn{number}")(x, train=train)

        c = self.channels
        x = ends["conv1"] = conv(x, c // 2, 3, "1")  # [N, 112, 112, C/2]
        if self.regime == "small":
            x = ends["conv2"] = conv(relu(x), c, 3, "2")  # [N, 56, 56, C]
        for i, (name, graph) in enumerate(graphs.items()):
            stage = Stage(graph, c * 2**i, self.dtype, name=name)
            x = ends[name] = stage(x, dropped, train=train)
            # small: [N, 28, 28, C], ..., [N, 7, 7, 4C]; regular: [N, 56, 56, C], ...
            dropped -= removable_edges(graph)
        x = relu(conv(relu(x), 1280, 1, "6"))  # [N, 7, 7, 1280]
        x = ends["pre_logits"] = global_avg_pool(x)
        x = classify(x, self.num_classes, "fc", train=train, dropout=self.dropout)
        return (x, ends) if endpoints else x

    def _dropped(self, graphs: dict[str, Graph]) -> jax.Array | int:
        """Index of the one edge to leave out among all removable ones; -1: none."""
        removable = sum(map(removable_edges, graphs.values()))
        if not removable:
            return -1
        happens, which = jax.random.split(self.make_rng("dropout"))
        edge = jax.random.randint(which, (), 0, removable)
        return jnp.where(jax.random.bernoulli(happens, self.edge_drop), edge, -1)
