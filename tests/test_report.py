"""parameters: the table of a model's parameters, as data, as text and as HTML."""

from html.parser import HTMLParser

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torchvision.models import resnet18

from helpers import freeze, unfreeze
from helpers.report import ParameterRow, ParameterTable, parameters


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm.requires_grad_(False)


def test_text_is_exactly_this():
    net = Tied().double()
    net.head(net.embed(torch.tensor([0]))).sum().backward()
    optimizer = torch.optim.SGD([{"params": []}, {"params": [*net.parameters(), nn.Parameter(torch.ones(1))]}], lr=0.1)
    text = (
        "name                        shape   numel  dtype    requires_grad  has_grad  group\n"
        "embed.weight = head.weight  (5, 3)     15  float64  True           True      1\n"
        "norm.weight                 (3,)        3  float64  False          False     1\n"
        "norm.bias                   (3,)        3  float64  False          False     1\n"
        "trainable params: 15 || all params: 21 || trainable%: 71.4286\n"
        "parameters of the optimizer that are not the model's: 1"
    )
    table = parameters(net, optimizer)
    assert str(table) == text and repr(table) == text


def test_without_optimizer_there_is_no_group():
    text = (
        "name    shape  numel  dtype    requires_grad  has_grad\n"
        "weight  (1,)       1  float32  True           False\n"
        "trainable params: 1 || all params: 1 || trainable%: 100.0000"
    )
    assert str(parameters(nn.PReLU())) == text
    assert parameters(nn.PReLU())[0].group is None


def test_foot_is_the_line_everybody_reads():
    net = resnet18()
    net.requires_grad_(False)
    net.fc = nn.Linear(512, 3)
    table = parameters(net)
    assert (table.trainable, table.total, len(table)) == (1_539, 11_178_051, 62)
    assert table.foot == "trainable params: 1,539 || all params: 11,178,051 || trainable%: 0.0138"
    assert str(table).splitlines()[-1] == table.foot


def test_rows_are_data():
    net = Tied()
    row = parameters(net, torch.optim.SGD(net.parameters(), lr=0.1))[0]
    assert row == ParameterRow("embed.weight", (5, 3), 15, torch.float32, True, 0, False, ("head.weight",))
    with pytest.raises(AttributeError):
        row.requires_grad = False


def test_table_is_a_sequence_and_a_slice_is_a_table():
    table = parameters(resnet18())
    part = table[60:]
    assert isinstance(part, ParameterTable) and [row.name for row in part] == ["fc.weight", "fc.bias"]
    assert (part.total, part[-1].name) == (513_000, "fc.bias")
    assert table[5] in table and table.index(table[5]) == 5 and table[:] == table
    assert len(str(part).splitlines()) == 4


def test_a_slice_says_of_how_many_rows_it_is():
    table = parameters(resnet18())
    totals = "trainable params: 513,000 || all params: 513,000 || trainable%: 100.0000"
    assert table[60:].foot == table[10:][50:].foot == f"2 of 62 rows: {totals}"
    assert table[:0].foot.startswith("0 of 62 rows: ")
    assert table[:].foot == table.foot and table.foot.startswith("trainable params")


def test_head_replaced_after_building_the_optimizer():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(net.named_parameters())
    net[1] = nn.Linear(2, 3)
    table = parameters(net, optimizer)
    assert [row.group for row in table] == [0, 0, None, None]
    assert table.orphans == table[:1].orphans == 2
    assert str(table).endswith("parameters of the optimizer that are not the model's: 2")
    assert "<br>parameters of the optimizer that are not the model&#x27;s: 2</p>" in table._repr_html_()
    assert parameters(net).orphans is None and parameters(net, torch.optim.Adam(net.parameters())).orphans == 0


def test_names_carry_the_wrappers_prefix():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    table = parameters(Wrapper(net), optimizer)
    assert [(row.name, row.group) for row in table] == [("module.weight", 0), ("module.bias", 0)]
    assert table.orphans == 0 and "\n" not in table.foot


def test_lazy_parameters_have_no_shape_yet():
    net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1))
    table = parameters(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert [(row.shape, row.numel) for row in table[:2]] == [(None, 0), (None, 0)]
    assert "0.weight  not known yet      0" in str(table) and table.total == 5
    net(torch.ones(1, 2))
    assert parameters(net)[0].shape == (4, 2)


def test_seventy_billion_parameters_on_meta():
    with torch.device("meta"):
        net = nn.ModuleList(nn.Linear(8192, 8192, bias=False, dtype=torch.bfloat16) for _ in range(1_050))
    table = parameters(net.requires_grad_(False))
    assert table.total == 1_050 * 8192**2 > 70e9
    assert str(table) == (
        "name            trainable             all  dtype\n"
        "0-1049  x 1050          0  70,464,307,200  bfloat16\n"
        "trainable params: 0 || all params: 70,464,307,200 || trainable%: 0.0000"
    )
    assert (len(table), table[0].dtype) == (1_050, torch.bfloat16)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 4)})
        self.norm = nn.LayerNorm(4)


class Language(nn.Module):
    """The names of a transformer. The ``first`` of its layers are frozen; the head has the embedding's weight."""

    def __init__(self, layers, first=0):
        super().__init__()
        self.place = nn.Parameter(torch.ones(7, 4))
        self.embed = nn.Embedding(9, 4)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(4, 9)
        self.head.weight = self.embed.weight
        self.layers[:first].requires_grad_(False)


def test_more_than_sixty_rows_are_folded_by_module():
    net = Language(12, first=9)
    table = parameters(net, torch.optim.SGD(net.layers[9:].parameters(), lr=0.1))
    assert str(table) == (
        "name                              trainable  all  dtype    group  tied to\n"
        "place                                    28   28  float32  None\n"
        "embed                                    36   36  float32  None   head\n"
        "layers.0-8.attention.query  x 9           0  180  float32  None\n"
        "layers.0-8.attention.key  x 9             0  180  float32  None\n"
        "layers.0-8.norm  x 9                      0   72  float32  None\n"
        "layers.9-11.attention.query  x 3         60   60  float32  0\n"
        "layers.9-11.attention.key  x 3           60   60  float32  0\n"
        "layers.9-11.norm  x 3                    24   24  float32  0\n"
        "head                                      9    9  float32  None\n"
        "trainable params: 217 || all params: 649 || trainable%: 33.4361"
    )
    assert len(table) == 75 and table[1].tied == ("head.weight",)
    assert str(table[:60]).startswith("name  ") and "requires_grad" in str(table[:60]), "few enough for the rows"
    assert "requires_grad" not in str(table[:61]), "one too many"


def test_depth_folds_any_table_and_a_slice_of_it_has_the_rows():
    net = Language(3, first=2)
    assert "requires_grad" in str(parameters(net))
    table = parameters(net, depth=1)
    assert str(table) == (
        "name    trainable  all  dtype    tied to\n"
        "place          28   28  float32\n"
        "embed          36   36  float32  head\n"
        "layers         48  144  float32\n"
        "head            9    9  float32\n"
        "trainable params: 121 || all params: 217 || trainable%: 55.7604"
    )
    lines = [line.split()[0] for line in str(parameters(net, depth=2)).splitlines()]
    assert lines == ["name", "place", "embed", "layers.0-1", "layers.2", "head", "trainable"]
    assert str(parameters(net, depth=4)) == str(parameters(net, depth=100)), "the modules are the last level"
    assert "requires_grad" in str(table[:5]) and len(table) == 21


def test_what_is_tied_inside_the_line_is_not_named():
    net = nn.ModuleDict({"model": Language(1), "more": nn.Linear(1, 1)})
    assert "tied" not in str(parameters(net, depth=1))
    (embed,) = [line for line in str(parameters(net, depth=2)).splitlines() if line.startswith("model.embed ")]
    assert embed.split()[-1] == "model.head"


def test_all_modules_that_share_a_weight_are_named():
    net = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("one", "two", "three")})
    net["two"].weight = net["three"].weight = net["one"].weight
    assert str(parameters(net, depth=1)).splitlines()[1] == "one           4    4  float32  two, three"


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net[3].weight.requires_grad_(False),
        lambda net: net.register_module("3", nn.Linear(2, 1)),
        lambda net: net[3].double(),
        lambda net: setattr(net[3], "weight", net[0].weight),
        lambda net: net[3].register_parameter("scale", nn.Parameter(torch.ones(1))),
        lambda net: net.register_module("3", nn.Sequential(nn.Linear(2, 2))),
    ],
    ids=["flag", "shape", "dtype", "tied", "more", "deeper"],
)
def test_only_equal_neighbors_are_one_line(change):
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    assert "0-5  x 6" in str(parameters(net, depth=1))
    change(net)
    names = [line.split()[0] for line in str(parameters(net, depth=1)).splitlines()[1:-1]]
    assert names in (["0-2", "3", "4-5"], ["0", "1-2", "3", "4-5"])


def test_groups_part_neighbors_too():
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    table = parameters(net, torch.optim.SGD([{"params": net[:2].parameters()}, {"params": net[3].weight}]), depth=1)
    assert [line.split()[-1] for line in str(table).splitlines()[1:-1]] == ["0", "None", "None"]
    assert "1, None" in str(table)


def test_names_with_a_number_at_the_end_are_numbered():
    net = nn.ModuleDict({name: nn.Linear(1, 1) for name in ("layer_9", "layer_10", "layer_12", "layer_X", "layer")})
    lines = [line.split()[0] for line in str(parameters(net, depth=1)).splitlines()[1:-1]]
    assert lines == ["layer_9-10", "layer_12", "layer_X", "layer"]


@pytest.mark.parametrize(("more", "lines"), [(0, 30), (1, 16)])
def test_as_deep_as_thirty_lines_allow(more, lines):
    net = nn.ModuleList(nn.ModuleDict({key: nn.RNNCell(i + 1, 1) for key in "ab"}) for i in range(15))
    net.extend(nn.Linear(1, 1) for _ in range(more))
    assert len(str(parameters(net)).splitlines()) == lines + 2


def test_a_model_without_submodules_is_opened_too():
    text = str(parameters(nn.ParameterList(torch.ones(2) for _ in range(61))))
    assert text.splitlines()[1] == "0-60  x 61        122  122  float32"


@pytest.mark.parametrize("depth", [0, -1])
def test_depth_is_one_or_more(depth):
    with pytest.raises(ValueError, match=rf"^parameters\(model, depth\): depth is 1 or more levels .*, not {depth}$"):
        parameters(nn.ReLU(), depth=depth)


def test_several_optimizers():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 1))
    first = torch.optim.SGD([{"params": [net[0].bias]}, {"params": [net[0].weight]}], lr=0.1)
    second = torch.optim.SGD([net[0].bias, *net[1].parameters(), nn.Parameter(torch.ones(1))], lr=0.1)
    table = parameters(net, [first, second])
    assert [row.group for row in table] == ["0.1", "0.0, 1.0", "1.0", "1.0", None, None]
    assert table.orphans == 1 and "0.0, 1.0\n" in str(table)
    assert [row.group for row in parameters(net, (first,))] == ["0.1", "0.0", None, None, None, None]
    assert parameters(net, []).orphans == 0 and str(parameters(net, [])).splitlines()[0].endswith("group")


class Params4bit(nn.Parameter):
    """As bitsandbytes' class of this name, whose module is not needed to know it: two numbers in a byte."""

    bnb_quantized = True

    def __new__(cls, data):
        return torch.Tensor._make_subclass(cls, data, False)


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
def test_packed_weights_count_as_numbers(storage):
    net = nn.Linear(64, 64, bias=False)
    net.weight = Params4bit(torch.zeros(64 * 64 // 2 // storage.itemsize, 1, dtype=storage))
    (row,) = table = parameters(net)
    assert row.packed and row.numel == table.total == 64 * 64
    assert (row.shape, row.dtype) == (tuple(net.weight.shape), storage)
    assert f"  4096  {str(storage)[6:]} (4-bit packed)  False" in str(table).replace(",", "").replace("40961", "4096 1")
    assert f"{str(storage)[6:]} (4-bit packed)\n" in str(parameters(nn.Sequential(net), depth=1))
    net.weight.bnb_quantized = False  # until it is moved to its device
    assert (parameters(net)[0].packed, parameters(net).total) == (False, net.weight.numel())
    old = type("Params4bit", (nn.Parameter,), {})  # of a version that does not say it
    net.weight = torch.Tensor._make_subclass(old, net.weight.detach(), False)
    assert parameters(net)[0].packed


def test_what_freeze_holds_is_said():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 1))
    assert parameters(net).held == 0 and "held" not in parameters(net).foot
    freeze(net, "0.*")
    assert parameters(net).foot.endswith("trainable%: 68.4211\nheld in eval mode: 1 part")
    freeze(net, "2.*")
    table = parameters(net, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    assert table.held == table[:2].held == 2
    assert table.foot.endswith("not the model's: 1\nheld in eval mode: 2 parts")
    unfreeze(net)
    assert parameters(net).held == 0


def test_wrappers_change_names_at_most():
    net = nn.Sequential(checkpoint_wrapper(nn.Linear(2, 2)), nn.DataParallel(nn.Linear(2, 1)))
    assert parameters(net).total == 9
    assert [row.name for row in parameters(net)] == [name for name, _ in net.named_parameters()]
    assert len(str(parameters(net, depth=1)).splitlines()) == 4


@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)])
def test_model_without_parameters(optimizer):
    table = parameters(nn.ReLU(), optimizer)
    assert len(table) == table.total == 0
    assert table.foot.splitlines()[0] == "trainable params: 0 || all params: 0 || trainable%: 0.0000"
    assert str(table).startswith("name  shape") and "<table>" in table._repr_html_()


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64, torch.int8])
def test_any_dtype(dtype):
    net = nn.Module()
    net.scale = nn.Parameter(torch.ones((), dtype=dtype), requires_grad=dtype.is_floating_point)
    (row,) = parameters(net)
    assert (row.shape, row.numel, row.dtype) == ((), 1, dtype)
    assert f"()         1  {str(dtype)[6:]}" in str(parameters(net))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            (nn.Linear(1, 1).parameters(),),
            r"^parameters\(model\): model must be a torch.nn.Module, not a generator; pass the model itself$",
        ),
        ((nn.Linear(1, 1).state_dict(),), "not a OrderedDict"),
        (
            (torch.optim.SGD(nn.Linear(1, 1).parameters()), nn.Linear(1, 1)),
            "not a SGD; the model comes before the optimizer$",
        ),
        (
            (nn.Linear(1, 1), nn.Linear(1, 1)),
            r"^parameters\(model, optimizer\): pass an optimizer \(not its parameters\) or a list .*, not a Linear$",
        ),
        ((nn.Linear(1, 1), nn.Linear(1, 1).parameters()), "or a list of them, not a generator"),
        ((nn.Linear(1, 1), [*nn.Linear(1, 1).parameters()]), "or a list of them, not a Parameter"),
    ],
)
def test_wrong_arguments_are_named(arguments, says):
    with pytest.raises(TypeError, match=says):
        parameters(*arguments)


def test_html_is_exactly_this():
    left, right = (f"style='text-align: {side}; vertical-align: top'" for side in ("left", "right"))
    assert parameters(nn.PReLU())._repr_html_() == (
        f"<table><thead><tr><th scope=col {left}>name</th><th scope=col {left}>shape</th>"
        f"<th scope=col {right}>numel</th>"
        f"<th scope=col {left}>dtype</th><th scope=col {left}>requires_grad</th><th scope=col {left}>has_grad</th></tr>"
        "</thead><tbody><tr style='background: rgba(230, 159, 0, 0.25); font-weight: bold'>"
        f"<th scope=row {left[:-1]}; font-weight: bold'>weight</th><td {left}>(1,)</td><td {right}>1</td>"
        f"<td {left}>float32</td><td {left}>True: trainable</td><td {left}>False</td></tr></tbody></table>"
        "<p>trainable params: 1 || all params: 1 || trainable%: 100.0000</p>"
    )


def test_html_of_what_is_frozen_has_no_look():
    page = parameters(nn.PReLU().requires_grad_(False))._repr_html_()
    assert page.count("<tr>") == page.count("<tr") == 2 and "font-weight: normal'>weight<" in page


def test_html_has_the_same_cells_with_headers_and_is_escaped():
    class Cells(HTMLParser):
        def __init__(self):
            super().__init__()
            self.rows, self.scopes = [], []

        def handle_starttag(self, tag, attrs):
            if tag in ("tr", "p"):
                self.rows.append([])
            self.scopes += [dict(attrs)["scope"]] if tag == "th" else []

        def handle_data(self, data):
            if self.rows:
                self.rows[-1].append(data)

    net = nn.Module()
    net.add_module("<b>&", nn.Linear(2, 1))
    page = parameters(net)._repr_html_()
    cells = Cells()
    cells.feed(page)
    assert cells.rows == [
        ["name", "shape", "numel", "dtype", "requires_grad", "has_grad"],
        ["<b>&.weight", "(1, 2)", "2", "float32", "True: trainable", "False"],
        ["<b>&.bias", "(1,)", "1", "float32", "True: trainable", "False"],
        ["trainable params: 3 || all params: 3 || trainable%: 100.0000"],
    ]
    assert cells.scopes == ["col"] * 6 + ["row"] * 2
    assert page.count("text-align: right") == 1 + 2, "the numbers and their title"
    assert "<b>" not in page


def test_html_marks_what_trains_by_tint_weight_and_word():
    net = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    net[1].bias.requires_grad_(False)
    head, *rows = parameters(net)._repr_html_().split("<tr")[1:]
    assert [("True: trainable" in row, "rgba" in row, "bold" in row) for row in rows] == [
        (False,) * 3, (False,) * 3, (True,) * 3, (False,) * 3
    ]  # fmt: skip
    head, *rows = parameters(net, depth=1)._repr_html_().split("<tr")[1:]
    assert "bold" not in head and ["rgba" in row for row in rows] == [False, True]
