"""Small bundles for tests: a graph made with onnx.helper, its contract, golden rows and facts."""
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import httpx
import numpy as np
import onnx
import polars as pl
import psutil
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto
from onnx import helper as oh
from onnx import numpy_helper

from mlproj.data.contract import Column, Contract
from mlproj.data.profile import Profile
from mlproj.data.task import Task
from mlproj.serve.bundle import write_bundle

ROOT = Path(__file__).parent.parent
AIRPORTS = ("EWR", "JFK", "LGA")
TASKS = dict(binary=Task("binary", "late", threshold=0.4), multiclass=Task("multiclass", "cut", ("Fair", "Good", "Ideal")), regression=Task("regression", "price", unit="USD"),
             quantiles=Task("regression", "price", quantiles=(0.1, 0.5, 0.9), unit="USD"))
SLOPES = np.float32([-1, 0.5, 2])  # of the classes


def small_contract(name="flights", numbers=2, strings=2) -> Contract:
    "`n0`, `n1`, … (the first an integer, the second nullable) and `s0`, `s1`, … (the first refuses unknown values)."
    columns = {f"n{i}": Column(f"n{i}", "integer" if i == 0 else "number", nullable=i == 1, min=0, max=24, example=12 if i == 0 else 0.5) for i in range(numbers)}
    columns |= {f"s{i}": Column(f"s{i}", "string", nullable=i == 1, values=AIRPORTS, severity=dict(values="refuse") if i == 0 else {}, example="JFK") for i in range(strings)}
    return Contract(name, columns, tuple(columns), source="tests")


def head(task: Task) -> tuple[list, list]:
    "Nodes and constants from `z` (n,) to the output of a task."
    if task.kind == "binary": return [oh.make_node("Sigmoid", ["z"], [task.output])], []
    if task.width is None: return [oh.make_node("Mul", ["z", "hundred"], [task.output])], [numpy_helper.from_array(np.float32(100), "hundred")]
    wide = oh.make_node("Unsqueeze", ["z", "axis"], ["column"])
    if task.quantiles: return [wide, oh.make_node("Add", ["column", "offsets"], [task.output])], [numpy_helper.from_array(np.float32(task.quantiles), "offsets")]
    return [wide, oh.make_node("Mul", ["column", "slopes"], ["scores"]), oh.make_node("Softmax", ["scores"], [task.output], axis=1)], [numpy_helper.from_array(SLOPES, "slopes")]


def small_graph(k: int, m: int, bias=0.0, task=TASKS["binary"], int8=False) -> bytes:
    "z = bias + sum of imputed, scaled numbers + sum of a weight per string, then the head of the task; an input without columns is absent. `int8`: weights of the numbers as int8."
    def const(name, value, dtype): return numpy_helper.from_array(np.array(value, dtype), name)

    init, nodes, terms, inputs = [const("bias", bias, np.float32), const("axis", [1], np.int64)], [], ["bias"], []
    if k:
        init += [const("fill", 12.0, np.float64)]
        nodes += [oh.make_node("IsNaN", ["numbers"], ["absent"]), oh.make_node("Where", ["absent", "fill", "numbers"], ["filled"]),
                  oh.make_node("Sub", ["filled", "fill"], ["centred64"]), oh.make_node("Cast", ["centred64"], ["centred"], to=TensorProto.FLOAT)]
        if int8:
            init += [const("weights8", [100]*k, np.int8), const("step", 0.001, np.float32)]
            nodes.append(oh.make_node("DequantizeLinear", ["weights8", "step"], ["weights"]))
        else: init.append(const("weights", [0.1]*k, np.float32))
        nodes += [oh.make_node("Mul", ["centred", "weights"], ["scaled"]), oh.make_node("ReduceSum", ["scaled", "axis"], ["a"], keepdims=0)]
        inputs.append(oh.make_tensor_value_info("numbers", TensorProto.DOUBLE, ["rows", k]))
        terms.append("a")
    if m:
        nodes += [oh.make_node("LabelEncoder", ["strings"], ["w"], domain="ai.onnx.ml", keys_strings=["EWR", "JFK"], values_floats=[0.5, -0.25], default_float=0.0),
                  oh.make_node("ReduceSum", ["w", "axis"], ["b"], keepdims=0)]
        inputs.append(oh.make_tensor_value_info("strings", TensorProto.STRING, ["rows", m]))
        terms.append("b")
    ending, constants = head(task)
    nodes += [oh.make_node("Sum", terms, ["z"]), *ending]
    graph = oh.make_graph(nodes, "small", inputs, [oh.make_tensor_value_info(task.output, TensorProto.FLOAT, task.shape)], init + constants)
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


def by_hand(contract: Contract, rows: pl.DataFrame, bias=0.0, task=TASKS["binary"]) -> np.ndarray:
    "What the small graph computes, in numpy: the oracle."
    z = np.full(rows.height, float(bias))
    for name in contract.numbers: z += (rows[name].cast(pl.Float64).fill_null(12.0).to_numpy() - 12)*0.1
    for name in contract.strings: z += np.array([{"EWR": 0.5, "JFK": -0.25}.get(v, 0.0) for v in rows[name].to_list()])
    if task.kind == "binary": out = 1/(1 + np.exp(-z))
    elif task.kind == "multiclass": out = np.exp(z[:, None]*SLOPES)/np.exp(z[:, None]*SLOPES).sum(1, keepdims=True)
    else: out = z[:, None] + task.quantiles if task.quantiles else z*100
    return out.astype(np.float32)


def small_bundle(folder, name="flights", run="run-1", bias=0.0, numbers=2, strings=2, task=TASKS["binary"], int8=False) -> Path:
    "A whole bundle on disk."
    contract = small_contract(name, numbers, strings)
    rows = small_rows(contract)
    facts = dict(name=name, run=run, created="2026-01-01T00:00:00Z", task=asdict(task), metrics=dict(average_precision=0.47), baseline=dict(average_precision=0.44),
                 lineage=dict(snapshot="a1", code="b2", config="c3", environment="d4"), parity=dict(rows=40, worst=0.0))
    golden = rows.with_columns(prediction=pl.Series(by_hand(contract, rows, bias, task)))
    return write_bundle(folder, small_graph(len(contract.numbers), len(contract.strings), bias, task, int8), contract, Profile.of(rows), golden, facts)


def key_pair(folder, name="ours") -> tuple[Path, Path]:
    "Paths of a new private key and its public key."
    private, paths = ec.generate_private_key(ec.SECP256R1()), (Path(folder)/f"{name}.pem", Path(folder)/f"{name}.pub.pem")
    paths[0].write_bytes(private.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))
    return paths


def environment(home, **more) -> dict:
    "The environment of a process that serves from `home` with the code of this checkout."
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLPROJ_", "BENTOML_", "PROMETHEUS_"))}
    return clean | dict(BENTOML_HOME=str(home), PYTHONPATH=str(ROOT), NO_COLOR="1", MLPROJ_DRAIN_SECONDS="0") | more


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
        "Process ids of the workers that live."
        children = [p for p in psutil.Process(self.process.pid).children() if p.status() != psutil.STATUS_ZOMBIE]
        return [p.pid for p in children if "_bentoml_impl.worker.service" in p.cmdline()]


def refused(home, *arguments, cwd=ROOT, port=None, **more) -> tuple[int, str]:
    "Exit code and output of a `bentoml serve` that must not start."
    server = Server(home, *arguments, cwd=cwd, port=port, **more)
    done = subprocess.run(server.command, cwd=cwd, env=server.environment, capture_output=True, text=True, timeout=40)
    return done.returncode, done.stdout + done.stderr

