"""RandWire: its graphs, its arithmetic, its edge drop."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.graphs import Graph, draw
from flaxcnn.macs import count_macs
from flaxcnn.models.randwire import Node, Stage, removable_edges

# One path, one shortcut, two inputs, two outputs.
GRAPH = Graph(5, ((0, 2), (0, 3), (1, 2), (2, 3), (2, 4)))
GENERATORS = [("er", (0.2,)), ("ba", (5,)), ("ws", (4, 0.75))]


def small(**fields):
    """A network of four classes, six channels and six nodes a stage."""
    fields = {"nodes": 6, "channels": 6, "num_classes": 4, **fields}
    return flaxcnn.create_model("randwire_ws_small", **fields)


def random_variables(model, x, seed=0):
    """Parameters and statistics that are all different, and no variance negative."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    random = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(
            random.uniform(0.5, 1.5, leaf.shape)
            if path[-1].key in ("var", "scale")
            else random.normal(0, 0.5, leaf.shape),
            jnp.float32,
        ),
        shapes,
    )


# The same seed is the same network for ever: what follows is not to be changed.
@pytest.mark.parametrize(
    ("generator", "parameters", "edges"),
    [
        ("er", (0.3,), "05 06 07 09 18 19 27 29 35 36 37 38 45 57 67 68"),
        ("ba", (3,), "03 04 05 06 09 13 14 23 25 34 35 37 38 39 46 47 48 49 56 67 68"),
        ("ws", (4, 0.5),
         "01 02 04 06 07 08 15 18 23 26 29 34 37 46 49 56 57 59 79 89"),
    ],
)  # fmt: skip
def test_a_seed_is_a_graph(generator, parameters, edges):
    edges = tuple((int(s), int(t)) for s, t in edges.split())
    assert draw(generator, 10, parameters, 0) == Graph(10, edges)


@pytest.mark.parametrize(
    ("name", "digests"),
    [
        ("randwire_ws_small", "8a60eea4319d 5498c3004094 442f0f875727"),
        ("randwire_er_small", "8155b6cb895e 57766cc4ab17 7b5385097898"),
        ("randwire_ba_small", "463bd0417935 be6043bfa50f 8d53a1071942"),
        ("randwire_ws_regular_c109",
         "1e019f6d8052 8a60eea4319d 5498c3004094 442f0f875727"),
        ("randwire_ws_regular_c154",
         "1e019f6d8052 8a60eea4319d 5498c3004094 442f0f875727"),
    ],
)  # fmt: skip
def test_a_registered_name_is_a_network(name, digests):
    graphs = flaxcnn.create_model(name).graphs().values()
    texts = [json.dumps(dataclasses.asdict(graph)).encode() for graph in graphs]
    assert [hashlib.sha256(text).hexdigest()[:12] for text in texts] == digests.split()


@pytest.mark.parametrize(("generator", "parameters"), GENERATORS)
def test_graphs_are_connected_and_directed(generator, parameters):
    for seed in range(20):
        graph = draw(generator, 32, parameters, seed)
        assert list(graph.edges) == sorted(set(graph.edges))
        assert all(0 <= source < target < 32 for source, target in graph.edges)
        part = list(range(32))
        for source, target in graph.edges:
            part = [part[source] if p == part[target] else p for p in part]
        assert len(set(part)) == 1


@pytest.mark.parametrize(
    ("generator", "parameters", "edges", "inputs", "outputs"),
    [
        # P N(N-1)/2 edges; inputs are the sum of (1-P)^i, 5, less for being connected.
        ("er", (0.2,), 99.2, 4.9, 4.9),
        ("ba", (5,), 135, 5, 7.4),  # M(N-M) edges
        ("ws", (4, 0.75), 64, 6.0, 5.2),  # NK/2 edges
    ],
)
def test_statistics_of_the_generators(generator, parameters, edges, inputs, outputs):
    graphs = [draw(generator, 32, parameters, seed) for seed in range(200)]
    mean = [np.mean([len(part) for part in parts])
            for parts in zip(*((g.edges, g.inputs, g.outputs) for g in graphs),
                             strict=True)]  # fmt: skip
    np.testing.assert_allclose(mean, [edges, inputs, outputs], rtol=0.05)


def test_barabasi_albert_starts_from_m_nodes_without_edges():
    for seed in range(5):
        graph = draw("ba", 32, (5,), seed)
        assert graph.inputs == [0, 1, 2, 3, 4]
        assert [len(sources) for sources in graph.sources[5:]] == [5] * 27
    # Preferential: the first that came is joined to far more than the last but one.
    graphs = [draw("ba", 32, (5,), seed) for seed in range(50)]
    degree = np.mean(
        [[sum(n in e for e in g.edges) for n in (5, 30)] for g in graphs], 0
    )
    assert degree[0] > 3 * degree[1]


def test_watts_strogatz_without_rewiring_is_a_ring():
    edges = {tuple(sorted((n, (n + d) % 8))) for n in range(8) for d in (1, 2)}
    assert set(draw("ws", 8, (4, 0.0), 0).edges) == edges


def test_seeds_and_stages_have_their_own_graphs():
    graphs = [
        g for s in (-1, 0, 1, 2) for g in small(nodes=32, seed=s).graphs().values()
    ]
    assert len({graph.edges for graph in graphs}) == 12


def test_listing_does_not_import_networkx():
    code = ("import sys, flaxcnn, flaxcnn.plots; flaxcnn.list_models('randwire*');"
            "print('networkx' in sys.modules)")  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr


def test_the_config_chooses_the_wiring(debug_config):
    config = debug_config("randwire_er_small", model__seed=3, model__parameters=0.3)
    fields = dict(config.model)
    model = flaxcnn.create_model(fields.pop("name"), **fields)
    assert model.graphs()["conv3"] == draw("er", 32, (0.3,), "3/conv3")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generator": "wz"}, "unknown graph generator 'wz'; did you mean 'ws'?"),
        (
            {"parameters": (0.2,)},
            r"no graph 'ws' .* parameters \(0.2,\); give \(K, P\)",
        ),
        ({"parameters": (3, 0.5)}, "no graph 'ws' has N = 6 nodes"),
        ({"parameters": (6, 0.5)}, "no graph 'ws' has N = 6 nodes"),
        ({"generator": "ba", "parameters": (6,)}, "no graph 'ba' has N = 6 nodes"),
        ({"generator": "er", "parameters": (1.5,)}, "no graph 'er' has N = 6 nodes"),
        ({"generator": "er", "parameters": (0,)}, "were not connected; raise P"),
        ({"regime": "smal"}, "unknown RandWire regime 'smal'; did you mean small?"),
    ],
)
def test_impossible_wirings(fields, message):
    with pytest.raises(FlaxcnnError, match=message.replace("'ws'?", "ws?")):
        small(**fields).graphs()


def table_1(model):
    """(parameters, multiply-adds) of the registered rows, from the table and graphs."""
    c, params, macs = model.channels, 0, 0

    def conv(size, kernel, inputs, outputs, groups=1):
        nonlocal params, macs
        weights = kernel**2 * inputs // groups * outputs
        params, macs = params + weights, macs + size**2 * weights

    conv(112, 3, 3, c // 2)
    params += 2 * (c // 2)  # of BatchNorm
    channels, size, width = c // 2, 56, c
    if model.regime == "small":
        conv(56, 3, c // 2, c)
        params += 2 * c
        channels, size = c, 28
    for graph in model.graphs().values():
        for sources in graph.sources:
            inputs = width if sources else channels
            conv(size, 3, inputs, inputs, groups=inputs)
            conv(size, 1, inputs, width)
            params += 2 * width + (len(sources) if len(sources) > 1 else 0)
        channels, size, width = width, size // 2, 2 * width
    conv(7, 1, channels, 1280)
    conv(1, 1, 1280, 1000)
    return params + 2 * 1280 + 1000, macs


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("randwire_ws_small", (5.6, 0.1), (583, 6.2)),
        ("randwire_er_small", (5.6, 0.1), (583, 6.2)),
        ("randwire_ba_small", (5.6, 0.1), (583, 6.2)),
        ("randwire_ws_regular_c109", (31.9, 0.66), (4000, 90)),
        ("randwire_ws_regular_c154", (61.5, 1.32), (7900, 180)),
    ],
)
def test_the_papers_size(name, params, macs):
    """Means over 20 networks, in millions, within the deviation the paper states."""
    info = flaxcnn.model_info(name)
    assert table_1(flaxcnn.create_model(name)) == (info.params, info.macs)
    sizes = [table_1(flaxcnn.create_model(name, seed=seed)) for seed in range(20)]
    for mean, (expected, deviation) in zip(
        np.mean(sizes, 0) / 1e6, (params, macs), strict=True
    ):
        assert abs(mean - expected) <= deviation


@pytest.mark.long
@pytest.mark.parametrize("name", flaxcnn.list_models("randwire*"))
def test_size_of_20_networks(name):
    """What test_the_papers_size calculates is what the modules have."""
    for seed in range(20):
        model = flaxcnn.create_model(name, seed=seed)
        x = jnp.zeros((1, 224, 224, 3))
        shapes = jax.eval_shape(
            lambda m=model, x=x: m.init(jax.random.key(0), x, train=False)
        )
        params = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        assert params == table_1(model)[0]
    assert count_macs(model, (224, 224, 3)) == table_1(model)[1]


class Reference:
    """The network's evaluation in float64 numpy, walking the list of edges."""

    def __init__(self, variables):
        self.params, self.stats = (
            jax.tree.map(lambda a: np.asarray(a, np.float64), variables[key])
            for key in ("params", "batch_stats")
        )

    def conv(self, x, kernel, stride):
        """Padded 3x3 or 1x1; [.., .., 1, C] convolves every channel on its own."""
        k = kernel.shape[0]
        p = k // 2
        x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        h, w = ((n - k) // stride + 1 for n in x.shape[1:3])
        total = 0
        for i, j in np.ndindex(k, k):
            tap = x[:, i : i + stride * h : stride, j : j + stride * w : stride][
                :, :h, :w
            ]
            alone = kernel.shape[2] == 1 < x.shape[3]
            total = total + (tap * kernel[i, j, 0] if alone else tap @ kernel[i, j])
        return total

    def norm(self, x, params, stats):
        x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        return x * params["scale"] + params["bias"]

    def stage(self, x, graph, params, stats, without=None):
        values = []
        for n in range(graph.nodes):
            node, y, stride = params[f"node{n}"], x, 2
            sources = sorted(s for s, t in graph.edges if t == n)
            if sources:
                y, stride = 0, 1
                weights = node.get("edge_weights", [np.inf])
                for source, weight in zip(sources, weights, strict=True):
                    if (source, n) != without:
                        y = y + values[source] / (1 + np.exp(-weight))
            y = self.conv(np.maximum(y, 0), node["depthwise"]["kernel"], stride)
            y = self.conv(y, node["pointwise"]["kernel"], 1)
            values.append(self.norm(y, node["bn"], stats[f"node{n}"]["bn"]))
        with_successors = {source for source, _ in graph.edges}
        return np.mean([v for n, v in enumerate(values) if n not in with_successors], 0)

    def __call__(self, x, graphs):
        p, s, ends = self.params, self.stats, {}

        def layer(x, number, stride):
            x = self.conv(x, p[f"conv{number}"]["kernel"], stride)
            return self.norm(x, p[f"bn{number}"], s[f"bn{number}"])

        x = ends["conv1"] = layer(np.asarray(x, np.float64), 1, 2)
        if "conv2" not in graphs:
            x = ends["conv2"] = layer(np.maximum(x, 0), 2, 2)
        for name, graph in graphs.items():
            x = ends[name] = self.stage(x, graph, p[name], s[name])
        x = np.maximum(layer(np.maximum(x, 0), 6, 1), 0)
        x = ends["pre_logits"] = x.mean((1, 2))
        return x @ p["fc"]["kernel"] + p["fc"]["bias"], ends


@pytest.mark.parametrize(
    ("generator", "parameters", "regime"),
    [("er", (0.4,), "small"), ("ba", (2,), "small"), ("ws", (2, 0.5), "regular")],
)
def test_forward_is_the_walk_along_the_edges(generator, parameters, regime):
    """Along all of them: nothing is dropped in evaluation."""
    model = small(generator=generator, parameters=parameters, regime=regime,
                  dropout=0.5, edge_drop=1.0)  # fmt: skip
    x = jax.random.uniform(jax.random.key(0), (2, 37, 50, 3))
    variables = random_variables(model, x)
    logits, ends = jax.jit(
        lambda v, x: model.apply(v, x, train=False, endpoints=True)
    )(variables, x)  # fmt: skip
    expected, expected_ends = Reference(variables)(x, model.graphs())
    assert list(ends) == list(expected_ends)
    ends, expected_ends = {**ends, "": logits}, {**expected_ends, "": expected}
    for ours, theirs in zip(ends.values(), expected_ends.values(), strict=True):
        assert ours.shape == theirs.shape
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_a_removed_edge_is_as_if_it_were_not_there():
    """Removable are the edges into nodes 2 and 3; not node 4's, which is its only."""
    stage = Stage(GRAPH, 5, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 3))
    shapes = jax.eval_shape(lambda: stage.init(jax.random.key(0), x, -1, train=False))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: random.uniform(0.1, 1, a.shape), shapes)
    reference = Reference(variables)

    @jax.jit
    def apply(dropped):
        return stage.apply(variables, x, dropped, train=False)

    removable = [(0, 2), (1, 2), (0, 3), (2, 3)]
    assert removable_edges(GRAPH) == len(removable)
    for dropped, edge in {
        -7: None,
        -1: None,
        **dict(enumerate(removable)),
        4: None,
    }.items():
        expected = reference.stage(
            np.asarray(x, np.float64), GRAPH, reference.params, reference.stats, edge
        )
        np.testing.assert_allclose(apply(dropped), expected, rtol=1e-4)


def test_which_edge_is_dropped_and_how_often():
    model = small(edge_drop=0.1)
    graphs = model.graphs()
    sources = [s for graph in graphs.values() for s in graph.sources]
    removable = sum(len(s) for s in sources if len(s) > 1)
    assert 0 < removable < sum(map(len, sources))  # not all

    def draw_one(key):
        return model.apply({}, graphs, rngs={"dropout": key}, method="_dropped")

    drawn = jax.jit(jax.vmap(draw_one))(jax.random.split(jax.random.key(0), 40_000))
    index, count = np.unique(drawn, return_counts=True)
    assert list(index) == [-1, *range(removable)]
    np.testing.assert_allclose(count[0] / 40_000, 0.9, atol=0.006)  # 4 deviations
    np.testing.assert_allclose(count[1:].mean(), 4_000 / removable, rtol=0.06)
    assert np.abs(count[1:] / count[1:].mean() - 1).max() < 0.35


def gradient_function(model, train):
    """A function of the rng's key: {path: gradient} of a sum of logits."""
    x = jax.random.uniform(jax.random.key(7), (4, 64, 64, 3))
    variables = random_variables(model, x)
    target = jax.random.normal(jax.random.key(8), (4, 4))

    @jax.jit
    def gradients(key):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params}, x, train=train,
                mutable=["batch_stats"], rngs={"dropout": key},
            )  # fmt: skip
            return (logits * target).sum()

        leaves = jax.tree_util.tree_leaves_with_path(
            jax.grad(loss)(variables["params"])
        )
        return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}

    return gradients


def dropped_edges(gradients):
    """The edges whose weight has no gradient."""
    return [(path, int(i)) for path, leaf in gradients.items()
            if "edge_weights" in path for i in np.flatnonzero(leaf == 0)]  # fmt: skip


@pytest.mark.long
def test_a_step_drops_one_edge_of_the_network():
    """Whatever it drops, the steps together reach every parameter."""
    step = gradient_function(small(nodes=5, edge_drop=1.0), train=True)
    steps = [step(jax.random.key(seed)) for seed in range(5)]
    dropped = [dropped_edges(gradients) for gradients in steps]
    assert [len(edges) for edges in dropped] == [1] * 5
    assert len({edge for (edge,) in dropped}) > 2
    for path in steps[0]:
        gradient = sum(np.abs(gradients[path]) for gradients in steps)
        assert np.isfinite(gradient).all(), path
        assert gradient.max() > 0, path
        assert (gradient > 0).all() or "edge_weights" not in path


def test_edge_drop_is_a_probability():
    model = small(edge_drop=1.5)
    with pytest.raises(FlaxcnnError, match=r"edge_drop 1\.5 is no probability"):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=True)


def test_new_edges_count_half():
    """The parameters start at 0, and an only edge has none."""
    node, x = Node(2, 1, jnp.float32), jnp.zeros((1, 2, 2, 2))
    params = node.init(jax.random.key(0), [x, x, x], train=False)["params"]
    assert list(nn.sigmoid(params["edge_weights"])) == [0.5] * 3
    params = node.init(jax.random.key(0), [x], train=False)["params"]
    assert set(params) == {"depthwise", "pointwise", "bn"}
