"Golden rows, the proof for every task, and int8."
from datetime import date, datetime, timezone

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from onnx import numpy_helper

from mlproj.data.contract import infer_contract, pack
from mlproj.data.profile import Profile
from mlproj.data.task import Task, fit_task
from mlproj.project import ConfigError, ParityError
from mlproj.train.baseline import Linear
from mlproj.data.task import TOLERANCE
from mlproj.train.export import compare_int8, cut, golden_rows, join, prove, prove_forms, quantise
from mlproj.train.features import Tensors, encode, features_graph, fit_features, session
from mlproj.train.network import TabularMLP

TASKS = [("late", ()), ("kind", ()), ("delay", ()), ("delay", (0.1, 0.5, 0.9))]


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    "Rows with a category of 400 values, missing numbers and strings, a time and a vector."
    rng, n = np.random.default_rng(0), 3000
    delay = rng.gamma(2, 20, n)
    return pl.DataFrame(dict(hour=rng.integers(5, 23, n), temp=[None if i % 10 == 0 else t for i, t in enumerate(rng.normal(60, 15, n))], plane=[None if i % 50 == 0 else f"N{i}" for i in rng.integers(0, 400, n)],
                             at=pl.Series(1.36e9 + rng.uniform(0, 3e7, n)).cast(pl.Int64).cast(pl.Datetime("ms", "UTC")), face=rng.normal(size=(n, 4)), delay=delay, late=delay > 45,
                             kind=np.array(["on time", "late", "very late"])[np.digitize(delay, [30, 60])]))


def trained(table, label, quantiles, model, **config):
    "Contract, task, encoders, a fitted model and the golden rows."
    profile = Profile.of(table)
    contract, task = infer_contract(profile, "t", ["hour", "temp", "plane", "at", "face"], label=label), fit_task(profile, label, quantiles=quantiles)
    features = fit_features(profile, contract)
    encoders = features_graph(features)
    torch.manual_seed(0)
    made = model(features, task, **config)
    tensors = Tensors(*encode(encoders, contract, table), task.encode(table[label]))
    if isinstance(made, Linear): made.fit(tensors)
    else:
        with torch.no_grad():  # as wide as trained ones: the tables begin near zero
            for p in made.parameters(): p.add_(torch.randn_like(p)*0.1)
    return contract, task, encoders, made, golden_rows(table, contract, label=label)


@pytest.mark.parametrize("model", [Linear, TabularMLP])
@pytest.mark.parametrize("label, quantiles", TASKS)
def test_every_task_is_proven(table, label, quantiles, model):
    contract, task, encoders, made, golden = trained(table, label, quantiles, model)
    parity = prove(join(encoders, made.graph(), task), encoders, made, contract, golden, task)
    assert set(parity.worst) == {"model", "single rows"} and parity.predictions.shape == (1000, *task.shape[1:]) and parity.refused == {}
    assert max(parity.worst.values()) <= TOLERANCE*(task.scale + np.abs(parity.predictions).max())


def test_the_cut_at_the_tensors_is_the_encoders(table):
    contract, task, encoders, made, golden = trained(table, "late", (), Linear)
    numbers, strings = pack(contract, golden)
    inside = cut(join(encoders, made.graph(), task), ["x_numbers", "x_codes"])
    for a, b in zip(session(inside).run(None, dict(numbers=numbers, strings=strings)), session(encoders).run(None, dict(numbers=numbers, strings=strings))): np.testing.assert_array_equal(a, b)


def test_a_weight_of_a_word_that_no_golden_row_has_is_proven_too(table):
    contract, task, encoders, made, golden = trained(table, "late", (), Linear)
    word = sorted(set(table["plane"].drop_nulls()) - set(golden["plane"].drop_nulls()))[0]
    row = golden[:1].with_columns(plane=pl.lit(word))
    code = encode(encoders, contract, row)[1][0, 0]
    assert code > 1  # known, and neither unseen nor missing
    whole = join(encoders, made.graph(), task)
    prove(whole, encoders, made, contract, golden, task)
    for tensor in whole.graph.initializer:
        if list(tensor.dims) == list(made.table.shape) and (numpy_helper.to_array(tensor) == made.table).all():
            tensor.CopyFrom(numpy_helper.from_array(made.table + np.float32(0.1)*(np.arange(len(made.table)) == code), tensor.name))
            break
    else: assert False
    with pytest.raises(ParityError, match="the model gives"): prove(whole, encoders, made, contract, golden, task)


def test_an_output_of_another_shape_is_refused(table):
    contract, task, encoders, made, golden = trained(table, "kind", (), Linear)
    two = Task("multiclass", "kind", task.classes[:2])
    with pytest.raises(ParityError, match=r"the graph gives \(\d+, 3\) for \d+ rows, and the task is \['rows', 2\]"): prove(join(encoders, made.graph(), task), encoders, made, contract, golden, two)


def test_a_form_is_compared_where_it_answered():
    golden, predictions = pl.DataFrame(dict(a=range(4))), np.float32([1, 2, 3, 1000])
    late, price = Task("binary", "late"), Task("regression", "price", scale=4000.0)
    form = lambda found, answered: {"the service": lambda rows: (np.array(found), np.array(answered))}
    assert prove_forms(predictions, golden, form([1, 2, np.nan, 1000.009], [True, True, False, True]), late, "t") == ({"the service": pytest.approx(0.009)}, {"the service": 1})
    for found, answered, said in (([1, 2, 3, 1000.02], [True]*4, "golden row 3: the service gives 1000.02, and the graph 1000: beyond"), ([1, np.nan, 3, 1000], [True]*4, "the service gives nan"),
                                  ([1]*4, [False]*4, "the service answered none of 4 rows")):
        with pytest.raises(ParityError, match=said): prove_forms(predictions, golden, form(found, answered), late, "t")
    assert prove_forms(predictions, golden, form([1.03, 2, 3, 1000], [True]*4), price, "t")[0]  # 1e-5 of 4,000
    with pytest.raises(ParityError, match="beyond 0.04 "): prove_forms(predictions, golden, form([1.05, 2, 3, 1000], [True]*4), price, "t")


# Golden rows

def test_golden_rows_hold_every_nasty_value_of_every_kind():
    n = 300
    table = pl.DataFrame(dict(n=pl.Series([1.5, None]*150), i=pl.Series([1, None]*150, dtype=pl.Int8), s=["Bonn", None]*150, b=[True, None]*150, at=[datetime(2020, 5, 17, tzinfo=timezone.utc), None]*150,
                              day=[date(2020, 5, 17), None]*150, v=pl.Series([[1.0, -2.0], None]*150, dtype=pl.Array(pl.Float32, 2)), y=[True, False]*150))
    contract = infer_contract(Profile.of(table), "t", ["n", "i", "s", "b", "at", "day", "v"], label="y")
    golden = golden_rows(table, contract, n, label="y")
    assert golden.columns == [*contract.features, "y"] and golden.height == n
    has = lambda name, *values: set(values) <= set(golden[name].to_list())
    assert has("n", None, 0.0, -1.0, 1000.0, -1000.0) and has("i", None, 0, -1, 1000, -1000, 1 + 2**16, 1 + 2**32) and has("b", None, True, False)
    assert has("s", None, "", "unseen", "Zürich ✈", "x"*200, " Bonn ", "bonn", "BONN")
    assert set(golden["at"].dt.year()) >= {None, 1900, 1970, 2100, 2020} and set(golden["day"].dt.year()) >= {None, 1900, 1970, 2100, 2020}
    assert {None, (0.0, 0.0), (20.0, 20.0), (-20.0, -20.0), (1.0, -2.0)} <= {v if v is None else tuple(v) for v in golden["v"].to_list()}
    pack(contract, golden)  # the one door takes them all


def test_half_of_the_golden_rows_are_as_they_were(table):
    contract = infer_contract(Profile.of(table), "t", ["hour", "temp", "plane"], label="late")
    golden = golden_rows(table, contract, label="late")
    real = table.select(golden.columns).sample(1000, seed=0, shuffle=True)
    assert golden[1::2].equals(real[1::2]) and golden["late"].equals(real["late"]) and not golden.equals(real)
    same = golden[0::2].select(pl.col(c).eq_missing(real[0::2][c]) for c in contract.features)
    assert (same.to_numpy().all(1)).mean() < 0.1
    assert golden["hour"].null_count() == 0  # what may not be missing is not, so that a contract answers


def test_golden_rows_are_drawn_again_from_a_small_table(table):
    contract = infer_contract(Profile.of(table), "t", ["hour", "temp", "plane"])
    assert golden_rows(table.head(7), contract, 100).height == 100


# int8

@pytest.mark.parametrize("label, quantiles", TASKS)
def test_int8_is_small_and_a_function_of_the_row(table, label, quantiles):
    contract, task, encoders, made, golden = trained(table, label, quantiles, TabularMLP, hidden=128)
    whole = join(encoders, made.graph(), task)
    small = quantise(whole)
    cost = compare_int8(whole, small, contract, golden, task, budget=0.05)
    assert cost.size < 0.5 and 0 < cost.worst < 0.05*max(1, np.abs(cost.predictions).max())
    numbers, strings = pack(contract, golden)
    run, ways = session(small, threads=1), []
    for rows in (1, 7, 1000): ways.append(np.concatenate([run.run(None, dict(numbers=numbers[i:i + rows], strings=strings[i:i + rows]))[0] for i in range(0, 1000, rows)]))
    for way in ways: np.testing.assert_allclose(way, cost.predictions, rtol=TOLERANCE, atol=TOLERANCE*task.scale)
    names = [o.name for o in encoders.graph.output]  # the encoders are as they were
    for a, b in zip(session(cut(small, names)).run(None, dict(numbers=numbers, strings=strings)), session(encoders).run(names, dict(numbers=numbers, strings=strings))): np.testing.assert_array_equal(a, b)
    assert small.SerializeToString(deterministic=True) == quantise(whole).SerializeToString(deterministic=True)


def test_int8_weights_are_within_half_a_step_of_the_others(table):
    contract, task, encoders, made, _ = trained(table, "late", (), TabularMLP, hidden=128)
    whole = join(encoders, made.graph(), task)
    before, after = ({t.name: numpy_helper.to_array(t) for t in g.graph.initializer} for g in (whole, quantise(whole)))
    gone = set(before) - set(after)
    assert {after[f"{n}_int8"].dtype for n in gone} == {np.dtype("int8")} and len(gone) >= 2
    ops = {node.input[i]: node.op_type for node in whole.graph.node for i in range(len(node.input))}
    assert {ops[n] for n in gone} >= {"Gather", "Gemm"}  # a table of 402 planes, and layers
    for name in gone:
        q, scale = after[f"{name}_int8"].astype(np.float64), after[f"{name}_scale"].astype(np.float64)
        if scale.ndim == 1: scale = scale[:, None] if q.shape[0] == len(scale) else scale
        assert (np.abs(q*scale - before[name]) <= scale/2 + 1e-7).all() and np.abs(q).max() == 127


def test_int8_has_nothing_to_gain_from_a_linear_model_or_trees(table):
    contract, task, encoders, made, _ = trained(table, "late", (), Linear)
    with pytest.raises(ConfigError, match="package.precision: no tensor of the model has 1,024 weights; int8 would gain nothing: use fp32"): quantise(join(encoders, made.graph(), task))


def test_int8_beyond_its_budget_is_refused(table):
    contract, task, encoders, made, golden = trained(table, "delay", (), TabularMLP, hidden=128)
    whole = join(encoders, made.graph(), task)
    small = quantise(whole)
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(small)
    for tensor in spoiled.graph.initializer:
        if tensor.name.endswith("_scale"): tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)*np.float32(1.5), tensor.name))
    with pytest.raises(ParityError, match=r"rmse is .* in int8 and .* in fp32: beyond the budget of 0.005; raise package.int8_budget, or ship fp32 with package.int8_budget=null"): compare_int8(whole, spoiled, contract, golden, task)
