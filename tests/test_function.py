"A user's row-wise function: what it becomes, and the words in which it is refused."
import importlib.util
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
from onnx import TensorProto, helper

from mlproj.data.contract import Column, Contract, infer_contract, pack
from mlproj.data.profile import Profile
from mlproj.data.task import Task
from mlproj.project import ConfigError
from mlproj.train.baseline import Linear
from mlproj.train.export import golden_rows, join, prove
from mlproj.train.features import Tensors, encode, features_graph, fit_features, session
from mlproj.train.function import Function, cell_of, clean, derive, export_function, with_function

CONTRACT = Contract("trips", {"a": Column("a", "number", nullable=True), "b": Column("b", "integer"), "paid": Column("paid", "boolean"), "at": Column("at", "time"),
                              "face": Column("face", "vector", length=3), "city": Column("city", "string")}, ("a", "b", "paid", "city", "at", "face"))


def rows(n=60) -> np.ndarray:
    "`numbers` (n, 7) of the contract: with missing and extreme values, and times of this century."
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(50, 30, n), rng.integers(0, 24, n), rng.random(n) < 0.5, rng.uniform(1.3e9, 1.8e9, n), rng.normal(size=(n, 3))])
    x[3, :], x[5, 0], x[7, 0], x[9, 1] = np.nan, 1e9, -1e9, -1
    return x


def module(folder, text: str, header="# %% ../nbs/mine.ipynb #c3e8aa10\n"):
    "A module of users' functions, as nbdev exports it; without a header, a plain one."
    path = folder/"mine.py"
    path.write_text(f"import torch\n\n{header}{text}")
    spec = importlib.util.spec_from_file_location("mine", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def everything(c):
    "Arithmetic, comparisons, trigonometry, logarithms, choices, vectors, integers, constants that float32 does not hold."
    day = 2*torch.pi*torch.remainder(c["at"], 86400)/86400
    return dict(sin=torch.sin(day), scaled=c["a"]*0.1 + 1/3, whole=torch.floor(c["a"]/7), clipped=c["a"].clamp(-0.3, 70.7), logged=torch.log1p(c["a"].abs()),
                radians=torch.deg2rad(c["a"]), chosen=torch.where(torch.isnan(c["a"]), -1.1, c["b"]), both=(c["paid"] > 0) & (c["b"] >= 12), norm=torch.linalg.norm(c["face"], dim=1),
                dot=c["face"]@torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64), hour=torch.tensor([0.1, 0.2, 0.3])[torch.nan_to_num(c["b"]).clamp(0, 2).long()], half=c["a"].float()*0.1,
                since=(c["at"] - 1.357e9)*0.001, soft=torch.nn.functional.softplus(c["face"][:, 0]), power=c["face"][:, 1]**2)


@pytest.fixture(scope="module")
def exported(): return export_function(everything, CONTRACT, rows())


def test_the_graph_gives_what_torch_gives(exported):
    x = np.vstack([rows(), rows(500)[::-1]])
    columns = dict(a=x[:, 0], b=x[:, 1], paid=x[:, 2], at=x[:, 3], face=x[:, 4:])
    wanted = everything({name: torch.tensor(column) for name, column in columns.items()})
    assert exported.names == tuple(wanted)
    found = derive(exported, x, rows=100)
    assert found.dtype == np.float64 and found.shape == (560, len(wanted))
    np.testing.assert_allclose(found, np.stack([column.double().numpy() for column in wanted.values()], 1), rtol=1e-9, atol=1e-9)


def test_a_time_keeps_its_second(exported):
    # the exporter writes 2π/86400 and 0.001 as float32 where nobody stops it: seconds since 1970 would be off by a quarter of a second
    x = rows()
    x[:, 3] = 1.7e9 + np.arange(60)
    since = derive(exported, x)[:, exported.names.index("since")]
    np.testing.assert_allclose(np.diff(since), 0.001, rtol=1e-6)
    np.testing.assert_allclose(since, (x[:, 3] - 1.357e9)*0.001, rtol=1e-12)


def test_no_rows_give_no_rows(exported):
    assert derive(exported, np.empty((0, 7))).shape == (0, len(exported.names))


def test_equal_functions_are_equal_bytes_wherever_they_stand(tmp_path):
    text = "def f(c):\n{}    return dict(x=c['a']*0.1 + c['b'])\n"
    (tmp_path/"deeper").mkdir()
    graphs = [export_function(module(folder, text.format(comment)).f, CONTRACT, rows()).graph.SerializeToString()
              for folder, comment in ((tmp_path, ""), (tmp_path/"deeper", "    # of this machine\n"))]
    assert graphs[0] == graphs[1] and b"mine.py" not in graphs[0] and str(tmp_path).encode() not in graphs[0]


def test_a_function_takes_its_arguments_from_the_config():
    def above(c, limit): return dict(above=c["a"] - limit)
    np.testing.assert_array_equal(derive(export_function(partial(above, limit=0.1), CONTRACT, rows()), rows())[:, 0], rows()[:, 0] - 0.1)


def test_a_function_that_works_in_place_does_not_touch_the_columns():
    def doubled(c): return dict(x=c["a"].mul_(2))
    x = rows()
    made = export_function(doubled, CONTRACT, x)
    np.testing.assert_array_equal(x, rows())
    info = lambda name, width: helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["rows", width])
    same = helper.make_model(helper.make_graph([helper.make_node("Identity", ["numbers"], ["x_numbers"])], "same", [info("numbers", 8)], [info("x_numbers", 8)]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    np.testing.assert_array_equal(session(with_function(made, same)).run(None, dict(numbers=x))[0], np.column_stack([x, x[:, 0]*2]))


# What is refused, by operation, line and reason. `{}` stands where the operation is.

NOT_ROW_WISE = {"aten.mean": "c['b'] - c['b'].nan_to_num().mean()", "aten.cumsum": "c['b'].nan_to_num().cumsum(0)", "aten.rand": "c['b'] + torch.rand(len(c['b']))", "aten.max": "c['b']/c['b'].nan_to_num().max().item()",
                "aten.sort": "c['a'].sort().values", "aten.flip": "c['a'].flip(0)", "aten.roll": "c['a'].roll(1)", "aten._softmax": "c['face'][:, 0].nan_to_num().softmax(0)", "aten.div": "c['b']/len(c['b'])",
                "aten.median": "c['a'].nan_to_num() - c['a'].nan_to_num().median()", "aten.bernoulli_": "torch.nn.functional.dropout(c['b'], 0.5)", "aten.std": "c['b']/c['b'].nan_to_num().std(correction=0)", "aten.arange": "c['b']*torch.arange(len(c['b']))"}


@pytest.mark.parametrize("operation", NOT_ROW_WISE)
def test_what_depends_on_other_rows_is_refused(tmp_path, operation):
    mine = module(tmp_path, f"def f(c):\n    y = c['b']*1\n    return dict(x={NOT_ROW_WISE[operation]})\n")
    with pytest.raises(ConfigError) as refused: export_function(mine.f, CONTRACT, rows())
    error = refused.value
    assert error.what.startswith(f"{operation} is not row-wise: row ") and error.what.endswith(" in a batch of 60")
    assert "data.function mine.f (" in error.where and "nbs/mine.ipynb, cell c3e8aa10, line 3: return dict(x=" in error.where


# No tried row shows these: what is mixed comes to light with a value beyond 1e12, or in a batch of a million rows.
SELDOM = {"aten.mean": "c['a'].nan_to_num().mean()", "aten.cumsum": "c['a'].cumsum(0)", "aten.sort": "c['a'].sort().values", "aten.flip": "c['a'].flip(0)", "aten._softmax": "c['a'].softmax(0)", "aten.any": "(c['a'] > 1e12).any()*c['b']",
          "aten.index": "c['b'][(c['a']*0).nan_to_num().long()]", "aten.gather": "c['b'].gather(0, (c['a']*0).nan_to_num().long())", "aten.select": "c['a'][0]", "aten.slice": "torch.cat([c['a'][:1], c['a'][:-1]])", "aten.mm": "(c['face'] @ (c['face'].T @ c['face']))[:, 0]",
          "aten.sub": "(c['a'][:, None] - c['a']).amax(1)", "aten._unsafe_view": "c['face'].T.reshape(-1, 3)[:, 0]", "aten.convolution": "torch.nn.functional.conv1d(c['a'][None, None], torch.ones(1, 1, 3, dtype=torch.float64), padding=1)[0, 0]", "aten.div": "c['b']/c['b'].shape[0]",
          "aten.masked_scatter": "c['a'].masked_scatter(c['a'] > 0, c['b'])", "aten.as_strided": "torch.as_strided(c['a'].contiguous(), (c['a'].shape[0],), (1,))"}


@pytest.mark.parametrize("operation", SELDOM)
def test_what_would_depend_on_other_rows_some_day_is_refused(tmp_path, operation):
    mine = module(tmp_path, f"def f(c):\n    along = c['face'].mean(1) + c['face'].cumsum(1)[:, 0]\n    other = {SELDOM[operation]}\n    return dict(x=torch.where(c['a'] > 1e12, other, c['a']), along=along)\n")
    with pytest.raises(ConfigError) as refused: export_function(mine.f, CONTRACT, rows())
    assert refused.value.what.startswith(f"{operation} is not row-wise: it ") and "nbs/mine.ipynb, cell c3e8aa10, line 3: other = " in refused.value.where


@pytest.mark.parametrize("function, said", [
    (lambda c: dict(x=c["a"] + (torch.rand(()) < 1e-12)), "aten.rand is not row-wise: it draws random numbers"), (lambda c: dict(x=torch.nn.functional.dropout(c["a"], 1e-12)), "aten.native_dropout is not row-wise: it draws random numbers"),
    (lambda c: dict(x=torch.where(torch.arange(c["a"].shape[0]) > 1e6, c["b"], c["a"])), "aten.arange is not row-wise: it uses the number of rows"),
    (lambda c: dict(x=c["b"] if c["b"].shape[0] < 1000 else c["a"]), "is not row-wise: it does one thing for 2 to 999 rows, and another beyond")])
def test_what_would_depend_on_chance_or_on_the_number_of_rows_is_refused(function, said):
    with pytest.raises(ConfigError, match=said): export_function(function, CONTRACT, rows())


@pytest.mark.parametrize("function", [
    lambda c: dict(x=torch.stack([c["a"], c["b"]]).amax(0), y=c["face"].softmax(1)[:, 0] + c["face"].cumsum(1)[:, 2], z=c["face"].sort(1).values[:, 0] + c["face"].flip(1)[:, 1], w=c["face"].roll(1, 1)[:, 0]),
    lambda c: dict(x=torch.cat([c["face"], c["a"][:, None]], 1).mean(1), y=c["face"].T[1], z=c["face"].reshape(-1, 3, 1)[:, 1, 0], w=c["face"].gather(1, (c["b"].nan_to_num().long() % 3)[:, None])[:, 0]),
    lambda c: dict(x=torch.nn.functional.layer_norm(c["face"], (3,))[:, 1], y=torch.full((c["a"].shape[0],), 2.0), z=torch.where(torch.isnan(c["face"]).any(1), 0.0, c["face"].nan_to_num().norm(dim=1)), w=c["face"][:, [2, 0]][:, 0]),
    lambda c: (c["a"].__setitem__(torch.isnan(c["a"]), 0.5), dict(x=c["a"]))[1]])
def test_what_works_along_a_row_or_on_a_mask_is_taken(function):
    found, x = derive(export_function(function, CONTRACT, rows()), rows()), rows()
    wanted = function(dict(a=torch.tensor(x[:, 0]), b=torch.tensor(x[:, 1]), face=torch.tensor(x[:, 4:])))
    np.testing.assert_allclose(found, np.stack([column.double().numpy() for column in wanted.values()], 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("code, said", [("c['a'].long()", "int64 of nan"), ("c['b'].nan_to_num().to(torch.int8)", ""), ("(c['a'].nan_to_num()*100).int()", "int32 of 1e+11"), ("c['at'].nan_to_num().long() % 3600", "")])
def test_an_integer_of_a_number_that_has_none_is_refused(tmp_path, code, said):
    mine = module(tmp_path, f"def f(c):\n    return dict(x={code})\n")
    if not said:
        export_function(mine.f, CONTRACT, rows())
        return
    with pytest.raises(ConfigError, match=f"aten._to_copy makes {said}, which has none".replace("+", "[+]")) as refused: export_function(mine.f, CONTRACT, rows())
    assert "nbs/mine.ipynb, cell c3e8aa10, line 2: return" in refused.value.where


def test_a_column_as_long_as_the_tried_rows_is_refused_with_what_to_write():
    with pytest.raises(ConfigError, match=r"for any number of rows, only for 60; torch.zeros_like\(column\) instead of torch.zeros\(len\(column\)\)"): export_function(lambda c: dict(x=c["a"] + torch.zeros(len(c["a"]))), CONTRACT, rows())


UNWRITABLE = dict(
    branch=("if (c['b'].nan_to_num() > -9).any(): y = y + 1", "aten.item asks for one value, and a graph decides nothing by it; write torch.where"), loop=("while (y > 1e12).any(): y = y/2", "aten.item asks for one value"),
    rows=("y = torch.stack([v*2 for v in y])", "aten.unbind cannot be written as a graph for any number of rows"), search=("y = torch.searchsorted(torch.tensor([1.0, 2.0]), y.float())", "aten.searchsorted cannot be written as a graph"),
    gamma=("y = torch.lgamma(y.abs() + 1)", "prims.lgamma cannot be written as a graph"), kernel=("y = torch.atan2(y, c['b'])", "aten.atan2 cannot be served: onnxruntime has no Atan for float64; try it in float32"),
    alone=("y = torch.nn.functional.batch_norm(c['face'], None, None, training=True)[:, 0]", "the function raised ValueError: Expected more than 1 value per channel"), raises=("y = y.no_such_method()", "the function raised AttributeError"), lookup=("y = torch.tensor([1.0, 2.0])[torch.nan_to_num(c['b']).long()]", "the function raised IndexError: index"),
)


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_cannot_be_exported_is_refused_with_operation_and_cell(tmp_path, name):
    code, said = UNWRITABLE[name]
    mine = module(tmp_path, f"def helper(c, y):\n    {code}\n    return y\n\ndef f(c):\n    return dict(x=helper(c, c['a']*1))\n")
    with pytest.raises(ConfigError) as refused: export_function(mine.f, CONTRACT, rows())
    assert said in str(refused.value) and f"nbs/mine.ipynb, cell c3e8aa10, line 2: {code}"[:60] in refused.value.where


def test_a_plain_module_is_named_by_file_and_line(tmp_path):
    mine = module(tmp_path, "def f(c):\n    return dict(x=c['a'].sort().values)\n", header="")
    with pytest.raises(ConfigError, match=r"mine\.py, line 4: return dict\(x=c\['a'\]\.sort\(\)\.values\)"): export_function(mine.f, CONTRACT, rows())
    assert cell_of(str(tmp_path/"mine.py"), 3) == f"{tmp_path}/mine.py, line 3: def f(c):"


@pytest.mark.parametrize("function, said", [
    (lambda c: dict(x=c["city"]), "column 'city' is a string, and torch has none; a function may use: a, b, paid, at, face"), (lambda c: dict(x=c["town"]), "column 'town' is not among the features"),
    (lambda c: dict(a=c["b"]), "the new column 'a' needs a name of its own"), (lambda c: {1: c["b"]}, "the new column 1 needs a name"), (lambda c: [c["a"]], "gave list; return a dict of columns"),
    (lambda c: {}, "gave dict; return a dict of columns"), (lambda c: dict(x=c["face"]), r"column 'x' is a tensor \(60, 3\) of torch.float64 for 60 rows; return one number for each row"),
    (lambda c: dict(x=c["a"][c["a"] > 0]), "return one number for each row"), (lambda c: dict(x=1.0), "column 'x' is float for 60 rows"), (lambda c: dict(x=torch.complex(c["a"], c["b"])), "torch.complex128 for 60 rows"),
])
def test_what_is_no_column_is_refused(function, said):
    with pytest.raises(ConfigError, match=said): export_function(function, CONTRACT, rows())


def test_an_operation_that_the_exporter_gets_wrong_is_refused():
    # 1.1 becomes float32 in a place where we do not stop it, and its 200th power shows that
    def odd(c): return dict(x=1.1**c["a"].nan_to_num().clamp(0, 200))
    with pytest.raises(ConfigError, match="the function gives x = .* and its graph"): export_function(odd, CONTRACT, rows())


# In front of the encoders

def test_derived_columns_are_learned_from_served_and_proven():
    rng, n = np.random.default_rng(0), 2000
    table = pl.DataFrame(dict(x=rng.uniform(0, 1440, n).round(2), z=rng.normal(size=n), city=rng.choice(["Bonn", "Rome"], n)))
    table = table.with_columns(late=pl.Series(rng.random(n) < 0.5 + 0.45*np.sin(2*np.pi*table["x"].to_numpy()/1440)))
    contract, task = infer_contract(Profile.of(table), "t", ["x", "city", "z"], label="late"), Task("binary", "late")
    def cycle(c): return dict(sin=torch.sin(2*torch.pi*c["x"]/1440))
    golden, losses = golden_rows(table, contract, label="late"), []
    function = export_function(cycle, contract, pack(contract, golden)[0])
    made = pl.DataFrame(derive(function, pack(contract, table)[0]), schema=list(function.names))
    for derived in ((), Profile.of(made).columns.items()):
        features = fit_features(Profile.of(table), contract, derived=list(derived))
        encoders = with_function(function, features_graph(features)) if derived else features_graph(features)
        assert [i.name for i in encoders.graph.input] == ["numbers", "strings"] and encoders.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 2
        train = Tensors(*encode(encoders, contract, table), task.encode(table["late"]))
        model = Linear(features, task).fit(train)
        p = prove(join(encoders, model.graph(), task), encoders, model, contract, golden, task).predictions
        losses.append(np.mean((model.predict(train.x_numbers, train.x_codes) - train.y)**2))
        assert p.shape == (1000,)
    assert losses[1] < losses[0] - 0.03 and features.names == ("x", "z", "sin")  # the new column says what the old one could not


def test_encoders_without_numbers_need_no_function():
    info = lambda name, kind: helper.make_tensor_value_info(name, kind, ["rows", 1])
    only = helper.make_model(helper.make_graph([helper.make_node("Identity", ["strings"], ["x_codes"])], "only", [info("strings", TensorProto.STRING)], [info("x_codes", TensorProto.STRING)]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = helper.make_model(helper.make_graph([helper.make_node("Identity", ["numbers"], ["derived"])], "f", [info("numbers", TensorProto.DOUBLE)], [info("derived", TensorProto.DOUBLE)]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert with_function(Function(("d",), clean(made, "f")), only) is only
