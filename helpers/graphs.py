"""The autograd graph behind a tensor, as a networkx graph and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, groupby, takewhile
from math import inf, prod
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from helpers.memory import dense_parts, storages

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
    "not in the graph": {"facecolor": "#BBBBBB", "linestyle": "-", "linewidth": 0.5},
}
_FONT, _CHARACTER, _LINE, _PAD, _GAP, _ROW = 8, 4.82, 10.5, 4, 18, 45  # points; the font is monospace
_MANY_MODULES, _MANY_ALIKE, _MANY_BOXES = 16, 4, 60


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
      module that has the parameters and buffers it takes (if none has them all: the one around them); if it takes
      none, to the module of the operation before it (of several: the latest).

    A frozen parameter is pruned too. With ``model`` it is a leaf if the operation keeps it (a weight that a gradient
    passes) or if it is the partner of a known weight or bias in a linear, convolution or norm layer. Under autocast
    the operation keeps a cast copy instead, so a frozen weight stays a pruned input there.

    ``graph.graph["outside"]`` has the parameters of ``model`` that the graph does not meet, by name, each with
    ``frozen`` and ``shape``. What FSDP has gathered for a block and sharded again is a ``"Parameter"`` without a name.

    Graph, gradients, versions and random state stay as they are. Hooks on saved tensors are not called, except where
    torch cannot be asked without (2.9): there a checkpoint is computed again, and counted. Time grows linearly; but
    torch 2.14 crashes as it frees a chain of some 50,000 operations that Python has walked, by whatever means.

    Raises ``TypeError`` for anything but tensors, and says which fields of a library's output object are tensors;
    ``ValueError`` for a tensor without history; ``RuntimeError`` when backward has freed the saved tensors.

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

    own = _Own(model)
    counted = {storage._cdata for storage in storages(own.tensors.values())}
    found = networkx.DiGraph()
    for node in nodes:
        name = node.name().removeprefix("torch::autograd::")
        if name == "AccumulateGrad":
            _add_leaf(found, node.variable, own.name(node.variable))
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

        known = [name for tensor in kept if (name := own.name(tensor))]
        homes = own.homes(takes.union(known))
        partners: list[Any] = []
        owners = [own.slots[home] for home in homes if home in own.slots]  # one, too, if it has several names
        if len(owners) == 1 and any(word in attributes["name"] for word in _WEIGHT_AND_BIAS):
            partners = [owners[0].get(part, node) for part in ("weight", "bias")]
        for tensor in [own.tensors[name] for name in known] + partners:
            if pruned and tensor is None:  # a layer without bias
                pruned -= 1
            elif pruned and isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
                name = own.name(tensor)
                if name not in takes:
                    pruned -= 1
                    takes.add(name)
                    if name not in leaves:
                        leaves[name] = _add_leaf(found, tensor, name)
                    found.add_edge(leaves[name], key)
        if model:
            before = max((source for source in inputs if source in latest), key=latest.__getitem__, default=None)
            inherited = "" if before is None else found.nodes[before]["module"]
            attributes["module"] = homes[0] if homes else inherited
        latest[key] = len(latest)
        for _ in range(pruned):
            found.add_edge(_add(found, "pruned", "None", module=attributes["module"]), key)
    found.graph["outside"] = {
        name: {"frozen": not tensor.requires_grad, "shape": tuple(tensor.shape)}
        for name, tensor in own.tensors.items()
        # Of FSDP's shards the graph meets what was gathered.
        if isinstance(tensor, nn.Parameter)
        and not (is_lazy(tensor) or name in leaves or hasattr(tensor, "_local_tensor"))
    }
    return found


def draw(graph: networkx.DiGraph, ax: Axes | None = None, by: str = "op") -> Axes:
    """Draw what ``graph`` gave: inputs at the top, the output at the bottom, arrows from what is used to what uses it.

    ``by="op"``: a box for every operation, leaf and pruned input. ``by="module"``: a box for every module, opened as
    far as about 16 boxes allow: the partly frozen ones first, then those with the most parameters (ResNet-18:
    ``conv1``, ``bn1``, ``layer1.0`` ... ``fc``). More than four like neighbors are one box, ``blocks.0-11``. A module
    that is used again, after what its first use feeds, gets a second box. Pruned inputs are shown where the graph
    begins. Parameters that the graph does not meet stand beside it, in grey, with their count (under autocast those
    of a frozen layer that a gradient passes, too). Both write the bytes saved for backward. The color of a box, its
    edge and its text each tell trainable from frozen.

    Returns the Axes; ``ax.words`` says in words what is drawn, and its label, unless it has one, says it in short.
    Without ``ax`` a figure is made that fits, 7.5 inches wide or more. In an ``ax`` of your own the text keeps its 8
    points, so give it as much room.

    Raises ``ValueError`` for another ``by``, for ``by="module"`` when ``graph`` had no ``model``, and for more than 60
    boxes: with ``by="op"``, nodes of the graph.

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
    from matplotlib.path import Path
    from matplotlib.transforms import TransformedPatchPath

    if by not in ("op", "module"):
        raise ValueError(f'by is "op" or "module", not {by!r}.')
    inside, graph = graph, graph.copy()
    for number, (name, leaf) in enumerate(graph.graph.get("outside", {}).items(), max(graph, default=0) + 1):
        graph.add_node(number, kind="leaf", name=name, module=name.rpartition(".")[0], saved_bytes=0, **leaf)
    title = _by_module(graph) if by == "module" else {key: key for key in graph}
    if (count := len({title[key] for key in inside})) > _MANY_BOXES:
        raise ValueError(
            f"{count} boxes make a picture that is too tall to read (more than {_MANY_BOXES}). "
            'Draw by="module", or the graph of a smaller part.'
        )
    members, down, up = _boxes(graph, title)
    boxes = _labels(graph, title, members)
    places = _places({key: label for key, (label, _) in boxes.items()}, down)
    routes, lanes = _routes(places, down + up)

    left, right = min([x - w for x, _, w, _ in places.values()] + lanes), max(x + w for x, _, w, _ in places.values())
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
    for points in routes:
        path = Path(points, [Path.MOVETO, *(Path.LINETO if len(points) == 2 else Path.CURVE4 for _ in points[1:])])
        line = FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=8, color="0.35", clip_path=clip)
        ax.add_artist(line)
    shown = {style for _, style in boxes.values()}
    handles = [Patch(edgecolor="black", label=name, **style) for name, style in _STYLES.items() if name in shown]
    ax.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=_FONT, frameon=False)
    words = [_summary(inside), *(label.replace("\n", ": ") for label, _ in boxes.values())]
    ax.words = "; ".join(words)  # type: ignore[attr-defined]
    ax.set_label(ax.get_label() or words[0])  # which its repr tells
    return ax


class _Own:
    """The parameters and buffers of a model by name, and the names that a tensor has.

    A tensor is known by identity, or else by its place in memory, as a hook may have saved it detached. No name is
    looked up as a module, as wrappers rename modules and not parameters; no attribute is read, as that may run code.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.tensors: dict[str, Tensor] = {}  # by first name
        self.slots: dict[str, dict[str, Tensor | None]] = {}  # what each module has of its own, by its name there
        self._names: dict[Any, list[str]] = {}
        for kind in (model.named_parameters, model.named_buffers) if model is not None else ():
            for name, tensor in kind(remove_duplicate=False):
                self._names.setdefault(id(tensor), []).append(name)
                self.tensors.setdefault(self._names[id(tensor)][0], tensor)
        for tensor in self.tensors.values():
            self._names.setdefault(_place(tensor), self._names[id(tensor)])
        for path, module in model.named_modules() if model is not None else ():
            slots = dict(chain(module._parameters.items(), module._buffers.items()))
            homes = self.homes({names[0] for tensor in slots.values() if (names := self._names.get(id(tensor)))})
            self.slots[path if path in homes or not homes else homes[0]] = slots

    def name(self, tensor: Tensor) -> str | None:
        names = self._names and (self._names.get(id(tensor)) or self._names.get(_place(tensor)))
        return names[0] if names else None

    def homes(self, names: set[str]) -> list[str]:
        """The modules that have all of these as their own; if there is none, the one around them."""
        each = [[name.rpartition(".")[0] for name in self._names[id(self.tensors[first])]] for first in names]
        common = [home for home in each[0] if all(home in homes for homes in each)] if names else []
        return common or [_around({homes[0] for homes in each})] * bool(names)


def _place(tensor: Tensor) -> Any:
    """Where the values begin: the same for a parameter and for what was detached from it."""
    parts = [] if is_lazy(tensor) else dense_parts(tensor)
    return (parts[0].untyped_storage()._cdata, parts[0].storage_offset()) if parts else id(tensor)


def _roots(output: Any) -> list[Any]:
    """The nodes that made the tensors of ``output``, or an error that says why there are none."""
    tensors = [leaf for leaf in tree_leaves(output) if leaf is not None]
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in tensors})) or "nothing"
        raise TypeError(
            f"graph() takes a tensor, or a tuple, list or dict of tensors; it got {kinds}.{_fields(output)}"
        )
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


def _fields(output: Any) -> str:
    """What to pass instead of an object that holds tensors among other things."""
    fields = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    names = [str(name) for name, value in fields.items() if isinstance(value, Tensor)]
    one = f"out[{names[0]!r}]" if names and type(output) is dict else f"out.{names[0]}" if names else ""
    return f" It holds tensors under {', '.join(names)}: pass one of them, as {one}." if names else ""


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
    """What each node is drawn as: a module, a run of modules, itself if it belongs to none; ``(module,)`` if pruned.

    At first all is one box. Those that are partly frozen are opened into their children, then those with the most
    parameters, as long as the boxes are few enough.
    """
    modules = {key: node["module"] for key, node in graph.nodes(data=True) if node["kind"] != "pruned"}
    if all(module is None for module in modules.values()):
        raise ValueError('by="module" needs the module names: make the graph with graph(output, model).')
    title: dict[int, Any] = {key: key if module is None else "" for key, module in modules.items()}
    closed: set[Any] = set(title.values()) - {""}
    while True:
        facts = _facts(graph, title)
        sizes = {
            box: (facts[box].mixed, facts[box].leaves)
            for key, box in title.items()
            if box not in closed and _child(modules[key], box) != box and (facts[box].met or facts[box].mixed)
        }
        if not sizes:
            pruned = (key for key in graph if key not in title)
            return title | {key: (title.get(next(graph.successors(key), -1)),) for key in pruned}
        opening = {box for box, size in sizes.items() if size == max(sizes.values())}
        opened = {key: _child(modules[key], box) if box in opening else box for key, box in title.items()}
        parts = {box: part for box, part in _facts(graph, opened).items() if box not in facts}
        closed |= opening
        for last, like in enumerate((lambda part: part, lambda part: part.flags)):
            runs = _runs({box: like(part) for box, part in parts.items()})
            folded = {key: runs.get(box, box) for key, box in opened.items()}
            few = sum(part.met for part in _facts(graph, folded).values()) <= _MANY_MODULES
            if few or (last and opening == {""}):
                title, lists = folded, set(map(_stem, runs))  # one of a list is no more than the others
                closed |= {box for box, part in parts.items() if _stem(box) in lists and not part.mixed}
                break


def _child(module: Any, box: Any) -> Any:
    """The part of ``box`` that ``module`` is in, or ``box`` itself if it is in none."""
    prefix = box and f"{box}."
    return box if box == module or not module.startswith(prefix) else prefix + module[len(prefix) :].partition(".")[0]


def _stem(box: Any) -> str:
    return str(box).rstrip("0123456789")


def _runs(boxes: dict[Any, Any]) -> dict[str, str]:
    """``{"blocks.0": "blocks.0-11", ...}`` where more than four numbered neighbors are alike."""
    numbered = sorted((_stem(box), int(box[len(_stem(box)) :]), box) for box in boxes if box != _stem(box))
    runs: dict[str, str] = {}
    for (stem, _), run in groupby(numbered, key=lambda item: (item[0], boxes[item[2]])):
        _, numbers, same = zip(*run, strict=True)
        if len(same) > _MANY_ALIKE:
            runs |= dict.fromkeys(same, f"{stem}{numbers[0]}-{numbers[-1]}")
    return runs


class _Facts(NamedTuple):
    """Of a box: whether the graph meets it, how many parameters it has, how many numbers these are, their flags."""

    met: bool = False
    leaves: int = 0
    numel: int = 0
    flags: frozenset[bool] = frozenset()

    @property
    def mixed(self) -> bool:
        return len(self.flags) == 2


def _facts(graph: networkx.DiGraph, title: dict[int, Any]) -> dict[Any, _Facts]:
    facts: dict[Any, _Facts] = {}
    for key, box in title.items():
        (met, leaves, numel, flags), node = facts.get(box, _Facts()), graph.nodes[key]
        if node["kind"] == "leaf":
            leaves, numel, flags = leaves + 1, numel + prod(node["shape"]), flags | {node["frozen"]}
        facts[box] = _Facts(met or node["kind"] != "leaf" or graph.degree(key) > 0, leaves, numel, flags)
    return facts


def _boxes(graph: networkx.DiGraph, title: dict[int, Any]) -> tuple[dict[tuple, list], list[tuple], list[tuple]]:
    """The nodes of each box, from the top, and the arrows between boxes: those that lead down, and those that lead up.

    A box is a title and its use. What is used again, after others that its first use feeds, gets a second box. Its
    third use joins that, with an arrow up.
    """
    import networkx

    box: dict[int, tuple] = {}
    members: dict[tuple, list] = {}
    above: dict[tuple, set] = {}  # all boxes that lead to one, however far
    leads_up: dict[tuple, bool] = {}
    weights: set[int] = set()  # leaves, and what they become before they are used
    for key in _forward(graph):
        inputs = list(graph.predecessors(key))
        if weights.issuperset(inputs) and (inputs or graph.nodes[key]["kind"] == "leaf"):
            weights.add(key)
        sources = dict.fromkeys(box[u] for u in inputs if u not in weights or title[u] != title[key])
        this = box[key] = (title[key], 1 + any((title[key], 1) in above[source] for source in sources))
        members.setdefault(this, []).append(key)
        above.setdefault(this, set())
        for source in sources:
            if source != this and not leads_up.setdefault((source, this), this in above[source]):
                for known in [above[this], *(known for known in above.values() if this in known)]:
                    known |= above[source] | {source}
    # Of pruned inputs only those where the graph begins.
    fed = {target for source, target in leads_up if not isinstance(source[0], tuple)}
    edges = [edge for edge in leads_up if edge[1] not in fed or not isinstance(edge[0][0], tuple)]
    begins = {source for source, _ in edges}
    down = networkx.DiGraph(edge for edge in edges if not leads_up[edge])
    down.add_nodes_from(this for this in members if this in begins or not isinstance(this[0], tuple))
    last = {this: index for index, this in enumerate(box.values())}
    shown = {this: members[this] for this in networkx.lexicographical_topological_sort(down, last.get)}
    return shown, list(down.edges), [edge for edge in edges if leads_up[edge]]


def _labels(graph: networkx.DiGraph, title: dict[int, Any], boxes: dict[tuple, list]) -> dict[tuple, tuple[str, str]]:
    """What each box says, and its style. What the graph does not meet is one box for each flag."""
    facts = _facts(graph, title)
    labels: dict[tuple, tuple[str, str]] = {}
    outside: dict[str, list[tuple]] = {}
    for (name, use), keys in boxes.items():
        part, node, is_module = facts[name], graph.nodes[keys[0]], isinstance(name, str)
        if node["kind"] == "pruned":
            labels[name, use] = "None\npruned input", "pruned input"
            continue
        flags = part.flags
        if is_module and not flags:  # what it takes is counted elsewhere
            flags = frozenset(graph.nodes[u]["frozen"] for key in keys for u in graph.predecessors(key)) - {None}
        style = "operation" if not flags else "mixed" if len(flags) == 2 else "frozen" if True in flags else "trainable"
        heading = (name or "(model)") + ", again" * (use - 1) if is_module else node["name"]
        if not part.met:
            outside.setdefault(style, []).append((min(keys), heading, part.numel))
            continue
        facts_said = [style] if flags else []
        if part.leaves and use == 1:
            facts_said.append(f"{part.numel:,} params" if is_module else str(node["shape"]))
        if saved := sum(graph.nodes[key]["saved_bytes"] for key in keys):
            facts_said.append(f"saved {_size(saved)}")
        labels[name, use] = "\n".join([heading, ", ".join(facts_said)]).strip(), style
    for style, found in sorted(outside.items()):
        _, names, counts = zip(*sorted(found), strict=True)
        heading = ", ".join(names) if len(names) < 4 else f"{names[0]} ... {names[-1]}"
        labels[style, 0] = f"{heading}\n{style}, {sum(counts):,} params, not in the graph", "not in the graph"
    return labels


def _places(labels: dict[Any, str], edges: list[tuple]) -> dict[Any, tuple[float, float, float, float]]:
    """Center, half width and half height in points: a box is one row above the topmost that uses it, the main line
    straight and what feeds it on the right. What has no arrow stands in the topmost row.
    """
    order = {key: index for index, key in enumerate(labels)}
    users: dict[Any, list] = {key: [] for key in labels}
    way = dict.fromkeys(labels, 0)  # the longest way from the top
    for source, target in sorted(edges, key=lambda edge: order[edge[0]]):
        users[source].append(target)
        way[target] = max(way[target], way[source] + 1)
    row: dict[Any, int] = {}
    for key in reversed(labels):
        row[key] = 1 + max((row[user] for user in users[key]), default=-1)
    alone = set(labels).difference(*edges)
    row |= dict.fromkeys(alone, max(row.values()))

    places: dict[Any, tuple[float, float, float, float]] = {}
    for level, keys in groupby(sorted(labels, key=row.__getitem__), key=row.__getitem__):
        wish = {key: sum(places[user][0] for user in users[key]) / max(len(users[key]), 1) for key in keys}
        end = -inf
        for key in sorted(wish, key=lambda key: (key in alone, wish[key], -way[key])):
            lines = labels[key].split("\n")
            width, height = max(map(len, lines)) * _CHARACTER / 2 + _PAD, len(lines) * _LINE / 2 + _PAD
            x = max(wish[key], end + _GAP + width)
            places[key] = x, level * _ROW, width, height
            end = x + width
    return places


def _routes(places: dict[Any, tuple], edges: list[tuple]) -> tuple[list[list[tuple]], list[float]]:
    """The points of every arrow, and the lanes left of the boxes for those that lead up or have a box in their way."""
    routes: list[list[tuple]] = []
    lanes: list[tuple[float, float, float]] = []
    heads = dict.fromkeys(places, 0)
    for source, target in sorted(edges, key=lambda edge: abs(places[edge[0]][1] - places[edge[1]][1])):
        (x1, y1, w1, h1), (x2, y2, w2, h2) = places[source], places[target]
        passed = [(x, y, w) for x, y, w, _ in places.values() if y2 < y < y1 or y1 <= y <= y2]
        if y1 > y2 and not any(abs(x1 + (x2 - x1) * (y1 - y) / (y1 - y2) - x) < w for x, y, w in passed):
            routes.append([(x1, y1 - h1), (x2, y2 + h2)])
            continue
        low, high = min(y1, y2), max(y1, y2)
        lane = (
            min([x - w for x, _, w in passed] + [x for x, *ends in lanes if ends[0] < high and low < ends[1]])
            - _GAP / 2
        )
        lanes.append((lane, low, high))
        heads[target] += 1
        x1, y1, turn = (x1 - w1 / 2, y1 - h1, y1 - _ROW / 2) if y1 > y2 else (x1 - w1, y1, y1)
        x2, y2, enter = x2 - w2 * (1 - 0.6 ** heads[target]), y2 + h2, y2 + _ROW / 2
        leave = [(x1, turn), (lane, turn), (lane, turn - 6 * (y1 != turn))]
        routes.append([(x1, y1), *leave, leave[-1], *[(lane, enter + 6)] * 2, (lane, enter), (x2, enter), (x2, y2)])
    return routes, [lane for lane, _, _ in lanes]


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
