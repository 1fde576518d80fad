"""Random graphs, directed, as the wiring of a network.

The generators are those of Xie et al. 2019 (arXiv:1904.01569, section 3.3), drawn by
networkx from random numbers that are the same on every machine. networkx 2.8 to 3.6
draw the same graphs; tests/models/test_randwire.py would notice one that does not.
Neither jax nor, before a graph is drawn, networkx is imported.
"""

import dataclasses
import random
from typing import TYPE_CHECKING

from flaxcnn.errors import FlaxcnnError, unknown

if TYPE_CHECKING:
    import networkx

PARAMETERS = {
    "er": "(P,) with 0 <= P <= 1",
    "ba": "(M,) with 0 < M < N",
    "ws": "(K, P) with K even, 0 < K < N, 0 <= P <= 1",
}
TRIES = 200


@dataclasses.dataclass(frozen=True)
class Graph:
    """A directed acyclic graph: every edge leads to a node of a higher index.

    Attributes:
      nodes: number of nodes; they are 0 to nodes - 1.
      edges: pairs (source, target), sorted, source < target.
    """

    nodes: int
    edges: tuple[tuple[int, int], ...]

    @property
    def sources(self) -> list[list[int]]:
        """Of each node, the nodes with an edge to it, ascending."""
        sources: list[list[int]] = [[] for _ in range(self.nodes)]
        for source, target in self.edges:
            sources[target].append(source)
        return sources

    @property
    def inputs(self) -> list[int]:
        """The nodes without predecessors."""
        return sorted({*range(self.nodes)} - {target for _, target in self.edges})

    @property
    def outputs(self) -> list[int]:
        """The nodes without successors."""
        return sorted({*range(self.nodes)} - {source for source, _ in self.edges})


def draw(
    generator: str, nodes: int, parameters: tuple[float, ...], seed: int | str
) -> Graph:
    """Draws a connected graph; an edge points from the lower index to the higher.

    Args:
      generator: "er", "ba" or "ws".
      nodes: number of nodes, N.
      parameters: of Erdos-Renyi (P,), each pair is an edge with this probability; of
        Barabasi-Albert (M,), edges that each new node brings; of Watts-Strogatz (K, P),
        neighbours on the ring, and the probability that an edge is rewired.
      seed: decides the graph.

    Raises:
      FlaxcnnError: the generator, or a graph with these parameters, does not exist, or
        none of 200 graphs drawn was connected.
    """
    if generator not in PARAMETERS:
        raise unknown("graph generator", generator, PARAMETERS)
    import networkx

    # Text is hashed by SHA-512, which, unlike integers, tells -1 from 1.
    rng = random.Random(str(seed))
    for _ in range(TRIES):
        graph = _draw(generator, nodes, tuple(parameters), rng)
        if graph is None:
            raise FlaxcnnError(
                f"no graph {generator!r} has N = {nodes} nodes and parameters "
                f"{tuple(parameters)}; give {PARAMETERS[generator]}"
            )
        if networkx.is_connected(graph):
            edges = sorted((min(edge), max(edge)) for edge in graph.edges)
            return Graph(nodes, tuple(edges))
    raise FlaxcnnError(
        f"{TRIES} graphs {generator!r} of N = {nodes} nodes with parameters "
        f"{tuple(parameters)} were not connected; raise P or K"
    )


def _draw(
    generator: str, nodes: int, parameters: tuple[float, ...], rng: random.Random
) -> "networkx.Graph | None":
    """A graph, maybe not connected; None if there is none with these parameters."""
    import networkx

    match generator, parameters:
        case "er", (p,) if nodes > 0 and 0 <= p <= 1:
            # The edges are independent: any order of the nodes is a random one.
            return networkx.gnp_random_graph(nodes, p, rng)
        case "ba", (m,) if m in range(1, nodes):
            # M nodes without edges, and the first new node joined to all of them.
            # networkx's own start has the centre of this star before the others,
            # which would leave a single input instead of the paper's M.
            start = networkx.star_graph([int(m), *range(int(m))])
            return networkx.barabasi_albert_graph(nodes, int(m), rng, start)
        case "ws", (k, p) if k in range(2, nodes, 2) and 0 <= p <= 1:
            return networkx.watts_strogatz_graph(nodes, int(k), p, rng)
    return None
