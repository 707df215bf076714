"""Scores a table in a batch beside MLflow, scikit-learn and three ways with onnxruntime; all of them compute the same logistic model.

    PEERS=… PEERS_HOME=… python bench/score.py           rows/s from Parquet to Parquet, 1 M flights, median of 3 in turn
    PEERS=… PEERS_HOME=… python bench/score.py memory    mlproj on 1, 10 and 30 M rows
    PEERS=… PEERS_HOME=… python bench/score.py row       one row, beside the same model by hand and by skl2onnx

`PEERS_HOME` is where the peers were set up (see their README.md: the environments `base` and `mlflow`, data.py and model.py). The peers' scripts are read
from `PEERS`. A contender is a process of its own; its time is from the Parquet file to the Parquet file, without imports and without loading the model.
"""
import json, os, re, statistics, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(os.environ.get("PEERS", "peers"))
HOME = Path(os.environ.get("PEERS_HOME", Path(tempfile.gettempdir())/"peers"))
LABELS = dict(onnx_codes="onnxruntime, strings to codes by Polars (limit)", onnx_polars2="onnxruntime, two inputs (limit)", onnx_polars21="skl2onnx, Polars",
              sklearn_pandas="scikit-learn, pandas", mlflow_pyfunc="MLflow pyfunc")
sys.path.insert(0, str(ROOT))

WEIGHTS = """
import json, model
from common import CAT, NUM
m = model.load(); (imputer, scaler), onehot = m[0].named_transformers_["num"], m[0].named_transformers_["cat"]
print(json.dumps(dict(numbers=NUM, strings=CAT, median=imputer.statistics_.tolist(), mean=scaler.mean_.tolist(), scale=scaler.scale_.tolist(),
                      values=[[str(v) for v in c] for c in onehot.categories_], weights=m[1].coef_[0].tolist(), bias=float(m[1].intercept_[0]))))
"""


def python(env: str) -> str: return str(HOME/"venvs"/env/"bin"/"python")


def environ(out) -> dict: return dict(os.environ, PYTHONPATH=f"{PEERS}", PEERS_HOME=str(HOME), OUT=str(out), PYTHONWARNINGS="ignore")


def graph(w: dict, task) -> bytes:
    "The peers' logistic model as the graph that a training of ours packages: our encoders and our linear model, with the weights of scikit-learn."
    import numpy as np
    from mlproj.train.baseline import Linear
    from mlproj.train.encoders import CategoryEncoder, NumberEncoder
    from mlproj.train.export import join
    from mlproj.train.features import Features, features_graph
    k, tables = len(w["numbers"]), []
    for values in w["values"]:
        found = dict(zip(values, w["weights"][k + sum(map(len, w["values"][:len(tables)])):]))
        tables.append([0.0, found.pop("", 0.0), *found.values()])  # unseen, missing, the others
    features = Features(tuple(NumberEncoder(n, median, np.nan, np.nan, mean, scale) for n, median, mean, scale in zip(w["numbers"], w["median"], w["mean"], w["scale"])),
                        tuple(CategoryEncoder(n, tuple(filter(None, values))) for n, values in zip(w["strings"], w["values"])))
    model = Linear(features, task)
    model.weights, model.table, model.bias = (np.asarray(v, np.float32) for v in (w["weights"][:k], np.concatenate(tables), w["bias"]))
    return join(features_graph(features), model.graph(), task).SerializeToString()


def make_bundle(folder: Path) -> Path:
    "A bundle of the peers' model, under the contract that their training table has."
    from dataclasses import asdict
    import polars as pl
    from mlproj.data.contract import infer_contract, pack
    from mlproj.data.profile import Profile
    from mlproj.data.task import Task
    from mlproj.serve.bundle import _session, write_bundle
    w = json.loads(subprocess.run([python("base"), "-c", WEIGHTS], capture_output=True, text=True, check=True, env=environ(folder)).stdout)
    train = pl.read_parquet(HOME/"data"/"train.parquet")
    profile, features = Profile.of(train), (*w["numbers"], *w["strings"])
    task = Task("binary", "y")
    contract, model = infer_contract(profile, "flights", features, label="y"), graph(w, task)
    golden = train.sample(1000, seed=0).select(features)
    inputs = dict(zip(("numbers", "strings"), pack(contract, golden)))
    golden = golden.with_columns(prediction=pl.Series(_session(model, 1).run(None, inputs)[0]))
    facts = dict(name="flights", run="lowered", created="2026-01-01T00:00:00Z", task=asdict(task), metrics={}, baseline={}, lineage={}, parity={})
    return write_bundle(folder/"bundle", model, contract, profile, golden, facts)


def ours(bundle: str, source: str, target: str) -> None:
    "The contender, in a process of its own."
    from mlproj.serve.bundle import Bundle
    from mlproj.serve.score import score
    opened = Bundle.open(bundle)
    begun, cpu = time.perf_counter(), time.process_time()
    done = score(opened, source, target)
    s, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print("RESULT " + json.dumps(dict(rows=done.rows, s=s, cpu=cpu, refused=done.refused, note=done.note)))


def repeat_table(target: str, millions: str) -> None:
    "The peers' table of a million rows, again and again."
    import polars as pl
    pl.scan_parquet([HOME/"data"/"score.parquet"]*int(millions), glob=False).sink_parquet(target, row_group_size=262_144)


def apart(*task) -> None:
    "A task of this file in a process of its own: what this process held would count as the memory of those that it starts."
    subprocess.run([sys.executable, __file__, *map(str, task)], check=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))


def measure(command: list[str], env: dict, cwd) -> dict:
    "Run a contender; what it reports, and its largest memory (MB)."
    process = subprocess.Popen(command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.stdout.read().decode(), process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode: raise SystemExit(f"{command}: {err[-2000:]}")
    return json.loads(re.findall(r"^RESULT (.*)$", out, re.M)[-1]) | dict(mb=usage.ru_maxrss//1024, all_cpu=usage.ru_utime + usage.ru_stime)


def table(head: list[str], rows: list[list]) -> None:
    print("| " + " | ".join(head) + " |\n|" + " --- |"*len(head))
    for row in rows: print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


def run_ours(bundle: Path, source: Path, target: Path) -> dict:
    target.unlink(missing_ok=True)
    command = [sys.executable, __file__, "ours", str(bundle), str(source), str(target)]
    return measure(command, dict(os.environ, PYTHONPATH=str(ROOT)), target.parent)


def run_peer(name: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        return measure([python("mlflow" if "mlflow" in name else "base"), str(PEERS/"batch"/f"{name}.py")], environ(folder), folder)


def beside(repeat: int) -> None:
    "All contenders in turn."
    with tempfile.TemporaryDirectory() as tmp:
        folder, results = Path(tmp), {}
        apart("bundle", folder)
        for _ in range(repeat):
            for name in ("ours", *LABELS):
                ours = lambda: run_ours(folder/"bundle", HOME/"data"/"score.parquet", folder/"out.parquet")
                results.setdefault(name, []).append(ours() if name == "ours" else run_peer(name))
        import polars as pl
        expected = pl.read_parquet(HOME/"data"/"score_expected.parquet")["p"]
        scored = pl.read_parquet(folder/"out.parquet")
        worst = (expected.gather(scored["row"]) - scored["probability"]).abs().max()
    medians = {n: statistics.median(r["rows"]/r["s"] for r in runs) for n, runs in results.items()}
    limit, mlflow = max(medians["onnx_codes"], medians["onnx_polars2"]), medians["mlflow_pyfunc"]
    rows = [[LABELS.get(n, "**mlproj score**"), f"{m:,.0f}", f"{m/limit:.2f}", f"{m/mlflow:.1f}×", max(r["mb"] for r in results[n])]
            for n, m in sorted(medians.items(), key=lambda item: -item[1])]
    table(["1 M flights, Parquet to Parquet", "rows/s", "of the limit", "against MLflow", "peak MB"], rows)
    print(f"mlproj: {scored.height:,} rows scored, {results['ours'][0]['refused']:,} set aside; largest difference to scikit-learn {worst:.1e}. {results['ours'][0]['note']}")


def memory() -> None:
    "mlproj on ever more rows."
    with tempfile.TemporaryDirectory() as tmp:
        folder, rows = Path(tmp), []
        source, target = folder/"table.parquet", folder/"out.parquet"
        apart("bundle", folder)
        for millions in (1, 10, 30):
            apart("table", source, millions)
            found, size = run_ours(folder/"bundle", source, target), lambda file: f"{file.stat().st_size/1e6:,.0f}"
            rows.append([f"{found['rows']:,}", f"{found['s']:.2f}", f"{found['rows']/found['s']:,.0f}", found["mb"], size(source), size(target)])
    table(["rows", "s", "rows/s", "peak MB", "table MB", "predictions MB"], rows)


def row() -> None:
    "One row through each graph of the same model, in this process, in turn: the median of 40 times 500 rows."
    import numpy as np
    import onnxruntime as ort
    from mlproj.data.contract import pack
    from mlproj.serve.bundle import Bundle
    with tempfile.TemporaryDirectory() as folder:
        opened = Bundle.open(make_bundle(Path(folder)))
        rows = opened.golden.head(500)
    numbers, strings = pack(opened.contract, rows)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    models = {name: ort.InferenceSession(str(file), options) for name, file in dict(hand=hand_made(), skl2onnx=hand_made().with_name("model.onnx")).items()}
    single = lambda column: column.reshape(-1, 1)
    columns = [*((n, single(numbers[:, i]).astype(np.float32)) for i, n in enumerate(opened.contract.numbers)), *((n, single(strings[:, i])) for i, n in enumerate(opened.contract.strings))]
    floats = numbers.astype(np.float32)
    contenders = {"**mlproj, the graph of a bundle**": lambda i: opened.predict(numbers[i:i + 1], strings[i:i + 1]),
                  "by hand, two inputs, scaling folded into the weights, no clipping (limit)": lambda i: models["hand"].run(None, dict(num=floats[i:i + 1], cat=strings[i:i + 1])),
                  "skl2onnx, 21 inputs": lambda i: models["skl2onnx"].run(["probabilities"], {n: v[i:i + 1] for n, v in columns})}
    times = {name: [] for name in contenders}
    for turn in range(40):
        for name, one in contenders.items():
            begun = time.perf_counter_ns()
            for i in range(len(rows)): one(i)
            times[name].append((time.perf_counter_ns() - begun)/len(rows)/1000)
    medians = {name: statistics.median(t[2:]) for name, t in times.items()}
    table(["one row, the same logistic model", "µs", "of the limit"], [[n, f"{m:.1f}", f"{m/list(medians.values())[1]:.2f}"] for n, m in medians.items()])


def hand_made() -> Path: return next(HOME.glob("models/*/model2.onnx"))


if __name__ == "__main__":
    tasks = dict(row=row, ours=ours, memory=memory, bundle=lambda folder: make_bundle(Path(folder)), table=repeat_table)
    if sys.argv[1:2] and sys.argv[1] in tasks: tasks[sys.argv[1]](*sys.argv[2:])
    else: beside(int((sys.argv[1:] or [3])[0]))
