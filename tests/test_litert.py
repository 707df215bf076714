"The numeric tail of a network for LiteRT: the reader of graphs against onnxruntime, and, where the converter's environment stands, LiteRT itself."
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from onnx import TensorProto
from onnx import helper as oh
from onnx import numpy_helper

from mlproj.data.contract import Column, Contract
from mlproj.data.task import Task
from mlproj.project import ConfigError, MlprojError, ParityError, Project, RegistryError
from mlproj.train import litert

STORE = Path(os.environ.get("MLPROJ_LITERT_STORE") or Project.find(Path(__file__)).store)
READY = (STORE/"envs"/litert.PINS[1].replace("==", "-")/"ready").exists()


def const(name, value, dtype=np.float32): return numpy_helper.from_array(np.asarray(value, dtype), name)


def graph(nodes, init, inputs=("x_numbers", "x_codes"), output="value", shape=None) -> onnx.ModelProto:
    "Nodes over x_numbers (rows, 6) and x_codes (rows, 2)."
    values = dict(x_numbers=(TensorProto.FLOAT, ["rows", 6]), x_codes=(TensorProto.INT64, ["rows", 2]))
    made = oh.make_graph(nodes, "g", [oh.make_tensor_value_info(n, *values[n]) for n in inputs], [oh.make_tensor_value_info(output, TensorProto.FLOAT, shape)], init)
    return oh.make_model(made, opset_imports=[oh.make_opsetid("", 20), oh.make_opsetid("ai.onnx.ml", 4)], ir_version=10)


I64 = np.int64
ONE = {  # operations of one input
    **{name: ({}, []) for name in ("Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg", "Erf", "Floor", "Reciprocal", "Sin", "Cos", "Identity", "Softplus", "HardSwish", "Flatten", "Elu", "LeakyRelu", "HardSigmoid",
                                      "Gelu", "Softmax", "LogSoftmax", "Sum", "Max", "Min")},
    "Softmax of an axis": (dict(axis=0), []), "Gelu of tanh": (dict(approximate="tanh"), []), "LeakyRelu of alpha": (dict(alpha=0.3), []),
    "Clip": ({}, [const("a", -0.5), const("b", 0.5)]), "Clip from": ({}, [const("a", -0.5)]), "Clip to": ({}, [None, const("b", 0.5)]), "Transpose": (dict(perm=[1, 0]), []),
    "Reshape": ({}, [const("a", [0, 3, -1], I64)]), "Unsqueeze": ({}, [const("a", [0, -1], I64)]), "Expand": ({}, [const("a", [4, 1, 6], I64)]), "Tile": ({}, [const("a", [1, 2], I64)]),
    "Slice": ({}, [const("a", [1, 0], I64), const("b", [-1, 2**40], I64), const("c", [-1, 0], I64), const("d", [2, 1], I64)]), "Slice in order": ({}, [const("a", [0], I64), const("b", [1], I64)]),
    **{f"{name} {i}": (a, v) for name in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
       for i, (a, v) in enumerate([({}, []), (dict(keepdims=0), [const("a", [1], I64)]), (dict(keepdims=1), [const("a", [-1], I64)]), (dict(noop_with_empty_axes=1), [])])},
    "Add": ({}, [const("a", 2.0)]), "Sub": ({}, [const("a", np.arange(6))]), "Mul": ({}, [const("a", [[2.0]])]), "Div": ({}, [const("a", 3.0)]), "Pow": ({}, [const("a", 2.0)]), "Max of more": ({}, [const("a", 0.1), const("b", 0.2)]),
    "MatMul": ({}, [const("a", np.arange(18).reshape(6, 3))]), "Gemm": ({}, [const("a", np.arange(18).reshape(6, 3)), const("b", [1, 2, 3])]),
    "Gemm of all": (dict(alpha=0.5, beta=2.0, transB=1), [const("a", np.arange(18).reshape(3, 6)), const("b", [1, 2, 3])]), "Gemm bare": ({}, [const("a", np.arange(18).reshape(6, 3))]),
    "LayerNormalization": (dict(epsilon=1e-3), [const("a", np.arange(6)), const("b", np.ones(6))]), "LayerNormalization bare": ({}, [const("a", np.ones(6))]),
    "Einsum": (dict(equation="bi,ij->bj"), [const("a", np.arange(18).reshape(6, 3))]), "Concat": (dict(axis=-1), [const("a", [[1, 2]])]),
    "Gather": (dict(axis=1), [const("a", [[0, 2], [5, 1]], I64)]), "Gather one": (dict(axis=-1), [const("a", 3, I64)]), "TopK": (dict(axis=1), [const("a", [3], I64)]),
    "TopK lowest": (dict(largest=0), [const("a", [6], I64)]),
}


def compare(model: onnx.ModelProto, output="value", rows=5) -> None:
    "The module read from a graph gives what onnxruntime gives, for single rows."
    rng, names = np.random.default_rng(0), [i.name for i in model.graph.input]
    values = dict(x_numbers=rng.normal(0, 1.5, (rows, 6)).astype(np.float32), x_codes=rng.integers(0, 4, (rows, 2)))
    tail = litert.numeric_tail(model, output)
    about, arrays = litert.convertible(tail)
    module, run = litert.as_torch(about, arrays), onnxruntime.InferenceSession(model.SerializeToString())
    for i in range(rows):
        wanted = run.run([output], {n: values[n][i:i + 1] for n in names})[0]
        with torch.no_grad(): found = module(*(torch.as_tensor(values[n][i:i + 1].astype(np.int32 if n == "x_codes" else np.float32)) for n in about["inputs"])).numpy()
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("case", ONE)
def test_an_operation_means_what_onnxruntime_does(case):
    attributes, constants = ONE[case]
    inputs = ["x_numbers", *(c.name if c is not None else "" for c in constants)]
    outputs = ["value", "places"] if case.startswith("TopK") else ["value"]
    compare(graph([oh.make_node(case.split()[0], inputs, outputs, **attributes)], [c for c in constants if c is not None], ["x_numbers"]))


def test_logarithms_and_roots_of_positive_numbers():
    compare(graph([oh.make_node("Exp", ["x_numbers"], ["e"]), oh.make_node("Log", ["e"], ["l"]), oh.make_node("Sqrt", ["e"], ["s"]), oh.make_node("Add", ["l", "s"], ["value"])], [], ["x_numbers"]))


def test_comparisons_choices_and_casts():
    nodes = [oh.make_node(op, ["x_numbers", "a"], [op]) for op in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal")]
    nodes += [oh.make_node("Or", ["Less", "Greater"], ["or"]), oh.make_node("And", ["LessOrEqual", "GreaterOrEqual"], ["and"]), oh.make_node("Not", ["and"], ["not"]),
              oh.make_node("Where", ["or", "x_numbers", "a"], ["w"]), oh.make_node("Cast", ["not"], ["c"], to=TensorProto.FLOAT), oh.make_node("Cast", ["Equal"], ["i"], to=TensorProto.INT64),
              oh.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT), oh.make_node("Sum", ["w", "c", "f"], ["value"])]
    compare(graph(nodes, [const("a", 0.25)], ["x_numbers"]))


def test_splits_lookups_and_shapes_that_only_depend_on_the_number_of_rows():
    nodes = [oh.make_node("Shape", ["x_codes"], ["shape"]), oh.make_node("Gather", ["shape", "zero"], ["n"], axis=0), oh.make_node("Concat", ["n", "minus"], ["to"], axis=0),
             oh.make_node("Gather", ["table", "x_codes"], ["e"]), oh.make_node("Reshape", ["e", "to"], ["flat"]), oh.make_node("Split", ["x_numbers"], ["p", "q"], axis=1, num_outputs=2),
             oh.make_node("Split", ["x_numbers", "sizes"], ["r", "s", "t"], axis=1), oh.make_node("Concat", ["flat", "p", "q", "s", "r"], ["value"], axis=1)]
    compare(graph(nodes, [const("zero", [0], I64), const("minus", [-1], I64), const("table", np.arange(8).reshape(4, 2)), const("sizes", [1, 2, 3], I64)]))


def test_what_cannot_be_converted_is_named_before_anything_is_installed(tmp_path):
    nodes = [oh.make_node("CumSum", ["x_numbers", "axis"], ["value"])]
    with pytest.raises(ConfigError, match="the model uses CumSum"): litert.convertible(litert.numeric_tail(graph(nodes, [const("axis", 1, np.int32)], ["x_numbers"]), "value"))
    rest = oh.make_node("ReduceSum", ["x_numbers", "axes"], ["value"])  # axes that the input decides
    with pytest.raises(ConfigError, match="the model uses ReduceSum"):
        litert.convertible(litert.numeric_tail(graph([oh.make_node("Cast", ["x_codes"], ["axes0"], to=TensorProto.INT64), oh.make_node("Gather", ["axes0", "zero"], ["axes"], axis=1), rest], [const("zero", 0, I64)]), "value"))
    whole = oh.make_model(oh.make_graph([oh.make_node("Identity", ["numbers"], ["value"])], "g", [oh.make_tensor_value_info("numbers", TensorProto.FLOAT, ["rows", 2])],
                                        [oh.make_tensor_value_info("value", TensorProto.FLOAT, None)]), opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ConfigError, match="neither x_numbers nor x_codes"): litert.numeric_tail(whole, "value")


def test_an_environment_that_cannot_be_made_says_why_and_is_not_taken_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(litert, "PINS", ("no-such-package-of-mlproj==0", "litert-torch==0.10.0"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    half = tmp_path/"envs"/"litert-torch-0.10.0"  # of an attempt that was broken off
    half.mkdir(parents=True)
    (half/"left").touch()
    said = []
    with pytest.raises(MlprojError, match="could not be made: ERROR: No matching distribution"): litert.environment(tmp_path, said.append)
    assert "2 GB" in said[0] and not (half/"left").exists() and not (half/"ready").exists()


# ---- with LiteRT: minutes to install, and half a minute each

def whole_graph(task: Task):
    "Encoders by hand, and a tail with the operations that networks use; with its contract and golden rows."
    rng, width = np.random.default_rng(0), task.width or 1
    init = [const("fill", np.zeros(6), np.float64), const("table", rng.normal(size=(4, 3))), const("w1", rng.normal(size=(9, 8))), const("gain", rng.normal(size=8)), const("bias", rng.normal(size=8)),
            const("w2", rng.normal(size=(8, width))), const("scale", 20.0), const("k", [width], I64), const("first", 0, I64), const("flat", [-1], I64)]
    nodes = [oh.make_node("IsNaN", ["numbers"], ["absent"]), oh.make_node("Where", ["absent", "fill", "numbers"], ["filled"]), oh.make_node("Cast", ["filled"], ["x_numbers"], to=TensorProto.FLOAT),
             oh.make_node("LabelEncoder", ["strings"], ["x_codes"], domain="ai.onnx.ml", keys_strings=["", "EWR", "JFK"], values_int64s=[1, 2, 3], default_int64=0),
             oh.make_node("Gather", ["x_codes", "first"], ["code"], axis=1), oh.make_node("Gather", ["table", "code"], ["e"]), oh.make_node("Concat", ["x_numbers", "e"], ["x"], axis=1),
             oh.make_node("MatMul", ["x", "w1"], ["h0"]), oh.make_node("LayerNormalization", ["h0", "gain", "bias"], ["h1"]), oh.make_node("Gelu", ["h1"], ["h2"]), oh.make_node("MatMul", ["h2", "w2"], ["z"])]
    nodes += {"binary": [oh.make_node("Reshape", ["z", "flat"], ["zf"]), oh.make_node("Sigmoid", ["zf"], ["probability"])], "multiclass": [oh.make_node("Softmax", ["z"], ["probability"])],
              "regression": [oh.make_node("TopK", ["z", "k"], ["sorted", "places"], largest=0), oh.make_node("Mul", ["sorted", "scale"], ["value"])]}[task.kind]
    value = oh.make_tensor_value_info
    used = {n for node in nodes for n in node.input}
    made = oh.make_graph(nodes, "g", [value("numbers", TensorProto.DOUBLE, ["rows", 6]), value("strings", TensorProto.STRING, ["rows", 2])], [value(task.output, TensorProto.FLOAT, task.shape)],
                         [i for i in init if i.name in used], value_info=[value("x_numbers", TensorProto.FLOAT, ["rows", 6]), value("x_codes", TensorProto.INT64, ["rows", 2])])  # as a join leaves them
    columns = [*(Column(f"n{i}", "number", nullable=True) for i in range(6)), *(Column(f"s{i}", "string", nullable=True) for i in range(2))]
    contract = Contract("small", {c.name: c for c in columns}, tuple(c.name for c in columns))
    rows = pl.DataFrame({**{f"n{i}": rng.normal(0, 2, 50) for i in range(6)}, **{f"s{i}": rng.choice(["", "EWR", "JFK", "Zürich"], 50) for i in range(2)}})
    rows = rows.with_columns(n0=pl.when(pl.int_range(50) % 5 == 0).then(None).otherwise("n0"), n1=pl.when(pl.int_range(50) % 7 == 0).then(1e9).otherwise("n1"))
    return oh.make_model(made, opset_imports=[oh.make_opsetid("", 20), oh.make_opsetid("ai.onnx.ml", 4)], ir_version=10), contract, rows


TASKS = [Task("binary", "late"), Task("multiclass", "cut", classes=("a", "b", "c")), Task("regression", "price", quantiles=(0.1, 0.5, 0.9))]


@pytest.mark.skipif(not READY, reason="the converter's environment is not there: export once with --to litert, or name a store with MLPROJ_LITERT_STORE")
@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.kind)
def test_litert_answers_what_the_graph_answers(task, tmp_path):
    whole, contract, rows = whole_graph(task)
    said = []
    litert.export_litert(whole, contract, rows, task, tmp_path/"out", STORE, "small, digest 123", said.append)
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["README.md", "contract.yaml", "encoders.onnx", "model.tflite", "tail.json"]
    assert "agree on 50 golden rows" in said[-1] and "does not contain the encoders" in said[-1]
    assert "**not**" in (tmp_path/"out"/"README.md").read_text() and "digest 123" in (tmp_path/"out"/"README.md").read_text()
    with pytest.raises(RegistryError, match="exists already"): litert.export_litert(whole, contract, rows, task, tmp_path/"out", STORE)


def test_an_answer_that_differs_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    whole, contract, rows = whole_graph(TASKS[0])
    monkeypatch.setattr(litert, "environment", lambda *_: "python")
    wrong = onnxruntime.InferenceSession(whole.SerializeToString())
    def converted(tail, values, python):
        from mlproj.data.contract import pack
        answers = wrong.run(None, dict(zip(("numbers", "strings"), pack(contract, rows))))[0].copy()
        answers[17] += 1e-3
        return b"", answers
    monkeypatch.setattr(litert, "converted", converted)
    with pytest.raises(ParityError, match="golden row 17: LiteRT differs from the graph by 0.001"): litert.export_litert(whole, contract, rows, TASKS[0], tmp_path/"out", tmp_path)
    assert list(tmp_path.iterdir()) == []
