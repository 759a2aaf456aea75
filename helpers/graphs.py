"""The autograd graph behind a tensor, as a networkx graph and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, takewhile
from math import inf, prod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from helpers.memory import storages

if TYPE_CHECKING:
    import networkx  # type: ignore[import-untyped]
    from matplotlib.axes import Axes

# Operations that take a weight and a bias in one call, so that knowing one of the two names the other.
_WEIGHT_AND_BIAS = ("Addmm", "Linear", "Convolution", "Norm")

# Okabe-Ito colors. The edge of a box and its text say the same without color.
_STYLES: dict[str, dict[str, Any]] = {
    "trainable": {"facecolor": "#E69F00", "linestyle": "-", "linewidth": 1.5},
    "frozen": {"facecolor": "#56B4E9", "linestyle": "--"},
    "mixed": {"facecolor": "#F0E442", "linestyle": "-."},
    "operation": {"facecolor": "white", "linestyle": "-"},
    "pruned input": {"facecolor": "#DDDDDD", "linestyle": ":"},
}
_FONT, _CHARACTER, _LINE, _PAD, _GAP, _ROW = 8, 4.82, 10.5, 4, 18, 45  # points; the font is monospace
_MANY_MODULES, _MANY_BOXES = 16, 500


def graph(output: Any, model: nn.Module | None = None) -> networkx.DiGraph:
    """The autograd graph behind a tensor, or behind a tuple, list or dict of tensors.

    An edge ``u -> v`` says that v was computed from u, so gradients flow against it, and ``networkx.ancestors(g, 0)``
    is all that the output depends on. Node 0 made the output; operations and leaves are numbered as backward finds
    them, then the inputs that it leaves out. Every node has

    - ``kind``: ``"operation"``; ``"leaf"`` (a parameter, or an input that requires grad); or ``"pruned"`` (an input
      that backward leaves out, ``(None, 0)`` in ``next_functions``: a tensor that needs no gradient, a number or an
      argument not given; autograd does not tell which).
    - ``name``: ``"AddmmBackward0"``, ``"0.weight"``; ``"Tensor"`` or ``"Parameter"`` for a leaf that ``model`` lacks.
    - ``parameter`` (qualified name in ``model``), ``frozen`` (it has ``requires_grad=False`` now) and ``shape`` of a
      leaf; None for all else. Tied weights are one leaf with their first name.
    - ``saved_bytes``: storages that the operation keeps for backward, without parameters and buffers of ``model``.
      What several keep counts for the first, so the sum is the total. Not seen: tensors set on the ``ctx`` of a
      custom ``Function``, and what a hook packs into its own objects (a checkpoint keeps 0).
    - ``module``: a qualified name, if ``model`` is given. Autograd does not record it. An operation is counted to the
      module whose parameters or buffers it takes (of several: the one around them); if it takes none, to the module
      of the operation before it (of several: the latest).

    A frozen parameter is pruned too. With ``model`` it is a leaf if the operation keeps it (a weight that a gradient
    passes) or if it is the partner of a known weight or bias in a linear, convolution or norm layer.

    Graph, gradients, versions and random state stay as they are. Hooks on saved tensors are not called, except where
    torch cannot be asked without (2.9): there a checkpoint is computed again, and counted. Time grows linearly; but
    torch 2.14 crashes as it frees a chain of some 50,000 operations that Python has walked, by whatever means.

    Raises ``TypeError`` for anything but tensors, ``ValueError`` for a tensor without history, and ``RuntimeError``
    when backward has freed the saved tensors.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> _ = net[1].requires_grad_(False)
    >>> for key, node in graph(net(torch.ones(4, 2)), net).nodes(data=True):
    ...     print(key, node["kind"], node["name"], node["frozen"], node["saved_bytes"])
    0 operation AddmmBackward0 None 0
    1 operation AddmmBackward0 None 32
    2 leaf 0.bias False 0
    3 operation TBackward0 None 0
    4 leaf 0.weight False 0
    5 pruned None None 0
    6 leaf 1.weight True 0
    7 leaf 1.bias True 0

    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#saved-tensors
    """
    import networkx

    nodes = _roots(output)
    keys = {node: key for key, node in enumerate(nodes)}
    for node in nodes:  # grows while it is walked: recursion would end at 1,000 operations
        for below, _ in node.next_functions:
            if below is not None and below not in keys:
                keys[below] = len(keys)
                nodes.append(below)

    own = [*model.named_parameters(), *model.named_buffers()] if model else []
    named = {id(tensor): name for name, tensor in own}
    counted = {storage._cdata for storage in storages(tensor for _, tensor in own)}
    found = networkx.DiGraph()
    for node in nodes:
        name = node.name().removeprefix("torch::autograd::")
        if name == "AccumulateGrad":
            _add_leaf(found, node.variable, named.get(id(node.variable)))
        else:
            _add(found, "operation", name)
    found.add_edges_from((keys[below], key) for node, key in keys.items() for below, _ in node.next_functions if below)

    # Parameters by the node that brings them, be it a leaf or the transposition or cast of one.
    brings = {key: {leaf["parameter"]} for key, leaf in found.nodes(data=True) if leaf["parameter"]}
    leaves = {name: key for key, (name,) in brings.items()}
    latest: dict[int, int] = {}
    for key in [key for key in _forward(found) if found.nodes[key]["kind"] == "operation"]:
        node, attributes, inputs = nodes[key], found.nodes[key], list(found.predecessors(key))
        pruned = sum(below is None for below, _ in node.next_functions)
        takes = set().union(*(brings.get(source, ()) for source in inputs))
        kept = list(_kept(node))
        if not kept and not pruned and all(source in brings for source in inputs):
            brings[key] = takes
        for storage in storages(tensor for tensor in kept if not isinstance(tensor, nn.Parameter)):
            if storage._cdata not in counted:
                counted.add(storage._cdata)
                attributes["saved_bytes"] += storage.nbytes()

        known: list[Any] = [tensor for tensor in kept if id(tensor) in named]
        owners = {name.rpartition(".")[0] for name in takes.union(named[id(tensor)] for tensor in known)}
        if model and len(owners) == 1 and any(word in attributes["name"] for word in _WEIGHT_AND_BIAS):
            known += [getattr(model.get_submodule(*owners), part, node) for part in ("weight", "bias")]
        for tensor in known:
            name = named.get(id(tensor))
            if pruned and tensor is None:  # a layer without bias
                pruned -= 1
            elif pruned and isinstance(tensor, nn.Parameter) and not tensor.requires_grad and name not in takes:
                pruned -= 1
                takes.add(name)
                if name not in leaves:
                    leaves[name] = _add_leaf(found, tensor, name)
                found.add_edge(leaves[name], key)
        if model:
            before = max((source for source in inputs if source in latest), key=latest.__getitem__, default=None)
            inherited = "" if before is None else found.nodes[before]["module"]
            attributes["module"] = _around(owners) if owners else inherited
        latest[key] = len(latest)
        for _ in range(pruned):
            found.add_edge(_add(found, "pruned", "None", module=attributes["module"]), key)
    return found


def draw(graph: networkx.DiGraph, ax: Axes | None = None, by: str = "op") -> Axes:
    """Draw what ``graph`` gave: inputs at the top, the output at the bottom, arrows from what is used to what uses it.

    ``by="op"``: a box for every operation, leaf and pruned input. ``by="module"``: a box for every module, as deep as
    16 boxes allow (ResNet-18: ``conv1``, ``bn1``, ``layer1.0`` ... ``fc``), with the parameters that the graph meets
    there; pruned inputs are shown where the graph begins. Both write the bytes saved for backward. The color of a box,
    its edge and its text each tell trainable from frozen.

    Returns the Axes; ``ax.words`` says in words what is drawn. Without ``ax`` a figure is made that fits, 7.5 inches
    wide or more. In an ``ax`` of your own the text keeps its 8 points, so give it as much room.

    Raises ``ValueError`` for another ``by``, for ``by="module"`` when ``graph`` had no ``model``, and for more than 500
    boxes.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> _ = net[1].requires_grad_(False)
    >>> print(draw(graph(net(torch.ones(4, 2)), net), by="module").words.replace("; ", "\\n"))
    graph of 8 nodes: 2 trainable leaves, 2 frozen leaves, 1 pruned input, saved 32 B
    None: pruned input
    0: trainable, 9 params, saved 32 B
    1: frozen, 4 params
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, Patch
    from matplotlib.transforms import TransformedPatchPath

    if by not in ("op", "module"):
        raise ValueError(f'by is "op" or "module", not {by!r}.')
    box = _by_module(graph) if by == "module" else {key: key for key in graph}
    members: dict[Any, list] = {}
    for key in reversed(_forward(graph)):  # backwards: a module stands where its last operation does
        members.setdefault(box[key], []).append(graph.nodes[key])
    if len(members) > _MANY_BOXES:
        raise ValueError(f'{len(members)} boxes are too many to read; draw by="module", or a smaller part.')
    boxes = {key: _label(key, members[key]) for key in reversed(members)}
    edges = list(dict.fromkeys((box[u], box[v]) for u, v in graph.edges if box[u] != box[v]))
    places = _places({key: label for key, (label, _) in boxes.items()}, edges)

    left, right = min(x - w for x, _, w, _ in places.values()), max(x + w for x, _, w, _ in places.values())
    spare = max(540 - right + left, 2 * _GAP) / 2
    top = max(y for _, y, _, _ in places.values()) + _ROW / 2
    if ax is None:
        _, ax = plt.subplots(figsize=((right - left + 2 * spare) / 72, (top + _ROW) / 72), layout="constrained")
    ax.set(xlim=(left - spare, right + spare), ylim=(-_ROW, top))
    ax.set_axis_off()
    clip = TransformedPatchPath(ax.patch)  # one for all artists: left alone, each gets its own, which takes longer
    text: dict[str, Any] = {"ha": "center", "va": "center", "size": _FONT, "family": "monospace", "color": "black"}
    for key, (label, style) in boxes.items():
        edged = {"boxstyle": f"round,pad={_PAD / _FONT}", "edgecolor": "black"} | _STYLES[style]
        ax.text(*places[key][:2], label, bbox=edged, zorder=2, clip_path=clip, **text)
    line: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0, "color": "0.35"}
    for source, target in edges:
        (x1, y1, _, h1), (x2, y2, _, h2) = places[source], places[target]
        # An arrow past other rows bends to the left, as far as the boxes in its way reach.
        passed = [x1 - x + w for x, y, w, _ in places.values() if y2 < y < y1 and max(abs(x - x1), abs(x - x2)) < w]
        bend = 2 * (max(passed) + _GAP) / (y1 - y2) if passed else 0
        path: dict[str, Any] = {"posA": (x1, y1 - h1), "posB": (x2, y2 + h2), "connectionstyle": f"arc3,rad={bend}"}
        ax.add_artist(FancyArrowPatch(clip_path=clip, **path, **line))
    shown = {style for _, style in boxes.values()}
    handles = [Patch(edgecolor="black", label=name, **style) for name, style in _STYLES.items() if name in shown]
    ax.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=_FONT, frameon=False)
    words = [_summary(graph), *(label.replace("\n", ": ") for label, _ in boxes.values())]
    ax.words = "; ".join(words)  # type: ignore[attr-defined]
    return ax


def _roots(output: Any) -> list[Any]:
    """The nodes that made the tensors of ``output``, or an error that says why there are none."""
    tensors = [leaf for leaf in tree_leaves(output) if leaf is not None]
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in tensors})) or "nothing"
        raise TypeError(f"graph() takes a tensor, or a tuple, list or dict of tensors; it got {kinds}.")
    if roots := list(dict.fromkeys(tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None)):
        return roots
    if tensors[0].is_inference():
        why = "it was made under inference_mode. Compute it again without."
    elif tensors[0].requires_grad:
        why = "it is a leaf, computed from nothing. Pass a result computed from it."
    else:
        why = (
            "it does not require grad: it was made under no_grad or detached, or everything it was computed from is "
            "frozen or plain data. Compute it again with gradients on and an input or parameter that requires grad."
        )
    raise ValueError(f"There is no graph behind this tensor (its grad_fn is None), because {why}")


def _kept(node: Any) -> Iterator[Tensor]:
    """The tensors that ``node`` keeps for backward; of a view, such as a transposed weight, the whole."""
    try:
        for raw in (name for name in dir(type(node)) if name.startswith("_raw_saved_")):
            value = getattr(node, raw)
            for saved in value if isinstance(value, tuple) else (value,):
                packed = getattr(saved, "data", None)
                if packed is None:
                    # An argument not given, or freed (then this raises), or a torch without SavedTensor.data.
                    packed = getattr(node, "saved_tensors" if raw == "_raw_saved_tensors" else raw.removeprefix("_raw"))
                for tensor in tree_leaves(packed):
                    if isinstance(tensor, Tensor):
                        yield tensor if tensor._base is None else tensor._base
    except RuntimeError as error:
        if "freed" not in str(error):
            raise
        raise RuntimeError(
            f"backward() has freed what {node.name()} had saved, so there is no whole graph to show. "
            "Call graph() before backward(), or use backward(retain_graph=True)."
        ) from error


def _around(names: set[str]) -> str:
    """``{"a.b.c", "a.b.d"}`` gives ``a.b``."""
    levels = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _add(found: networkx.DiGraph, kind: str, name: str, **attributes: Any) -> int:
    key = len(found)
    empty = {"parameter": None, "frozen": None, "shape": None, "saved_bytes": 0, "module": None}
    found.add_node(key, kind=kind, name=name, **empty | attributes)
    return key


def _add_leaf(found: networkx.DiGraph, tensor: Tensor, parameter: str | None) -> int:
    known = {"parameter": parameter, "module": parameter.rpartition(".")[0]} if parameter else {}
    name, shape = parameter or type(tensor).__name__, tuple(tensor.shape)
    return _add(found, "leaf", name, frozen=not tensor.requires_grad, shape=shape, **known)


def _forward(graph: networkx.DiGraph) -> list[int]:
    """The nodes in an order in which they can be computed, each as late as it can be."""
    import networkx

    return list(networkx.topological_sort(graph.reverse(copy=False)))[::-1]


def _by_module(graph: networkx.DiGraph) -> dict[int, Any]:
    """The box of every node: a module; its own key for a leaf of no module; a tuple for where the graph begins."""
    names = {key: node["module"] for key, node in graph.nodes(data=True)}
    if all(name is None for name in names.values()):
        raise ValueError('by="module" needs the module names: make the graph with graph(output, model).')
    for depth in range(max(name.count(".") for name in names.values() if name is not None) + 1, 0, -1):
        box = {key: key if name is None else ".".join(name.split(".")[:depth]) for key, name in names.items()}
        if len(set(box.values())) <= _MANY_MODULES:
            break
    fed = {box[v] for u, v in graph.edges if box[u] != box[v]}
    return {k: (b,) if graph.nodes[k]["kind"] == "pruned" and b not in fed else b for k, b in box.items()}


def _label(box: Any, nodes: list[dict]) -> tuple[str, str]:
    """What a box says, and its style."""
    if nodes[-1]["kind"] == "pruned" and not isinstance(box, str):
        return "None\npruned input", "pruned input"
    leaves, saved = [node for node in nodes if node["kind"] == "leaf"], sum(node["saved_bytes"] for node in nodes)
    flags = {node["frozen"] for node in leaves}
    style = "operation" if not flags else "mixed" if len(flags) == 2 else "frozen" if True in flags else "trainable"
    facts = [f"saved {_size(saved)}"] if saved else []
    if leaves:
        count = f"{sum(prod(node['shape']) for node in leaves):,} params"
        facts = [style, count if isinstance(box, str) else str(leaves[0]["shape"]), *facts]
    title = box or "(model)" if isinstance(box, str) else nodes[0]["name"]
    return "\n".join([title, ", ".join(facts)]).strip(), style


def _places(labels: dict[Any, str], edges: list[tuple]) -> dict[Any, tuple[float, float, float, float]]:
    """Center, half width and half height in points: a box is one row above the topmost that uses it, the main line
    straight and what feeds it on the right.
    """
    order = {key: index for index, key in enumerate(labels)}
    users: dict[Any, list] = {key: [] for key in labels}
    way = dict.fromkeys(labels, 0)  # the longest way from the top
    for source, target in sorted(edges, key=lambda edge: order[edge[0]]):
        if order[source] < order[target]:  # a module used twice has edges back as well
            users[source].append(target)
            way[target] = max(way[target], way[source] + 1)
    row: dict[Any, int] = {}
    for key in reversed(labels):
        row[key] = 1 + max((row[user] for user in users[key]), default=-1)

    places: dict[Any, tuple[float, float, float, float]] = {}
    for level, keys in groupby(sorted(labels, key=row.__getitem__), key=row.__getitem__):
        wish = {key: sum(places[user][0] for user in users[key]) / max(len(users[key]), 1) for key in keys}
        end = -inf
        for key in sorted(wish, key=lambda key: (wish[key], -way[key])):
            lines = labels[key].split("\n")
            width, height = max(map(len, lines)) * _CHARACTER / 2 + _PAD, len(lines) * _LINE / 2 + _PAD
            x = max(wish[key], end + _GAP + width)
            places[key] = x, level * _ROW, width, height
            end = x + width
    return places


def _size(nbytes: float) -> str:
    units = iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while nbytes >= 1000:
        nbytes, unit = nbytes / 1024, next(units)
    return f"{nbytes:.3g} {unit}"


def _summary(graph: networkx.DiGraph) -> str:
    nodes = [node for _, node in graph.nodes(data=True)]
    trainable, frozen = (sum(node["frozen"] is flag for node in nodes) for flag in (False, True))
    pruned, saved = sum(node["kind"] == "pruned" for node in nodes), sum(node["saved_bytes"] for node in nodes)
    return (
        f"graph of {len(nodes)} nodes: {trainable} trainable leaves, {frozen} frozen leaves, "
        f"{pruned} pruned input{'s' * (pruned != 1)}, saved {_size(saved)}"
    )
