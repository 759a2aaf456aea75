"""parameters: the table of a model's parameters, as data, as text and as HTML."""

from html.parser import HTMLParser

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

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


def test_head_replaced_after_building_the_optimizer():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(net.named_parameters())
    net[1] = nn.Linear(2, 3)
    table = parameters(net, optimizer)
    assert [row.group for row in table] == [0, 0, None, None]
    assert table.orphans == table[:1].orphans == 2
    assert str(table).endswith("parameters of the optimizer that are not the model's: 2")
    assert "<br>parameters of the optimizer that are not the model&#x27;s: 2</caption>" in table._repr_html_()
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
    assert len(str(table).splitlines()) == 1_052
    assert table[0].dtype == torch.bfloat16


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
        ((nn.Linear(1, 1), nn.Linear(1, 1)), "pass one torch.optim.Optimizer, not a Linear"),
        (
            (nn.Linear(1, 1), [torch.optim.SGD(nn.Linear(1, 1).parameters())]),
            "pass one torch.optim.Optimizer, not a list",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, says):
    with pytest.raises(TypeError, match=says):
        parameters(*arguments)


def test_html_is_exactly_this():
    left, right = "style='text-align: left'", "style='text-align: right'"
    assert parameters(nn.PReLU())._repr_html_() == (
        "<table><caption style='caption-side: bottom; text-align: left'>"
        "trainable params: 1 || all params: 1 || trainable%: 100.0000</caption>"
        f"<thead><tr><th scope=col {left}>name</th><th scope=col {left}>shape</th><th scope=col {right}>numel</th>"
        f"<th scope=col {left}>dtype</th><th scope=col {left}>requires_grad</th><th scope=col {left}>has_grad</th></tr>"
        f"</thead><tbody><tr><th scope=row {left}>weight</th><td {left}>(1,)</td><td {right}>1</td>"
        f"<td {left}>float32</td><td {left}>True</td><td {left}>False</td></tr></tbody></table>"
    )


def test_html_has_the_same_cells_with_headers_and_is_escaped():
    class Cells(HTMLParser):
        def __init__(self):
            super().__init__()
            self.rows, self.scopes = [], []

        def handle_starttag(self, tag, attrs):
            if tag == "tr":
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
        ["<b>&.weight", "(1, 2)", "2", "float32", "True", "False"],
        ["<b>&.bias", "(1,)", "1", "float32", "True", "False"],
    ]
    assert cells.scopes == ["col"] * 6 + ["row"] * 2
    assert page.count("text-align: right") == 1 + 2, "the numbers and their title"
    assert "<b>" not in page and "trainable params: 3 || all params: 3 || trainable%: 100.0000</caption>" in page
