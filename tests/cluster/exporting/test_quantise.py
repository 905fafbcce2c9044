"""Which nodes of a graph become 8-bit integers."""

from __future__ import annotations

from onnx import helper

from cluster.exporting.quantise import nodes_of_network


def test_the_network_is_what_the_last_convolutions_depend_on():
    def node(kind: str, *names: str):
        *inputs, output = names
        return helper.make_node(kind, inputs, [output], name=output)

    graph = helper.make_graph(
        [
            node("Sub", "images", "mean", "normalised"),
            node("Conv", "normalised", "w", "stem"),
            node("Relu", "stem", "features"),
            node("Add", "features", "stem", "sum"),
            node("Conv", "sum", "w", "tower"),
            node("Conv", "tower", "w", "logits"),
            node("Conv", "tower", "w", "offsets"),
            # Decoding.
            node("Add", "offsets", "anchors", "centres"),
            node("Relu", "centres", "clipped"),
        ],
        "graph",
        [],
        [],
    )
    names = {each.name for each in nodes_of_network(graph)}
    assert names == {"stem", "features", "sum", "tower"}
