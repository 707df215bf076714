"""Small bundles for tests: a graph made with onnx.helper, its contract, golden rows and facts."""
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
import polars as pl
import psutil
from onnx import TensorProto
from onnx import helper as oh
from onnx import numpy_helper

from mlproj.data.contract import Column, Contract
from mlproj.data.profile import Profile
from mlproj.serve.bundle import write_bundle

ROOT = Path(__file__).parent.parent
AIRPORTS = ("EWR", "JFK", "LGA")


def small_contract(name="flights", numbers=2, strings=2) -> Contract:
    "`n0`, `n1`, … (the first an integer, the second nullable) and `s0`, `s1`, … (the first refuses unknown values)."
    columns = {f"n{i}": Column(f"n{i}", "integer" if i == 0 else "number", nullable=i == 1, min=0, max=24, example=12 if i == 0 else 0.5) for i in range(numbers)}
    columns |= {f"s{i}": Column(f"s{i}", "string", nullable=i == 1, values=AIRPORTS, severity=dict(values="refuse") if i == 0 else {}, example="JFK") for i in range(strings)}
    return Contract(name, columns, tuple(columns), source="tests")


def small_graph(k: int, m: int, bias=0.0) -> bytes:
    "sigmoid(bias + sum of imputed, scaled numbers + sum of a weight per string); an input without columns is absent."
    def const(name, value, dtype): return numpy_helper.from_array(np.array(value, dtype), name)

    init, nodes, terms, inputs = [const("bias", bias, np.float32), const("axis", [1], np.int64)], [], ["bias"], []
    if k:
        init += [const("fill", 12.0, np.float64), const("scale", 0.1, np.float64)]
        nodes += [oh.make_node("IsNaN", ["numbers"], ["absent"]), oh.make_node("Where", ["absent", "fill", "numbers"], ["filled"]),
                  oh.make_node("Sub", ["filled", "fill"], ["centred"]), oh.make_node("Mul", ["centred", "scale"], ["scaled"]),
                  oh.make_node("ReduceSum", ["scaled", "axis"], ["a64"], keepdims=0), oh.make_node("Cast", ["a64"], ["a"], to=TensorProto.FLOAT)]
        inputs.append(oh.make_tensor_value_info("numbers", TensorProto.DOUBLE, ["n", k]))
        terms.append("a")
    if m:
        nodes += [oh.make_node("LabelEncoder", ["strings"], ["w"], domain="ai.onnx.ml", keys_strings=["EWR", "JFK"], values_floats=[0.5, -0.25], default_float=0.0),
                  oh.make_node("ReduceSum", ["w", "axis"], ["b"], keepdims=0)]
        inputs.append(oh.make_tensor_value_info("strings", TensorProto.STRING, ["n", m]))
        terms.append("b")
    nodes += [oh.make_node("Sum", terms, ["z"]), oh.make_node("Sigmoid", ["z"], ["probability"])]
    graph = oh.make_graph(nodes, "small", inputs, [oh.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])], init)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20), oh.make_opsetid("ai.onnx.ml", 4)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def small_rows(contract: Contract, n=40, seed=0) -> pl.DataFrame:
    "Rows under the contract, with missing values where it allows them."
    rng, columns = np.random.default_rng(seed), {}
    for name in contract.features:
        c = contract.columns[name]
        values = rng.integers(0, 25, n).tolist() if c.kind == "integer" else (rng.random(n)*24).tolist() if c.kind == "number" else rng.choice(AIRPORTS, n).tolist()
        columns[name] = pl.Series([None if c.nullable and i % 5 == 0 else v for i, v in enumerate(values)])
    return pl.DataFrame(columns)


def by_hand(contract: Contract, rows: pl.DataFrame, bias=0.0) -> np.ndarray:
    "What the small graph computes, in numpy: the oracle."
    z = np.full(rows.height, float(bias))
    for name in contract.numbers: z += (rows[name].cast(pl.Float64).fill_null(12.0).to_numpy() - 12)*0.1
    for name in contract.strings: z += np.array([{"EWR": 0.5, "JFK": -0.25}.get(v, 0.0) for v in rows[name].to_list()])
    return (1/(1 + np.exp(-z))).astype(np.float32)


def small_bundle(folder, name="flights", run="run-1", bias=0.0, numbers=2, strings=2) -> Path:
    "A whole bundle on disk."
    contract = small_contract(name, numbers, strings)
    rows = small_rows(contract)
    facts = dict(name=name, run=run, created="2026-01-01T00:00:00Z", task="binary", metrics=dict(average_precision=0.47), baseline=dict(average_precision=0.44),
                 lineage=dict(snapshot="a1", code="b2", config="c3", environment="d4"), parity=dict(rows=40, worst=0.0))
    golden = rows.with_columns(prediction=pl.Series(by_hand(contract, rows, bias)))
    return write_bundle(folder, small_graph(len(contract.numbers), len(contract.strings), bias), contract, Profile.of(rows), golden, facts)


def environment(home, **more) -> dict:
    "The environment of a process that serves from `home` with the code of this checkout."
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLPROJ_", "BENTOML_", "PROMETHEUS_"))}
    return clean | dict(BENTOML_HOME=str(home), PYTHONPATH=str(ROOT), NO_COLOR="1") | more


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    "`bentoml serve` as a process: `with Server(home) as server: server.predict(row)`."
    def __init__(self, home, *arguments, cwd=ROOT, port=None, log=None, **more):
        self.port = port or free_port()
        self.log = Path(log or Path(home)/f"server-{self.port}.log")
        self.command = [sys.executable, "-m", "bentoml", "serve", *arguments, "--port", str(self.port)]
        self.cwd, self.environment, self.url = cwd, environment(home, **more), f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log: self.process = subprocess.Popen(self.command, cwd=self.cwd, env=self.environment, stdout=log, stderr=log)
        self.client, until = httpx.Client(base_url=self.url, timeout=20), time.time() + 40
        while True:
            try:
                if self.client.get("/readyz").status_code == 200: return self
            except httpx.TransportError: pass
            if self.process.poll() is not None or time.time() > until:
                self.__exit__()
                raise AssertionError("the server did not start:\n" + self.log.read_text()[-3000:])
            time.sleep(0.05)

    def __exit__(self, *_):
        self.client.close()
        self.process.terminate()
        try: self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def predict(self, row: dict, **kwargs) -> httpx.Response: return self.client.post("/predict", json=row, **kwargs)
    def post(self, body: bytes, kind="application/json") -> httpx.Response: return self.client.post("/predict", content=body, headers={"content-type": kind} if kind else {})

    def workers(self) -> list[int]:
        "Process ids of the workers."
        return [p.pid for p in psutil.Process(self.process.pid).children() if "_bentoml_impl.worker.service" in p.cmdline()]


def refused(home, *arguments, cwd=ROOT, port=None, **more) -> tuple[int, str]:
    "Exit code and output of a `bentoml serve` that must not start."
    server = Server(home, *arguments, cwd=cwd, port=port, **more)
    done = subprocess.run(server.command, cwd=cwd, env=server.environment, capture_output=True, text=True, timeout=40)
    return done.returncode, done.stdout + done.stderr

