"""Plots: files that a viewer opens, and a layout in which nothing hides."""

import numpy as np
import pytest
from PIL import Image

from flaxcnn.graphs import Graph, draw
from flaxcnn.plots import _columns, _rows, plot_graph

GRAPHS = [
    Graph(1, ()),
    Graph(3, ((0, 1), (0, 2), (1, 2))),
    draw("ws", 32, (4, 0.75), 0),
    draw("ba", 16, (5,), 0),
]


@pytest.mark.parametrize("graph", GRAPHS)
def test_layout_of_a_graph(graph):
    """Edges lead to the right, column by column, and no two items overlap."""
    column, routes = _columns(graph)
    row = _rows(column, routes)
    assert {(route[0], route[-1]) for route in routes} == {
        *graph.edges,
        *(("in", node) for node in graph.inputs),
        *((node, "out") for node in graph.outputs),
    }
    for route in routes:
        steps = [column[item] for item in route]
        assert steps == list(range(steps[0], steps[-1] + 1))
    assert set(column) == {item for route in routes for item in route}
    for c in range(column["out"] + 1):
        heights = np.sort([row[item] for item in column if column[item] == c])
        assert (np.diff(heights) > 0.25).all()
        nodes = np.sort([row[i] for i in range(graph.nodes) if column[i] == c])
        assert (np.diff(nodes) > 0.99).all()


def test_plot_of_a_graph(tmp_path):
    for i, graph in enumerate(GRAPHS):
        plot_graph(graph, tmp_path / f"{i}.png", "conv3")
        with Image.open(tmp_path / f"{i}.png") as image:
            colours = {colour[:3] for _, colour in image.getcolors(1 << 24)}
        assert (31, 119, 180) in colours  # an input's blue, or where it goes
        assert (214, 39, 40) in colours  # an output's red
