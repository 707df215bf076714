"""Encoders beside scikit-learn's ColumnTransformer, its conversion by skl2onnx, and the limits, in one run; prints the table of bench/README.md.

    python bench/features.py           the joined flights repeated to a million rows: 16 numbers, 5 strings
    python bench/features.py NAME      one contender, in this process: one line of JSON

Every measurement is a process of its own, contenders in turn, the median of three. `fit` is from a table in memory to something that can transform; `transform` from that table to
tensors (scikit-learn's one-hot columns are sparse); one row is from a dict to tensors, in one thread. Ratios travel between machines, absolute figures do not. Run on an idle machine.
"""
import json, os, statistics, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = Path(os.environ.get("MLPROJ_BENCH", HERE.parent/".mlproj/bench"))
DATA = HOME/"data/features.parquet"
NUMBERS = ["dep_minute", "arr_minute", "distance", "dest_lat", "dest_lon", "plane_year", "seats", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
STRINGS = ["carrier", "origin", "dest", "manufacturer", "plane_model"]


def prepare() -> None:
    "The joined flights, repeated and shuffled to a million rows."
    import polars as pl
    from mlproj.examples.flights import dataset
    frame = dataset().frame.select(pl.col(NUMBERS).cast(pl.Float64), *STRINGS)
    DATA.parent.mkdir(parents=True, exist_ok=True)
    pl.concat([frame]*4).sample(1_000_000, shuffle=True, seed=0).write_parquet(DATA)


def as_polars():
    import polars as pl
    return pl.read_parquet(DATA)


def as_pandas():
    "What scikit-learn's users have: object strings, '' for missing."
    import pandas as pd
    frame = pd.read_parquet(DATA)
    frame[STRINGS] = frame[STRINGS].astype(object).where(frame[STRINGS].notna(), "")
    return frame


def session(graph, threads: int):
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


# Each contender takes nothing and gives (the table, fit(table) -> fitted, transform(fitted, table), one_row(fitted) -> function of a dict)

def two_inputs(run, numbers: str, strings: str, dtype):
    "A function of a row for a graph with two inputs."
    import numpy as np
    return lambda r: run.run(None, {numbers: np.array([[r[c] for c in NUMBERS]], dtype), strings: np.array([[r[c] or "" for c in STRINGS]], object)})


def limit_polars():
    "Polars by hand: impute, scale, strings to codes"
    import polars as pl
    def fit(d):
        s = d.select([pl.col(NUMBERS).median().name.suffix("_med"), pl.col(NUMBERS).mean().name.suffix("_mu"), pl.col(NUMBERS).std().name.suffix("_sd")]).to_dicts()[0]
        words = {c: d[c].drop_nulls().unique().sort().to_list() for c in STRINGS}
        return ([((pl.col(c).fill_null(s[c + "_med"]) - s[c + "_mu"])/(s[c + "_sd"] or 1)).cast(pl.Float32) for c in NUMBERS] +
                [pl.col(c).replace_strict(w, list(range(1, len(w) + 1)), default=0, return_dtype=pl.Int32) for c, w in words.items()])
    return as_polars(), fit, lambda fitted, d: d.select(fitted), None


def limit_onnx():
    "ONNX graph by hand, two inputs: impute, scale, strings to codes"
    import numpy as np, polars as pl
    from onnx import TensorProto as T, helper as h, numpy_helper as nh
    def fit(d):
        s = d.select([pl.col(NUMBERS).median().name.suffix("_med"), pl.col(NUMBERS).mean().name.suffix("_mu"), pl.col(NUMBERS).std().name.suffix("_sd")]).to_dicts()[0]
        constant = lambda k: nh.from_array(np.array([[s[c + k] for c in NUMBERS]], np.float32), k)
        nodes = [h.make_node("IsNaN", ["n"], ["nan"]), h.make_node("Where", ["nan", "_med", "n"], ["f"]), h.make_node("Sub", ["f", "_mu"], ["d"]), h.make_node("Div", ["d", "_sd"], ["x"])]
        for i, c in enumerate(STRINGS):
            words = d[c].drop_nulls().unique().sort().to_list()
            nodes += [h.make_node("Gather", ["s", f"i{i}"], [f"s{i}"], axis=1), h.make_node("LabelEncoder", [f"s{i}"], [f"k{i}"], domain="ai.onnx.ml", keys_strings=words,
                                                                                            values_int64s=list(range(1, len(words) + 1)), default_int64=0)]
        nodes.append(h.make_node("Concat", [f"k{i}" for i in range(len(STRINGS))], ["k"], axis=1))
        value = h.make_tensor_value_info
        graph = h.make_graph(nodes, "f", [value("n", T.FLOAT, ["N", len(NUMBERS)]), value("s", T.STRING, ["N", len(STRINGS)])],
                             [value("x", T.FLOAT, ["N", len(NUMBERS)]), value("k", T.INT64, ["N", len(STRINGS)])],
                             [constant(k) for k in ("_med", "_mu", "_sd")] + [nh.from_array(np.array([i]), f"i{i}") for i in range(len(STRINGS))])
        return h.make_model(graph, opset_imports=[h.make_opsetid("", 18), h.make_opsetid("ai.onnx.ml", 4)], ir_version=9)
    def transform(graph, d):
        run = session(graph, 2)
        for b in d.iter_slices(65_536):
            run.run(None, dict(n=np.ascontiguousarray(b.select(pl.col(NUMBERS).cast(pl.Float32).fill_null(float("nan"))).to_numpy()),
                               s=np.stack([b[c].fill_null("").to_numpy().astype(object) for c in STRINGS], 1)))
    return as_polars(), fit, transform, lambda graph: two_inputs(session(graph, 1), "n", "s", np.float32)


def mlproj():
    "mlproj: profile, encoders with clipping and indicators, one graph"
    import numpy as np
    from mlproj.data.contract import infer_contract
    from mlproj.data.profile import Profile
    from mlproj.train.features import encode, features_graph, fit_features, session as one_graph
    def fit(d):
        profile = Profile.of(d)
        contract = infer_contract(profile, "flights", [*NUMBERS, *STRINGS])
        return contract, features_graph(fit_features(profile, contract))
    return as_polars(), fit, lambda fitted, d: encode(fitted[1], fitted[0], d), lambda fitted: two_inputs(one_graph(fitted[1], 1), "numbers", "strings", np.float64)


def columns():
    "scikit-learn's transformer: impute, scale, one-hot."
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    return ColumnTransformer([("num", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), NUMBERS), ("cat", OneHotEncoder(handle_unknown="ignore"), STRINGS)])


def sklearn():
    "scikit-learn ColumnTransformer, pandas"
    import pandas as pd
    def one(fitted):
        def of(r):
            frame = pd.DataFrame([r], columns=NUMBERS + STRINGS)
            frame[NUMBERS] = frame[NUMBERS].astype("float64")
            frame[STRINGS] = frame[STRINGS].astype(object).fillna("")
            return fitted.transform(frame)
        return of
    return as_pandas(), lambda d: columns().fit(d), lambda fitted, d: fitted.transform(d), one


def skl2onnx():
    "the same, converted by skl2onnx, 21 inputs"
    import numpy as np, pandas as pd, polars as pl
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    fit = lambda d: convert_sklearn(columns().fit(d), target_opset=18, initial_types=[(c, FloatTensorType([None, 1])) for c in NUMBERS] + [(c, StringTensorType([None, 1])) for c in STRINGS])
    def transform(graph, d):
        run = session(graph, 2)
        for b in pl.read_parquet(DATA).iter_slices(65_536):
            feeds = {c: b[c].cast(pl.Float32).fill_null(float("nan")).to_numpy().reshape(-1, 1) for c in NUMBERS}
            run.run(None, feeds | {c: b[c].fill_null("").to_numpy().astype(object).reshape(-1, 1) for c in STRINGS})
    def one(graph):
        run = session(graph, 1)
        return lambda r: run.run(None, {c: np.array([[r[c]]], np.float32) for c in NUMBERS} | {c: np.array([[r[c] or ""]], object) for c in STRINGS})
    return as_pandas(), fit, transform, one


CONTENDERS = (limit_polars, mlproj, limit_onnx, skl2onnx, sklearn)


def row_us(one, rows, seconds=1.0) -> float:
    "Median microseconds of one row, over these in turn, after a warm-up."
    for r in rows[:50]: one(r)
    times, end, i = [], time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        r = rows[i % len(rows)]; i += 1
        begun = time.perf_counter_ns(); one(r); times.append(time.perf_counter_ns() - begun)
    return statistics.median(times)/1000


def measure(name: str) -> dict:
    "Rows/s of fit and transform (the best of two and of six: the first warm caches), and microseconds of a row."
    table, fit, transform, one = globals()[name]()
    best = dict(fit=0.0, transform=0.0)
    def timed(what, work):
        begun = time.perf_counter(); done = work(); best[what] = max(best[what], len(table)/(time.perf_counter() - begun))
        return done
    for _ in range(2):
        fitted = timed("fit", lambda: fit(table))
        for _ in range(3): timed("transform", lambda: transform(fitted, table))
    rows = as_polars().head(1000).to_dicts()
    return best | (dict(row_us=row_us(one(fitted), rows)) if one else {})


def run() -> None:
    found = {c.__name__: [] for c in CONTENDERS}
    for turn in range(3):
        for name in found:
            print(f"{name} {turn + 1}   ", end="\r", file=sys.stderr)
            done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, env=os.environ | dict(PYTHONWARNINGS="ignore"))
            if done.returncode: raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    middle = {name: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for name, runs in found.items()}
    against = lambda name, k: f"{middle[name][k]/middle['sklearn'][k]:.1f}×"
    print("| features | fit rows/s | against scikit-learn | transform rows/s | against scikit-learn | one row, µs | against the graph by hand |\n|" + " --- |"*7)
    for contender in CONTENDERS:
        name, m = contender.__name__, middle[contender.__name__]
        row = (f"{m['row_us']:,.1f} | {m['row_us']/middle['limit_onnx']['row_us']:.2f}×" if "row_us" in m else " | ")
        print(f"| {contender.__doc__}{' (limit)' if name.startswith('limit') else ''} | {m['fit']:,.0f} | {against(name, 'fit')} | {m['transform']:,.0f} | {against(name, 'transform')} | {row} |")


if __name__ == "__main__":
    if not DATA.exists(): prepare()
    if sys.argv[1:]: print(json.dumps(measure(sys.argv[1])))
    else: run()
