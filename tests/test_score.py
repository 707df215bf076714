"Batch scoring: what the bundle says of the whole table, no row lost, and a run that goes on after anything."
import gzip, json, math, os, re, signal, subprocess, sys
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from bundles import ROOT, small_bundle, small_contract, small_rows
from onnx import TensorProto, checker, numpy_helper
from onnx import helper as oh

from mlproj.data.contract import Column, Contract, RequestReader, RowRule, pack
from mlproj.data.profile import Profile
from mlproj.data.task import Task
from mlproj.project import ContractError, DataError, RegistryError
from mlproj.serve import score as room
from mlproj.serve.bundle import Bundle, write_bundle
from mlproj.serve.score import score

WORDS = ("", "a", "b", "long word", "Zürich ✈")
TASKS = dict(binary=Task("binary", "y", threshold=0.4), multiclass=Task("multiclass", "y", classes=("low", "mid", "high")),
             regression=Task("regression", "y"), quantiles=Task("regression", "y", quantiles=(0.1, 0.5, 0.9)))


def contract() -> Contract:
    columns = (Column("n", "integer", min=0, max=100, severity=dict(max="refuse")), Column("x", "number", nullable=True, min=-5), Column("z", "number"),
               Column("flag", "boolean", nullable=True), Column("t", "time", nullable=True), Column("v", "vector", length=2, nullable=True),
               Column("s", "string", values=("a", "b"), severity=dict(values="quarantine")), Column("w", "string", nullable=True, values=WORDS),
               Column("id", "integer"), Column("y", "boolean"))
    rule = RowRule("x < z + 50 or n > 10", "quarantine")
    return Contract("things", {c.name: c for c in columns}, ("n", "s", "x", "z", "flag", "t", "w", "v"), key=("id",), label="y", rows=(rule,))


def graph(contract: Contract, task: Task, overflow=False) -> bytes:
    "Weights for numbers and for one code per string column, taken apart by Split; float64 in, the task's output out."
    k, m, width, rng = contract.number_width, len(contract.strings), task.width or 1, np.random.default_rng(3)
    const = lambda name, value, dtype: numpy_helper.from_array(np.asarray(value, dtype), name)
    scale = np.full(k, 0.01)
    scale[contract.number_slices["t"]] = 1e-10
    init = [const("zero", 0.0, np.float64), const("scale", scale, np.float64), const("weights", rng.normal(size=(k, width)), np.float32),
            const("offsets", [[7*i for i in range(m)]], np.int64), const("table", rng.normal(size=(7*m, width)), np.float32), const("one", [1], np.int64),
            const("power", 1e30 if overflow else 1.0, np.float32)]
    nodes = [oh.make_node("IsNaN", ["numbers"], ["nan"]), oh.make_node("Where", ["nan", "zero", "numbers"], ["filled"]), oh.make_node("Mul", ["filled", "scale"], ["small"]),
             oh.make_node("Cast", ["small"], ["x_numbers"], to=TensorProto.FLOAT), oh.make_node("MatMul", ["x_numbers", "weights"], ["of_numbers"]),
             oh.make_node("Split", ["strings"], [f"s{i}" for i in range(m)], axis=1, num_outputs=m),
             *[oh.make_node("LabelEncoder", [f"s{i}"], [f"c{i}"], domain="ai.onnx.ml", keys_strings=list(WORDS), values_int64s=[1, 2, 3, 4, 5], default_int64=0) for i in range(m)],
             oh.make_node("Concat", [f"c{i}" for i in range(m)], ["codes"], axis=1), oh.make_node("Add", ["codes", "offsets"], ["places"]),
             oh.make_node("Gather", ["table", "places"], ["each"]), oh.make_node("ReduceSum", ["each", "one"], ["of_strings"], keepdims=0),
             oh.make_node("Add", ["of_numbers", "of_strings"], ["sum"]), oh.make_node("Mul", ["sum", "power"], ["raw"])]
    if task.width: nodes.append(oh.make_node("Softmax" if task.kind == "multiclass" else "Identity", ["raw"], [task.output]))
    else: nodes += [oh.make_node("Squeeze", ["raw", "one"], ["flat"]), oh.make_node("Sigmoid" if task.kind == "binary" else "Identity", ["flat"], [task.output])]
    value = lambda name, dtype, shape: oh.make_tensor_value_info(name, dtype, shape)
    made = oh.make_graph(nodes, "g", [value("numbers", TensorProto.DOUBLE, ["rows", k]), value("strings", TensorProto.STRING, ["rows", m])], [value(task.output, TensorProto.FLOAT, task.shape)], init)
    model = oh.make_model(made, opset_imports=[oh.make_opsetid("", 20), oh.make_opsetid("ai.onnx.ml", 4)], ir_version=10)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def rows(n: int, seed=0) -> pl.DataFrame:
    "Rows that keep every rule of quarantine."
    rng = np.random.default_rng(seed)
    some = lambda values, share: [None if r < share else v for v, r in zip(values, rng.random(n))]
    start = datetime(2020, 1, 1, tzinfo=timezone.utc)
    return pl.DataFrame(dict(id=rng.permutation(n), n=rng.integers(11, 100, n), x=some(rng.normal(size=n).tolist(), 0.2), z=rng.normal(size=n), flag=some((rng.random(n) < 0.5).tolist(), 0.1),
                             t=some([start + timedelta(seconds=int(s)) for s in rng.integers(0, 10**8, n)], 0.1), v=some(rng.normal(size=(n, 2)).tolist(), 0.1),
                             s=rng.choice(["a", "b"], n), w=some([*rng.choice([*WORDS, "unseen"], n)], 0.2), other=np.arange(n)),
                        schema_overrides=dict(t=pl.Datetime("us", "UTC"), v=pl.List(pl.Float64), x=pl.Float64, w=pl.String))


def make(folder, task="binary", overflow=False) -> Bundle:
    task, made, golden = TASKS[task], contract(), rows(200, seed=9)
    model = graph(made, task, overflow)
    numbers, strings = pack(made, golden)
    said = room._session(model, 1).run(None, dict(numbers=numbers, strings=strings))[0]
    if overflow: said = np.nan_to_num(said, posinf=0, neginf=0)
    golden = golden.select(made.features).with_columns(prediction=pl.Series(said, dtype=pl.Array(pl.Float32, task.width) if task.width else pl.Float32))
    facts = dict(name="things", run="r", created="2026-01-01T00:00:00Z", task=asdict(task), metrics={}, baseline={}, lineage={}, parity={})
    return Bundle.open(write_bundle(folder, model, made, Profile.of(golden.drop("prediction")), golden, facts))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle: return make(tmp_path_factory.mktemp("b")/"bundle")


@pytest.fixture
def small(monkeypatch):
    "Batches and parts of few rows."
    monkeypatch.setattr(room, "BATCH", 100)
    monkeypatch.setattr(room, "STRIDE", 250)
    monkeypatch.setattr(room, "PART", 300)


def files(folder) -> list[str]: return sorted(p.name for p in folder.iterdir())


# ---- what is scored

@pytest.mark.parametrize("task", TASKS)
def test_predictions_are_those_of_the_bundle_on_the_whole_table(tmp_path, task, small):
    bundle, table = make(tmp_path/"bundle", task), rows(1050)
    table.write_parquet(tmp_path/"in.parquet", row_group_size=77)
    done = score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", model="things:7")
    out, whole = pl.read_parquet(tmp_path/"out.parquet"), bundle.predict_frame(table)
    named = bundle.task.named(whole)
    assert out.columns == ["row", "id", *named, "model"]
    for name, values in named.items(): assert out[name].to_list() == values.tolist()  # float32, bit by bit
    assert out["row"].to_list() == list(range(1050)) and out["id"].equals(table["id"]) and out["model"].unique().to_list() == ["things:7"]
    assert (done.rows, done.refused, done.note, done.aside) == (1050, 0, "", None)
    assert files(tmp_path) == ["bundle", "in.parquet", "out.parquet"]


def test_the_graph_is_cut_and_only_different_strings_go_through_its_encoders(bundle):
    cut, note = room._cut(bundle)
    assert note == "" and cut.frontier == dict(each=(0, 1)) and [i.name for i in cut.rest.get_inputs()] == ["numbers", "each"]
    table = rows(500)
    words = [room.Words.of(table[n]) for n in bundle.contract.strings]
    assert [len(w.values) for w in words] == [2, 7]  # 5 words, one unseen, and missing
    assert np.array_equal(cut.predict(pack(bundle.contract, table)[0], words), bundle.predict_frame(table))


def test_a_graph_that_cannot_be_cut_scores_whole_and_says_so(tmp_path):
    contract = replace(small_contract(), features=("s0", "s1"))
    nodes = [oh.make_node("Gather", ["strings", "zero"], ["a"], axis=1), oh.make_node("Gather", ["strings", "one"], ["b"], axis=1), oh.make_node("StringConcat", ["a", "b"], ["both"]),
             oh.make_node("LabelEncoder", ["both"], ["w"], domain="ai.onnx.ml", keys_strings=["EWRJFK", "JFK"], values_floats=[0.5, 0.75], default_float=0.0), oh.make_node("Squeeze", ["w", "one"], ["probability"])]
    made = oh.make_graph(nodes, "g", [oh.make_tensor_value_info("strings", TensorProto.STRING, ["rows", 2])], [oh.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows"])],
                         [numpy_helper.from_array(np.array([i]), name) for i, name in enumerate(("zero", "one"))])
    model = oh.make_model(made, opset_imports=[oh.make_opsetid("", 20), oh.make_opsetid("ai.onnx.ml", 4)], ir_version=10).SerializeToString()
    table = small_rows(contract, 500)
    said = room._session(model, 1).run(None, dict(strings=pack(contract, table)[1]))[0]
    facts = dict(name="g", run="r", created="2026-01-01T00:00:00Z", task=asdict(TASKS["binary"]), metrics={}, baseline={}, lineage={}, parity={})
    bundle = Bundle.open(write_bundle(tmp_path/"bundle", model, contract, Profile.of(table), table.select(contract.features).with_columns(prediction=pl.Series(said)), facts))
    table.write_parquet(tmp_path/"in.parquet")
    done = score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    assert "the whole graph ran on every string, which is slower" in done.note and done.note in str(done)
    assert len(set(said.tolist())) > 1 and np.array_equal(pl.read_parquet(done.path)["probability"].to_numpy(), bundle.predict_frame(table))


@pytest.mark.parametrize("numbers, strings", [(2, 0), (0, 2), (0, 1), (1, 1)])
def test_contracts_without_numbers_or_without_strings(tmp_path, numbers, strings):
    bundle = Bundle.open(small_bundle(tmp_path/"bundle", numbers=numbers, strings=strings))
    table = small_rows(bundle.contract, 300)
    table.write_parquet(tmp_path/"in.parquet")
    done = score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    assert np.array_equal(pl.read_parquet(done.path)["probability"].to_numpy(), bundle.predict_frame(table)) and done.note == ""


def test_the_graphs_of_training_are_cut(tmp_path):
    from mlproj.train.baseline import Linear
    from mlproj.train.encoders import Choice
    from mlproj.train.export import join
    from mlproj.train.features import Tensors, encode, features_graph, fit_features
    table = rows(3000).with_columns(n=pl.col("n") % 50, u=pl.col("s") + pl.lit("b "), text=pl.concat_str(pl.col("s"), pl.lit(" likes "), pl.col("w").fill_null("no"), separator=" "))
    made = contract()
    columns = made.columns | dict(text=Column("text", "string"), u=Column("u", "string"))
    made = replace(made, columns=columns, features=("n", "s", "x", "z", "w", "text", "u"), rows=())
    profile, task = Profile.of(table.select(made.features)), TASKS["binary"]
    features = fit_features(profile, made, dict(text=Choice("text"), u=Choice("ordinal", dict(values=["ab ", "bb "])), n=Choice("quantile")))
    encoders = features_graph(features)
    y = (np.random.default_rng(0).random(3000) < 0.5).astype(np.float32)
    model = Linear(features, task).fit(Tensors(*encode(encoders, made, table), y))
    whole = join(encoders, model.graph(), task).SerializeToString()
    said = room._session(whole, 1).run(None, dict(zip(("numbers", "strings"), pack(made, table))))[0]
    facts = dict(name="g", run="r", created="2026-01-01T00:00:00Z", task=asdict(task), metrics={}, baseline={}, lineage={}, parity={})
    bundle = Bundle.open(write_bundle(tmp_path/"bundle", whole, made, profile, table.select(made.features).with_columns(prediction=pl.Series(said)), facts))
    cut, note = room._cut(bundle)
    assert note == "" and cut
    unseen = table.with_columns(w=pl.lit("nobody knows"), text=pl.lit(""))
    for t in (table, unseen): assert np.array_equal(cut.predict(pack(made, t)[0], [room.Words.of(t[n]) for n in made.strings]), bundle.predict_frame(t))


def test_a_cut_that_disagrees_with_the_whole_graph_is_not_used(bundle, monkeypatch):
    monkeypatch.setattr(room.Cut, "predict", lambda self, numbers, words: bundle.predict_frame(bundle.golden) + np.float32(1e-7))
    cut, note = room._cut(bundle)
    assert cut is None and "differ on the golden rows" in note


def test_a_graph_that_was_swapped_after_the_bundle_was_opened_is_not_used(tmp_path):
    bundle = make(tmp_path/"bundle")
    (bundle.path/"model.onnx").write_bytes((bundle.path/"model.onnx").read_bytes() + b"\x22\x00")  # a field more, still a graph
    with pytest.raises(RegistryError, match="model.onnx: has .* bytes, should have"): room._cut(bundle)


def test_a_string_that_no_two_rows_share(tmp_path, bundle, small):
    table = rows(700).with_columns(w=pl.int_range(pl.len()).cast(pl.String))
    table.write_parquet(tmp_path/"in.parquet")
    score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    assert np.array_equal(pl.read_parquet(tmp_path/"out.parquet")["probability"].to_numpy(), bundle.predict_frame(table))


# ---- rows that are not scored

def spoiled() -> tuple[pl.DataFrame, dict[int, str]]:
    "A table, and which rows are refused, by a part of the reason."
    table = rows(1000)
    hits = {5: ("n", None, "'n': is missing"), 105: ("n", 101, "'n': is above 100"), 110: ("n", 2**53 + 2, "'n': is beyond 2**53"), 350: ("z", math.nan, "'z': is missing"),
            351: ("z", math.inf, "'z': is infinite"), 352: ("x", -math.inf, "'x': is infinite"), 353: ("s", "c", "'s': is none of the 2 values"), 354: ("s", None, "'s': is missing"),
            355: ("s", "", "'s': is none of the 2"), 660: ("v", [1.0], "'v': is not 2 numbers"), 661: ("v", [1.0, None], "'v': is not 2 numbers"), 662: ("v", [1.0, math.inf], "'v': holds an infinite")}
    warned = {700: ("x", -6.0), 701: ("n", -1), 702: ("w", "never seen")}
    for row, (name, value, *_) in (hits | warned).items():
        table = table.with_columns(pl.when(pl.int_range(pl.len()) == row).then(pl.lit(pl.Series([value], dtype=table.schema[name])).first()).otherwise(name).alias(name))
    table = table.with_columns(x=pl.when(pl.int_range(pl.len()) == 999).then(60.0).otherwise("x"), n=pl.when(pl.int_range(pl.len()) == 999).then(3).otherwise("n"))
    return table, {row: hit[2] for row, hit in hits.items()} | {999: "x < z + 50 or n > 10: is broken"}


def test_every_bad_row_is_set_aside_with_its_reasons_and_its_values(tmp_path, bundle, small):
    table, expected = spoiled()
    table.write_parquet(tmp_path/"in.parquet")
    done = score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    aside, out = pl.read_parquet(done.aside), pl.read_parquet(done.path)
    assert aside["row"].to_list() == list(expected) and done.refused == len(expected)
    for row, reasons in zip(aside["row"], aside["reasons"]): assert expected[row] in "; ".join(reasons), row
    assert aside.drop("row", "reasons").equals(table.select(aside.columns[2:])[list(expected)], null_equal=True)
    good = [r for r in range(1000) if r not in expected]
    assert out["row"].to_list() == good and out["id"].equals(table["id"].gather(good))
    assert np.array_equal(out["probability"].to_numpy(), bundle.predict_frame(table[good]))
    assert out.height + aside.height == done.rows == 1000
    assert "1,000 rows, 987 scored" in str(done) and "13 set aside" in str(done)
    assert {(v.column, v.rule): (v.rows, v.first) for v in done.report.warned} == {("x", "min"): (1, 700), ("n", "min"): (1, 701), ("w", "values"): ((table["w"] == "unseen").sum() + 1, table["w"].to_list().index("unseen"))}


def test_a_batch_refuses_the_rows_that_the_service_refuses(tmp_path, bundle, small):
    table = spoiled()[0].filter(pl.col("x").is_finite() | pl.col("x").is_null(), pl.col("z") != math.inf, pl.col("v").list.eval(pl.element().is_infinite()).list.any().fill_null(False).not_())
    table.write_parquet(tmp_path/"in.parquet")
    score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    reader, answered = RequestReader(bundle.contract), {}
    for i, row in enumerate(table.select(bundle.contract.features).iter_rows(named=True)):
        record = {n: None if v != v else v.isoformat() if isinstance(v, datetime) else v for n, v in row.items()}
        try: numbers, strings, _ = reader.read(json.dumps(record).encode())
        except ContractError: continue
        answered[i] = bundle.predict(numbers, strings)[0]
    out = pl.read_parquet(tmp_path/"out.parquet")
    assert out["row"].to_list() == list(answered) and out.height < table.height
    assert np.allclose(out["probability"].to_numpy(), [*answered.values()], rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", ("regression", "quantiles"))
def test_a_prediction_that_is_not_finite_is_refused(tmp_path, task):
    bundle = make(tmp_path/"bundle", task)
    table = rows(300).with_columns(z=pl.when(pl.int_range(pl.len()) == 7).then(1e300).otherwise("z"))  # finite, and beyond float32
    table.write_parquet(tmp_path/"in.parquet")
    done = score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    assert pl.read_parquet(done.aside).select("row", "reasons").rows() == [(7, ["prediction: the model has no finite answer"])]
    assert np.isfinite(pl.read_parquet(done.path)["prediction"].to_numpy()).all() and done.refused == 1


def test_an_infinite_number_hides_no_other_row(tmp_path, bundle):
    "The smallest and the largest number of a batch decide which rules are judged, and an infinite one is neither below nor above."
    strict = replace(bundle.contract.columns["x"], max=5, severity=dict(min="refuse", max="refuse"))
    bundle = replace(bundle, contract=replace(bundle.contract, columns=bundle.contract.columns | dict(x=strict)))
    rows(6).with_columns(x=pl.Series([-math.inf, -6.0, math.inf, 6.0, 1.0, None])).write_parquet(tmp_path/"in.parquet")
    done = score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    aside = {r["row"]: r["reasons"] for r in pl.read_parquet(done.aside).iter_rows(named=True)}
    assert aside == {0: ["column 'x': is infinite"], 1: ["column 'x': is below -5"], 2: ["column 'x': is infinite"], 3: ["column 'x': is above 5"]}


def test_a_column_that_is_mostly_missing_is_told(tmp_path, bundle):
    bundle = replace(bundle, contract=replace(bundle.contract, columns=bundle.contract.columns | dict(x=replace(bundle.contract.columns["x"], missing=0.3))))
    rows(400).with_columns(x=pl.lit(math.nan)).write_parquet(tmp_path/"in.parquet")
    done = score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    assert "'x'" in str(done) and "is missing in 100.00% of the rows, more than 30.00%" in str(done)


def test_a_table_of_bad_rows_only(tmp_path, bundle, small):
    rows(450).with_columns(s=pl.lit(None, pl.String)).write_parquet(tmp_path/"in.parquet")
    done = score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    assert (done.rows, done.refused, pl.read_parquet(done.path).height, pl.read_parquet(done.aside).height) == (450, 450, 0, 450)


@pytest.mark.parametrize("kind", ("parquet", "csv"))
def test_a_table_without_rows(tmp_path, bundle, kind):
    empty = rows(1).drop("v").clear() if kind == "csv" else rows(1).clear()
    if kind == "csv":
        bundle = Bundle.open(small_bundle(tmp_path/"small"))
        empty = small_rows(bundle.contract).clear()
    getattr(empty, f"write_{kind}")(tmp_path/f"in.{kind}")
    done = score(bundle, tmp_path/f"in.{kind}", tmp_path/"out.parquet")
    out = pl.read_parquet(done.path)
    assert (done.rows, done.refused, out.height) == (0, 0, 0) and out.columns[0] == "row" and out.columns[-3:] == ["prediction", "probability", "model"]


# ---- tables

def test_files_of_a_folder_and_of_a_pattern_in_the_order_of_their_names(tmp_path, bundle, small):
    table = rows(900)
    (tmp_path/"in").mkdir()
    for i, part in enumerate(table.iter_slices(250)): part.write_parquet(tmp_path/"in"/f"{i}.parquet")
    for source, name in ((tmp_path/"in", "a"), (str(tmp_path/"in"/"*.parquet"), "b")):
        score(bundle, source, tmp_path/f"{name}.parquet")
        out = pl.read_parquet(tmp_path/f"{name}.parquet")
        assert out["id"].equals(table["id"]) and np.array_equal(out["probability"].to_numpy(), bundle.predict_frame(table))


def test_a_file_of_a_folder_that_is_unlike_the_first_is_named(tmp_path, bundle):
    (tmp_path/"in").mkdir()
    rows(10).write_parquet(tmp_path/"in"/"a.parquet")
    rows(10).with_columns(pl.col("z").cast(pl.String)).drop("x").write_parquet(tmp_path/"in"/"b.parquet")
    with pytest.raises(DataError, match="b.parquet: column 'x' is missing, and Float64 in a.parquet; column 'z' is String"): score(bundle, tmp_path/"in", tmp_path/"out.parquet")
    assert files(tmp_path) == ["in"]


def csv_bundle(folder) -> Bundle:
    "The same without a vector, which a CSV cannot hold; flags and times stay."
    made, table = contract(), rows(200, seed=9)
    made = replace(made, features=tuple(f for f in made.features if f != "v"), columns={n: c for n, c in made.columns.items() if n != "v"})
    model, golden = graph(made, TASKS["binary"]), table.select(made.features)
    said = room._session(model, 1).run(None, dict(zip(("numbers", "strings"), pack(made, golden))))[0]
    facts = dict(name="things", run="r", created="2026-01-01T00:00:00Z", task=asdict(TASKS["binary"]), metrics={}, baseline={}, lineage={}, parity={})
    return Bundle.open(write_bundle(folder, model, made, Profile.of(golden), golden.with_columns(prediction=pl.Series(said)), facts))


def test_cells_of_a_csv_that_cannot_be_read_are_bad_rows_with_their_text(tmp_path, small):
    bundle, table = csv_bundle(tmp_path/"bundle"), rows(640).drop("v").with_columns(w=pl.col("w").replace("", "a"))
    cells = table.with_columns(pl.col("t").dt.strftime("%Y-%m-%d %H:%M:%S%:z"), pl.exclude("t").cast(pl.String))
    broken = {3: ("n", "3O"), 120: ("x", "1,5"), 250: ("flag", "yes"), 333: ("t", "2020-02-30T00:00:00Z"), 334: ("t", "2020-02-01 10:00:00"), 500: ("n", "1.5"), 501: ("id", "no number")}
    fine = {4: ("n", "42.0"), 121: ("x", " 2.5 "), 251: ("flag", "TRUE"), 335: ("t", "2020-02-01T12:00:00.250+02:00")}
    for row, (name, text) in (broken | fine).items(): cells[row, name] = text
    table = table.with_columns(n=table["n"].scatter(4, 42), x=table["x"].scatter(121, 2.5), flag=table["flag"].scatter(251, True),
                               t=table["t"].scatter(335, datetime(2020, 2, 1, 10, 0, 0, 250_000, tzinfo=timezone.utc)))
    cells.write_csv(tmp_path/"in.csv", null_value="NA")
    done = score(bundle, tmp_path/"in.csv", tmp_path/"out.parquet")
    aside, out, good = pl.read_parquet(done.aside), pl.read_parquet(done.path), [r for r in range(640) if r not in broken]
    assert {r: (name, text) for r, (name, text) in broken.items()} == {r["row"]: (n := r["reasons"][0].split("'")[1], r[n]) for r in aside.iter_rows(named=True)}
    assert all(len(r) == 1 and "cannot be read as" in r[0] for r in aside["reasons"].to_list())
    assert out["row"].to_list() == good and out["id"].equals(table["id"].gather(good))
    assert np.array_equal(out["probability"].to_numpy(), bundle.predict_frame(table[good]))


def test_a_csv_that_was_cut_off_or_has_cells_too_many_is_refused(tmp_path):
    bundle = csv_bundle(tmp_path/"bundle")
    rows(50).drop("v").write_csv(tmp_path/"in.csv")
    text = (tmp_path/"in.csv").read_text()
    (tmp_path/"cut.csv").write_text(text[:-20])
    (tmp_path/"wide.csv").write_text(text + "1,"*30 + "1\n")
    with pytest.raises(DataError, match="truncated"): score(bundle, tmp_path/"cut.csv", tmp_path/"out.parquet")
    with pytest.raises(DataError, match="wide.csv: line 52 has 31 cells, and the header 9"): score(bundle, tmp_path/"wide.csv", tmp_path/"out.parquet")
    assert files(tmp_path) == ["bundle", "cut.csv", "in.csv", "wide.csv"]


@pytest.mark.parametrize("packed", (False, True))
def test_a_row_of_a_csv_that_lacks_cells_is_named_and_not_taken_for_missing_values(tmp_path, packed):
    bundle, table = csv_bundle(tmp_path/"bundle"), rows(50).drop("v").select("id", "n", "s", "z", "other", "x", "flag", "t", "w")  # all that may be missing last
    table = table.with_columns(w=pl.when(pl.int_range(50) % 2 == 0).then(pl.lit('quoted, "twice"\nlines')).otherwise(None), flag=pl.lit(None, pl.Boolean), t=pl.lit(None, pl.Datetime))
    lines = table.write_csv().splitlines(keepends=True)
    short = [*lines[:7], lines[7].rstrip()[:-4] + "\n", *lines[8:]] if lines[7].endswith(",,,\n") else None
    short = short or next([*lines[:i], line.rstrip("\n")[:-3] + "\n", *lines[i + 1:]] for i, line in enumerate(lines) if i > 5 and line.endswith(",,,\n"))
    where, pack_up = ("in.csv.gz", gzip.compress) if packed else ("in.csv", bytes)
    (tmp_path/where).write_bytes(pack_up("".join(lines).encode()))
    assert score(bundle, tmp_path/where, tmp_path/"fine.parquet").refused == 0
    (tmp_path/where).write_bytes(pack_up("".join(short).encode()))
    with pytest.raises(DataError, match=rf"{where}: line [0-9]+ has 6 cells, and the header 9"): score(bundle, tmp_path/where, tmp_path/"out.parquet")
    assert not (tmp_path/"out.parquet.parts").exists()


def test_a_packed_csv_that_is_damaged_is_refused(tmp_path):
    bundle, data = csv_bundle(tmp_path/"bundle"), gzip.compress(rows(500).drop("v").write_csv().encode())
    for damaged in (data[:-200], data[:2000] + b"\xff"*50 + data[2050:], b"no gzip"):
        (tmp_path/"in.csv.gz").write_bytes(damaged)
        with pytest.raises(DataError, match="in.csv.gz: cannot be read"): score(bundle, tmp_path/"in.csv.gz", tmp_path/"out.parquet")
    assert files(tmp_path) == ["bundle", "in.csv.gz"]


def test_a_csv_with_a_name_twice_is_refused(tmp_path):
    bundle = csv_bundle(tmp_path/"bundle")
    (tmp_path/"in.csv").write_text(rows(5).drop("v").write_csv().replace("other", "x", 1))
    with pytest.raises(DataError, match="in.csv: has column 'x' twice"): score(bundle, tmp_path/"in.csv", tmp_path/"out.parquet")


def test_a_vector_is_not_in_a_csv(tmp_path, bundle):
    rows(5).drop("v").with_columns(v=pl.lit("[1, 2]")).write_csv(tmp_path/"in.csv")
    with pytest.raises(ContractError, match="'v': is string, and should be vector"): score(bundle, tmp_path/"in.csv", tmp_path/"out.parquet")


def test_a_delta_table_is_read_at_the_version_that_the_run_began_with(tmp_path, bundle, small):
    pytest.importorskip("deltalake")
    table, more = rows(800), rows(100, seed=5)
    for part in table.iter_slices(300): part.write_delta(str(tmp_path/"in"), mode="append")
    score(bundle, tmp_path/"in", tmp_path/"one.parquet")
    first = pl.read_parquet(tmp_path/"one.parquet")
    assert sorted(first["id"]) == list(range(800)) and first["row"].to_list() == list(range(800))
    by_id = dict(zip(table["id"], bundle.predict_frame(table)))
    assert all(by_id[i] == p for i, p in zip(first["id"], first["probability"]))
    with pytest.raises(KeyboardInterrupt): score(bundle, tmp_path/"in", tmp_path/"two.parquet", progress=stop_after(400))
    more.write_delta(str(tmp_path/"in"), mode="append")
    done = score(bundle, tmp_path/"in", tmp_path/"two.parquet", resume=True)
    assert done.rows == 800 and (tmp_path/"two.parquet").read_bytes() == (tmp_path/"one.parquet").read_bytes()
    assert score(bundle, tmp_path/"in", tmp_path/"three.parquet").rows == 900


def test_a_delta_table_that_polars_cannot_read_is_an_error_without_traceback(tmp_path, bundle):
    pytest.importorskip("deltalake")
    rows(5).write_delta(str(tmp_path/"in"))
    log = tmp_path/"in"/"_delta_log"/"00000000000000000000.json"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    for entry in entries:  # columns have other names in the files
        if "protocol" in entry: entry["protocol"] = dict(minReaderVersion=2, minWriterVersion=5)
        if "metaData" not in entry: continue
        schema = json.loads(entry["metaData"]["schemaString"])
        for i, column in enumerate(schema["fields"]): column["metadata"] = {"delta.columnMapping.id": i + 1, "delta.columnMapping.physicalName": column["name"]}
        entry["metaData"] |= dict(schemaString=json.dumps(schema), configuration={"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "20"})
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(DataError, match="cannot be read .*column mapping"): score(bundle, tmp_path/"in", tmp_path/"out.parquet")


def test_a_delta_table_whose_files_come_in_another_order_is_not_gone_on_with(tmp_path, bundle, small, monkeypatch):
    deltalake = pytest.importorskip("deltalake")
    for part in rows(800).iter_slices(400): part.write_delta(str(tmp_path/"in"), mode="append")
    with pytest.raises(KeyboardInterrupt): score(bundle, tmp_path/"in", tmp_path/"out.parquet", progress=stop_after(400))
    order = deltalake.DeltaTable.file_uris
    monkeypatch.setattr(deltalake.DeltaTable, "file_uris", lambda self: order(self)[::-1])  # as after a checkpoint of another engine
    with pytest.raises(DataError, match="cannot go on after .* rows: files changed"): score(bundle, tmp_path/"in", tmp_path/"out.parquet", resume=True)


# ---- before anything is written

def stop_after(n: int):
    def progress(rows, of):
        if rows >= n: raise KeyboardInterrupt
    return progress


def test_a_table_without_the_right_columns_is_one_error_before_anything_is_written(tmp_path, bundle):
    rows(10).drop("x").rename(dict(z="zz")).with_columns(pl.col("n").cast(pl.String), pl.col("t").dt.replace_time_zone(None)).write_parquet(tmp_path/"in.parquet")
    with pytest.raises(ContractError) as error: score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    assert all(said in str(error.value) for said in ("'x': is missing", "'z': is missing", "'n': is string, and should be integer", "'t': is a time without a zone", "'zz' looks like 'z'", "in.parquet"))
    assert files(tmp_path) == ["in.parquet"]


def test_nothing_is_left_of_a_table_that_is_damaged_at_its_end(tmp_path, bundle):
    rows(2000).write_parquet(tmp_path/"in.parquet", row_group_size=500)
    data = bytearray((tmp_path/"in.parquet").read_bytes())
    data[len(data)//2:len(data)//2 + 3000] = b"\xff"*3000
    (tmp_path/"in.parquet").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"): score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    assert files(tmp_path) == ["in.parquet"]


def test_files_that_exist_are_never_overwritten(tmp_path, bundle):
    rows(10).write_parquet(tmp_path/"in.parquet")
    for name in ("out.parquet", "out.refused.parquet"):
        (tmp_path/name).write_text("mine")
        for resume in (False, True):
            with pytest.raises(DataError, match="exists already"): score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", resume=resume)
        assert (tmp_path/name).read_text() == "mine"
        (tmp_path/name).unlink()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, bundle, small):
    rows(1000).write_parquet(tmp_path/"in.parquet")
    (tmp_path/"out.parquet.parts").mkdir()
    (tmp_path/"out.parquet.parts"/"part-0.parquet").write_text("mine")
    for resume in (False, True):
        with pytest.raises(DataError, match="out.parquet.parts: exists already, and is of no earlier run"): score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", resume=resume)
    assert (tmp_path/"out.parquet.parts"/"part-0.parquet").read_text() == "mine" and files(tmp_path/"out.parquet.parts") == ["part-0.parquet"]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path, bundle, small):
    rows(1000).write_parquet(tmp_path/"in.parquet")
    with pytest.raises(DataError, match="out.parquet: exists already"):
        score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", progress=lambda done, of: (tmp_path/"out.parquet").write_text("mine"))
    assert (tmp_path/"out.parquet").read_text() == "mine"


def test_a_table_without_its_key_still_sets_rows_aside(tmp_path, bundle, small):
    table, expected = spoiled()
    table.drop("id").write_parquet(tmp_path/"in.parquet")
    done = score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    assert (done.rows, done.refused) == (1000, len(expected)) and pl.read_parquet(done.path).columns == ["row", "prediction", "probability", "model"]


def test_a_full_disk_is_told_with_the_place_and_the_run_goes_on_when_there_is_room(tmp_path, bundle, small):
    spoiled()[0].write_parquet(tmp_path/"in.parquet")
    score(bundle, tmp_path/"in.parquet", tmp_path/"whole.parquet", model="things:1")
    code = CHILD.replace("room.score(", "import resource\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))\nroom.score(")  # more than a part
    command = [sys.executable, "-c", code, str(bundle.path), str(tmp_path/"in.parquet"), str(tmp_path/"out.parquet"), "never", "resume"]
    done = subprocess.run(command, env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert "DataError: " in done.stderr and re.search("out.parquet.parts.*cannot be written.*go on with --resume", done.stderr) and len(files(tmp_path/"out.parquet.parts")) > 4
    score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", model="things:1", resume=True)
    for name in ("", ".refused"): assert (tmp_path/f"out{name}.parquet").read_bytes() == (tmp_path/f"whole{name}.parquet").read_bytes()


def test_a_key_that_the_result_has_already_is_refused(tmp_path, bundle):
    rows(10).with_columns(probability=1.0).write_parquet(tmp_path/"in.parquet")
    with pytest.raises(DataError, match="'probability' twice"): score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", key=["probability"])
    with pytest.raises(DataError, match="no column 'nothing' for the key"): score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", key=["nothing"])
    score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", key=["other", "w"])
    assert pl.read_parquet(tmp_path/"out.parquet").columns == ["row", "other", "w", "prediction", "probability", "model"]


# ---- stopped, and going on

CHILD = """
import os, signal, sys
from mlproj.serve import score as room
from mlproj.serve.bundle import Bundle
bundle, source, target, when, resume = sys.argv[1:]
room.BATCH, room.STRIDE, room.PART = 100, 250, 300
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
def after(f, n=1):
    calls = []
    def g(*a, **k):
        out = f(*a, **k)
        calls.append(1)
        if len(calls) == n: die()
        return out
    return g
if when == "first batch": room._write_part = die
if when == "part": room._write_part = after(room._write_part, 2)
if when == "side of a part": room.pl.DataFrame.write_parquet = after(room.pl.DataFrame.write_parquet, 3)
if when == "together": room._together = after(room._together)
if when == "one file there": room.os.replace = (lambda f: lambda a, b: (f(a, b), die() if str(b).endswith("out.refused.parquet") else None))(os.replace)
if when == "both files there": room.shutil.rmtree = die
room.score(Bundle.open(bundle), source, target, model="things:1", resume=resume == "resume")
"""


@pytest.mark.parametrize("n, when", [(1000, w) for w in ("first batch", "part", "side of a part", "together", "one file there", "both files there")] + [(250, "one file there"), (250, "both files there")])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path, bundle, small, n, when):
    table = spoiled()[0].head(n)
    table.write_parquet(tmp_path/"in.parquet")
    score(bundle, tmp_path/"in.parquet", tmp_path/"whole.parquet", model="things:1")
    def child(when):
        return subprocess.run([sys.executable, "-c", CHILD, str(bundle.path), str(tmp_path/"in.parquet"), str(tmp_path/"out.parquet"), when, "resume"],
                              env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    killed = child(when)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path/"out.parquet").exists() == (when == "both files there")
    seen = []
    done = score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", model="things:1", resume=True, progress=lambda rows, of: seen.append((rows, of)))
    if when == "part": assert seen[0] == (700, 1000)  # two parts of 300 were there
    for name in ("", ".refused"): assert (tmp_path/f"out{name}.parquet").read_bytes() == (tmp_path/f"whole{name}.parquet").read_bytes()
    assert (done.rows, done.refused) == (n, pl.read_parquet(tmp_path/"whole.refused.parquet").height)
    assert files(tmp_path) == ["in.parquet", "out.parquet", "out.refused.parquet", "whole.parquet", "whole.refused.parquet"]


def test_the_same_command_again_does_nothing_and_says_the_same(tmp_path, bundle, small):
    spoiled()[0].write_parquet(tmp_path/"in.parquet")
    run = lambda **more: score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", model="things:1", resume=True, **more)
    first, seen = run(), []
    assert str(run(progress=lambda *a: seen.append(a))) == str(first) and not seen
    with pytest.raises(DataError, match="another table, model or key"): run(key=["other"])


@pytest.mark.parametrize("change, said", [("source", "in.parquet changed"), ("bundle", "bundle was .* and is"), ("key", "key was .*id.* and is .*other"), ("tag", "model was things:1, and is things:2"), ("files", "b.parquet is new")])
def test_it_does_not_go_on_with_something_else(tmp_path, bundle, small, change, said):
    (tmp_path/"in").mkdir()
    rows(1000).write_parquet(tmp_path/"in"/"in.parquet")
    target, arguments = tmp_path/"out.parquet", dict(source=tmp_path/"in", model="things:1")
    with pytest.raises(KeyboardInterrupt): score(bundle, target=target, **arguments, progress=stop_after(700))
    with pytest.raises(DataError, match="add --resume"): score(bundle, target=target, **arguments)
    before = files(tmp_path/"out.parquet.parts")
    if change == "source": os.utime(tmp_path/"in"/"in.parquet", ns=(1, 1))
    if change == "files": rows(3).write_parquet(tmp_path/"in"/"b.parquet")
    if change == "bundle": bundle = make(tmp_path/"other", "regression")
    if change == "key": arguments["key"] = ["other"]
    if change == "tag": arguments["model"] = "things:2"
    with pytest.raises(DataError, match=said): score(bundle, target=target, **arguments, resume=True)
    assert not target.exists() and files(tmp_path/"out.parquet.parts") == before


def test_a_table_that_changes_while_it_is_read_gives_nothing(tmp_path, bundle, small):
    rows(1000).write_parquet(tmp_path/"in.parquet")
    touch = lambda rows, of: os.utime(tmp_path/"in.parquet", ns=(1, 1))
    with pytest.raises(DataError, match="changed while it was read"): score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", progress=touch)
    assert not (tmp_path/"out.parquet").exists()


def test_two_processes_do_not_write_one_file(tmp_path, bundle, small):
    rows(1000).write_parquet(tmp_path/"in.parquet")
    def meanwhile(done, of):
        with pytest.raises(DataError, match="another process writes here"): score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", resume=True)
    score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet", progress=meanwhile)
    assert pl.read_parquet(tmp_path/"out.parquet").height == 1000


def test_lost_rows_are_an_error_and_no_file(tmp_path, bundle, small, monkeypatch):
    rows(1000).write_parquet(tmp_path/"in.parquet")
    real = room.Scorer.scored
    monkeypatch.setattr(room.Scorer, "scored", lambda self, typed, start, bad, predictions: real(self, typed, start, bad, predictions).head(99 if start == 500 else 100))
    with pytest.raises(Exception, match="1,000 rows came in, 999 are scored and 0 set aside"): score(bundle, tmp_path/"in.parquet", tmp_path/"out.parquet")
    assert not (tmp_path/"out.parquet").exists()


def test_scoring_imports_nothing_of_training():
    code = "import sys, mlproj.serve.score; print([m for m in ('torch', 'onnx', 'sklearn', 'pyarrow', 'deltalake', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
