"The page of a bundle in a real browser: it predicts what Python predicts, shows what it should, and asks no other host."
import importlib
import json
import math
import queue
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
from bundles import by_hand, small_bundle, small_graph
from onnx import TensorProto
from onnx import helper as oh
from onnx import numpy_helper

from mlproj.data.contract import Column, Contract, RequestReader, RowRule, pack
from mlproj.data.profile import Profile
from mlproj.data.task import Task
from mlproj.project import ContractError, MlprojError, RegistryError
from mlproj.serve import web
from mlproj.serve.bundle import Bundle, write_bundle

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OURS = ("index.html", "page.css", "page.js", "predict.js")


@pytest.fixture(scope="session")
def assets():
    "onnxruntime-web, from the cache or from npm."
    if not BROWSER: pytest.skip("no Chromium is installed")
    if not all((web.cache()/name).is_file() for name in web.ORT_FILES) and not shutil.which("npm"): pytest.skip("onnxruntime-web is not cached, and npm is not installed")
    web.runtime()
    return web.cache()


class Site:
    "The folder on loopback, and pages of the test beside it; `reports` gets what they post, `asked` the paths that were asked for."
    def __init__(self, folder, pages: dict[str, str]):
        site, self.reports, self.asked = self, queue.Queue(), []

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args): super().__init__(*args, directory=str(folder))
            def log_message(self, *_): site.asked.append(self.path)
            def do_GET(self):
                if self.path not in pages: return super().do_GET()
                body = pages[self.path].encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json" if self.path.endswith(".json") else "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            def do_POST(self):
                site.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def chromium(url, home, *options):
    "A headless browser that has opened the address."
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking", "--disable-component-update",
               "--disable-extensions", "--remote-debugging-port=0", f"--user-data-dir={home}", *options, url]
    with open(home.parent/"chromium.log", "w") as log: process = subprocess.Popen(command, stdout=log, stderr=log)
    try: yield
    finally:
        process.terminate()
        process.wait(20)


def in_browser(folder, home, script: str, *options, **data):
    "What `script`, the body of an async function, returns in a page beside the folder's; `data` are its constants. Also the paths that were asked for, and the port."
    constants = "".join(f'const {name} = await (await fetch("/{name}.json")).json();\n' for name in data)
    page = ("<!doctype html><meta charset=utf-8><script type=module>\n"
            "const post = value => fetch('/report', {method: 'POST', body: JSON.stringify(value)});\n"
            f"try {{ post(await (async () => {{\n{constants}{script}\n}})()); }} catch (error) {{ post({{error: String(error?.stack ?? error)}}); }}\n</script>")
    site = Site(folder, {"/test.html": page} | {f"/{name}.json": json.dumps(value) for name, value in data.items()})
    try:
        with chromium(f"http://127.0.0.1:{site.port}/test.html", home/"profile", *options): found = site.reports.get(timeout=90)
    finally: site.server.shutdown()
    assert not (isinstance(found, dict) and "error" in found), found["error"]
    return found, site


def as_json(frame: pl.DataFrame) -> list[dict]:
    "The rows as a caller would send them."
    plain = lambda v: None if isinstance(v, float) and math.isnan(v) else v.isoformat() if hasattr(v, "isoformat") else v
    return [{name: plain(v) for name, v in row.items()} for row in frame.to_dicts()]


def numbers_of(answers, task: Task) -> np.ndarray:
    "The graph's output as it stands in answers."
    if task.kind == "binary": return np.array([a["probability"] for a in answers])
    if task.kind == "multiclass": return np.array([[a["probabilities"][c] for c in task.classes] for a in answers])
    return np.array([[a["quantiles"][f"{q:g}"] for q in task.quantiles] if task.quantiles else a["prediction"] for a in answers])


# ---- a bundle with every kind of column, and words that are hard to carry

WORDS = ("EWR", "Zürich ✈", "it's \"so\"", "x"*200, "日本", " ")
TASKS = {"binary": Task("binary", "late", threshold=0.4), "multiclass": Task("multiclass", "cut", classes=("Fair", "Göod", "__proto__")),
         "regression": Task("regression", "price", unit="US dollars", mean=100, scale=20), "quantiles": Task("regression", "price", quantiles=(0.1, 0.5, 0.9), mean=100, scale=20)}


def kinds_bundle(folder, task: Task) -> Bundle:
    "A linear graph over a column of each kind."
    columns = [Column("hour", "integer", unit="h", nullable=True, min=0, max=23, example=12), Column("temp °F", "number", nullable=True, min=-10, max=110.5, example=57.25),
               Column("rush", "boolean", nullable=True, example=True), Column("weight", "number", min=0, example=1.5, severity=dict(min="refuse")),
               Column("origin", "string", nullable=True, values=WORDS, example="EWR"), Column("code", "string", pattern=r"[A-Z]\-[0-9]+|é.*", example="A-1"),
               Column("at", "time", nullable=True, example="2013-07-01T10:15:00Z"), Column("face", "vector", length=3, nullable=True, example=0.25)]
    rules = (RowRule("weight*weight >= 0 and hour != 13", "warn"), RowRule("origin not in ('LGA', 'no') or rush", "warn"), RowRule("0 <= -(weight - 50) or code == 'A-1'"))
    contract = Contract("kinds", {c.name: c for c in columns}, tuple(c.name for c in columns), rows=rules)
    rng, k, width = np.random.default_rng(0), contract.number_width, task.width or 1
    scale = np.array([0.1, 0.01, 1, 0.1, 1e-9, 1, 1, 1])[:, None]
    const = lambda name, value, dtype: numpy_helper.from_array(np.asarray(value, dtype), name)
    init = [const("fill", rng.normal(size=k), np.float64), const("w", rng.normal(size=(k, width))*scale, np.float64), const("shift", rng.normal(size=width), np.float32),
            const("cuts", [1, 1], np.int64), const("table", rng.normal(size=(len(WORDS) + 2, width)), np.float32), const("one", [1], np.int64)]
    if task.width is None: init.append(const("flat", [-1], np.int64))
    nodes = [oh.make_node("IsNaN", ["numbers"], ["absent"]), oh.make_node("Where", ["absent", "fill", "numbers"], ["filled"]), oh.make_node("MatMul", ["filled", "w"], ["z64"]),
             oh.make_node("Cast", ["z64"], ["z32"], to=TensorProto.FLOAT), oh.make_node("Split", ["strings", "cuts"], ["s0", "s1"], axis=1),
             oh.make_node("LabelEncoder", ["s0"], ["c0"], domain="ai.onnx.ml", keys_strings=[*WORDS, ""], values_int64s=list(range(1, len(WORDS) + 2)), default_int64=0),
             oh.make_node("Gather", ["table", "c0"], ["e0"]), oh.make_node("Squeeze", ["e0", "one"], ["e1"]), oh.make_node("Sum", ["z32", "e1", "shift"], ["z"])]
    last = {"binary": [oh.make_node("Sigmoid", ["z"], ["p"]), oh.make_node("Reshape", ["p", "flat"], ["probability"])], "multiclass": [oh.make_node("Softmax", ["z"], ["probability"], axis=1)],
            "regression": [oh.make_node("Identity", ["z"], ["value"])] if task.quantiles else [oh.make_node("Reshape", ["z", "flat"], ["value"])]}
    value = oh.make_tensor_value_info
    graph = oh.make_graph(nodes + last[task.kind], "kinds", [value("numbers", TensorProto.DOUBLE, ["rows", k]), value("strings", TensorProto.STRING, ["rows", 2])],
                          [value(task.output, TensorProto.FLOAT, task.shape)], init)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20), oh.make_opsetid("ai.onnx.ml", 4)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    rows = pl.DataFrame({"hour": pl.Series([0, None, 23, -5, 2**53, 7]*2, dtype=pl.Int64), "temp °F": [None, float("nan"), 1e9, -1e9, 57.25, 1e-300]*2, "rush": [True, False, None]*4,
                         "weight": [0.0, 1.5, 50.0]*4, "origin": [*WORDS, "", None, "unseen", "ewr", "EWR ", "ab́c"], "code": ["A-1", "", "é\r", "é\n", "nothing", "😀"]*2,
                         "at": pl.Series([datetime(2013, 1, 1, 5, 0, 0, 123_457, UTC), datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), None, datetime(1, 1, 1, tzinfo=UTC),
                                          datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC), datetime(2024, 2, 29, tzinfo=UTC)]*2, dtype=pl.Datetime("us", "UTC")),
                         "face": pl.Series([[0.1, -2, 3], None, [1e9, 0, -1e9]]*4, dtype=pl.Array(pl.Float64, 3))})
    facts = dict(name=contract.name, run="run-1", created="2026-01-01T00:00:00Z", task=asdict(task), metrics={}, baseline={}, lineage={}, parity={})
    # the oracle of the browser is onnxruntime in Python; of that one, other tests have their own
    numbers, strings = pack(contract, rows)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, dict(numbers=numbers, strings=strings))[0]
    golden = rows.with_columns(prediction=pl.Series(list(found), dtype=pl.Float32 if task.width is None else pl.Array(pl.Float32, task.width)))
    return Bundle.open(write_bundle(folder, model.SerializeToString(), contract, Profile.of(rows), golden, facts))


# ---- predictions

PREDICT = "const { open } = await import('/predict.js'); const model = await open(); return await model.predict(rows);"


def agree(bundle: Bundle, folder, home) -> float:
    "The largest difference between browser and Python on the golden rows, and that it is within the budget."
    golden = bundle.golden
    answers, _ = in_browser(folder, home, PREDICT, rows=as_json(golden.select(bundle.contract.features)))
    found, wanted = numbers_of(answers, bundle.task), bundle.predict_frame(golden).astype(np.float64)
    assert found.shape == wanted.shape
    difference = np.abs(found - wanted)
    assert (difference <= 1e-5 + 1e-5*np.abs(wanted)).all(), difference.max()
    for answer, row in zip(answers, bundle.predict_frame(golden)):
        prediction = bundle.task.answer(row)["prediction"]
        assert answer["prediction"] == (pytest.approx(prediction, rel=1e-5) if bundle.task.kind == "regression" else prediction)
    return difference.max()


@pytest.mark.parametrize("kind", TASKS)
def test_the_browser_predicts_what_python_predicts(kind, tmp_path, assets):
    bundle = kinds_bundle(tmp_path/"bundle", TASKS[kind])
    agree(bundle, web.export_web(bundle, tmp_path/"web", assets), tmp_path)


@pytest.mark.parametrize("numbers, strings", [(2, 0), (0, 2)])
def test_a_graph_without_an_input_works(numbers, strings, tmp_path, assets):
    bundle = Bundle.open(small_bundle(tmp_path/"bundle", numbers=numbers, strings=strings))
    agree(bundle, web.export_web(bundle, tmp_path/"web", assets), tmp_path)


def test_no_rows_give_no_answers(tmp_path, assets):
    web.export_web(Bundle.open(small_bundle(tmp_path/"bundle")), tmp_path/"web", assets)
    assert in_browser(tmp_path/"web", tmp_path, PREDICT, rows=[])[0] == []


def trained_bundle(folder, make, task: Task, **config) -> Bundle:
    "A model trained on a table with a column of every kind, with the encoders that the package chooses, packaged."
    from mlproj.data.contract import infer_contract
    from mlproj.train.export import golden_rows, join
    from mlproj.train.features import Tensors, encode, features_graph, fit_features
    rng, n = np.random.default_rng(0), 1500
    frame = pl.DataFrame({"hour": rng.integers(0, 24, n), "temp": rng.normal(60, 15, n), "income": rng.lognormal(10, 2, n), "rush": rng.random(n) < 0.5, "origin": rng.choice(["EWR", "JFK", "Zürich"], n),
                          "at": pl.Series(rng.integers(1_356_998_400, 1_388_534_400, n)*1_000_000).cast(pl.Datetime("us", "UTC")), "face": pl.Series(rng.normal(size=(n, 3)), dtype=pl.Array(pl.Float64, 3)),
                          "words": [" ".join(rng.choice(["late", "Snow", "early", "été", "again", "never"], rng.integers(1, 6))) for _ in range(n)]})
    frame = frame.with_columns(temp=pl.when(pl.int_range(n) % 9 == 0).then(None).otherwise("temp"), origin=pl.when(pl.int_range(n) % 11 == 0).then(None).otherwise("origin"))
    profile = Profile.of(frame)
    contract = infer_contract(profile, "trained", frame.columns)
    features = fit_features(profile, contract)
    z = (frame["hour"].to_numpy() - 12)/6 + frame["rush"].to_numpy() + frame["words"].str.contains("Snow").to_numpy() + rng.normal(0, 0.5, n)
    y = {"binary": (z > 1).astype(np.float32), "multiclass": np.digitize(z, [0, 1.5]), "regression": (100 + 20*z).astype(np.float32)}[task.kind]
    encoders = features_graph(features)
    model = make(features, task, **config)
    if hasattr(model, "fit"): model.fit(Tensors(*encode(encoders, contract, frame), y))  # a network predicts as well untrained
    whole, golden = join(encoders, model.graph(), task), golden_rows(frame, contract, 300)
    found = onnxruntime.InferenceSession(whole.SerializeToString()).run(None, dict(zip(("numbers", "strings"), pack(contract, golden))))[0]
    golden = golden.with_columns(prediction=pl.Series(list(found), dtype=pl.Float32 if task.width is None else pl.Array(pl.Float32, task.width)))
    facts = dict(name="trained", run="run-1", created="2026-01-01T00:00:00Z", task=asdict(task), metrics={}, baseline={}, lineage={}, parity={})
    return Bundle.open(write_bundle(folder, whole.SerializeToString(), contract, profile, golden, facts))


MODELS = {"linear": ("baseline", "Linear", "binary", {}), "lightgbm": ("trees", "LightGBM", "multiclass", dict(rounds=20)), "xgboost": ("trees", "XGBoost", "regression", dict(rounds=20)),
          "network": ("network", "TabularMLP", "quantiles", {}), "tabm": ("tabm", "TabM", "binary", {})}


@pytest.mark.parametrize("name", MODELS)
def test_trained_models_predict_in_the_browser_what_they_predict_in_python(name, tmp_path, assets):
    module, cls, task, config = MODELS[name]
    task = replace(TASKS[task], classes=("a", "b", "c")) if task == "multiclass" else TASKS[task]
    bundle = trained_bundle(tmp_path/"bundle", getattr(importlib.import_module(f"mlproj.train.{module}"), cls), task, **config)
    agree(bundle, web.export_web(bundle, tmp_path/"web", assets), tmp_path)


# ---- rules

GOOD = {"hour": 12, "temp °F": 57.25, "rush": True, "weight": 1.5, "origin": "EWR", "code": "A-1", "at": "2013-07-01T10:15:00Z", "face": [0.25, 0.25, 0.25]}
TIMES = ["2013-02-28T23:59:59.123456789+05:30", "2013-02-30T00:00:00Z", "2013-01-01T24:00:00Z", "2013-01-01T10:15:00", "2013-01-01T10:15Z", "2013-01-01", "2013-01-01 10:15:00z", "2013-01-01t10:15:00Z",
         "2013-01-01T10:15:60Z", "2013-01-01T10:15:00+0530", "2013-01-01T10:15:00-24:00", "2013-01-01T10:15:00+23:59", "2013-1-1T10:15:00Z", "2013-13-01T10:15:00Z", "2013-01-01T10:15:00.Z",
         "2013-01-01T10:15:00.5+00", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "2000-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "", " 2013-01-01T10:15:00Z", 5, "2013-01-01T10:15:00,5Z", "2013-01-01T10:60:00Z",
         "2013-01-01T10:15:00-00:00", "+02013-01-01T10:15:00Z", "2013-01-01T10:15:00+05:60"]
CHANGES = [{}, {"hour": 24}, {"hour": -1}, {"hour": 1.5}, {"hour": "12"}, {"hour": True}, {"hour": 2**53}, {"hour": 2**53 + 2}, {"hour": None}, {"temp °F": 110.5}, {"temp °F": 111}, {"temp °F": 7},
           {"rush": 1}, {"rush": None}, {"rush": "true"}, {"weight": None}, {"weight": -1}, {"origin": "unseen"}, {"origin": None}, {"origin": ""}, {"origin": 5}, {"code": "A-"}, {"code": "xA-1"},
           {"code": "A-1\n"}, {"code": "é\r\u2028"}, {"code": "é\n"}, {"code": None}, {"more": 1}, {"hour": [1]}, {"code": {}}, {"toString": 1},
           {"hour": 13}, {"hour": None, "rush": None}, {"origin": "LGA", "rush": False}, {"origin": "LGA", "rush": None}, {"origin": "LGA"}, {"weight": 1e300}, {"weight": 1e300, "code": "é"}, {"weight": 50, "code": "é"},
           {"weight": 50.5, "code": "é"}, {"at": None}, {"face": None}, {"face": [1, 2]}, {"face": [1, 2, None]}, {"face": []}, {"face": [1, 2, 3, 4]}, {"face": "1,2,3"}, {"face": [1, 2, True]}, {"face": [1, 2, 3]},
           *({"at": t} for t in TIMES)]


def verdict(reader: RequestReader, row: dict):
    "The fields that Python warns of, or the one that it refuses."
    try: _, _, warnings = reader.read(json.dumps(row).encode())
    except ContractError as error: return ["refuse", error.where.removeprefix("field ").strip("'")]
    return sorted([w["field"], w["rule"] if "match" not in w["rule"] else "pattern"] for w in warnings)


def test_the_browser_warns_and_refuses_as_the_service_does(tmp_path, assets):
    bundle = kinds_bundle(tmp_path/"bundle", TASKS["binary"])
    web.export_web(bundle, tmp_path/"web", assets)
    rows = [GOOD | change for change in CHANGES] + [{k: v for k, v in GOOD.items() if k != "hour"}]
    script = """const { open } = await import('/predict.js'); const model = await open(), found = [];
    for (const row of rows) {
      try { found.push((await model.predict([row]))[0].warnings.map(w => [w.field, w.rule.includes("match") ? "pattern" : w.rule])); }
      catch (error) { found.push(["refuse", error.field]); }
    }
    return found;"""
    found, _ = in_browser(tmp_path/"web", tmp_path, script, rows=rows)
    found, wanted = [f if f[:1] == ["refuse"] else sorted(f) for f in found], [verdict(RequestReader(bundle.contract), row) for row in rows]
    assert [(r, f) for r, f, w in zip(rows, found, wanted) if f != w] == []
    assert sum(w[:1] == ["refuse"] for w in wanted) > 20 and sum(not w for w in wanted) > 8 and sum(bool(w) and w[0] != "refuse" for w in wanted) > 8


def test_times_are_the_same_numbers(tmp_path, assets):
    bundle = kinds_bundle(tmp_path/"bundle", TASKS["binary"])
    web.export_web(bundle, tmp_path/"web", assets)
    reader, place, rows = RequestReader(bundle.contract), bundle.contract.number_slices["at"].start, []
    for row in (GOOD | {"at": t} for t in TIMES):
        try: rows.append((row["at"], reader.read(json.dumps(row).encode())[0][0, place]))
        except ContractError: pass
    assert len(rows) > 5
    found, _ = in_browser(tmp_path/"web", tmp_path, "const { seconds } = await import('/predict.js'); return rows.map(([text]) => seconds(text));", rows=rows)
    assert found == [wanted for _, wanted in rows]


def test_text_that_the_browser_would_change_is_refused(tmp_path, assets):
    web.export_web(kinds_bundle(tmp_path/"bundle", TASKS["binary"]), tmp_path/"web", assets)
    script = """const { open } = await import('/predict.js'); const model = await open(), found = [];
    for (const origin of ["EWR\\0", "\\ud83d", "\\ud83d\\ude00"]) found.push(model.check({ ...row, origin }).map(p => p.severity));
    return found;"""
    assert in_browser(tmp_path/"web", tmp_path, script, row=GOOD)[0] == [["refuse"], ["refuse"], ["warn"]]


PATTERNS = [(r"[A-Z]{2}[0-9]+", ["UA1", "U1", "UA", "xUA1", "UA1\n"]), (r"a.b", ["a\rb", "a\nb", "a\u2028b", "a😀b"]), (r"\-\ \/[\-.\]]]", ["- /-]", "- /.]", "- /x]"]),
            (r"(?P<part>x|\x41)\a?", ["x", "A\a", "B"]), (r"(?:é|\u00e8)+?}", ["é}", "èé}", "e}"]), (r"[^a.]{2,3}", ["bc", "b.", "bcd", "bcde"])]


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_patterns_mean_the_same_in_javascript():
    cases = [(web.js_pattern(pattern), text, bool(re.fullmatch(pattern, text))) for pattern, texts in PATTERNS for text in texts]
    script = "console.log(JSON.stringify(JSON.parse(process.argv[1]).map(([p, t]) => new RegExp(`^(?:${p})$`, 'u').test(t))))"
    done = subprocess.run(["node", "-e", script, json.dumps(cases)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [(c, f) for c, f in zip(cases, json.loads(done.stdout)) if c[2] != f] == []


# ---- the page

PAGE = """const frame = document.createElement("iframe"); frame.src = "/index.html"; document.body.append(frame);
const wait = async (test, what) => { for (let i = 0; i < 400; i++) { if (test()) return; await new Promise(r => setTimeout(r, 50)); } throw new Error(`waited for ${what}: ${text("#panel")}`); };
const one = selector => frame.contentDocument.querySelector(selector), text = selector => one(selector)?.innerText;
const field = name => [...frame.contentDocument.querySelectorAll(".field")].find(f => f.querySelector("label").firstChild.data === name).querySelector("input, select");
const put = (name, value) => { const f = field(name); f.value = value; f.dispatchEvent(new frame.contentWindow.Event("input", { bubbles: true })); };
const row = () => JSON.parse(one("#json").textContent);
await wait(() => one("#json")?.textContent, "a first answer");
"""


def test_the_page_starts_with_the_example_and_predicts_on_every_change(tmp_path, assets):
    bundle = kinds_bundle(tmp_path/"bundle", TASKS["binary"])
    web.export_web(bundle, tmp_path/"web", assets)
    script = PAGE + """const found = { first: row() };
    put("hour", "23"); put("temp °F", ""); put("rush", "false"); put("origin", "unseen");
    await wait(() => row().answer?.warnings.length, "a warning"); found.second = row(); found.said = text("#warnings");
    put("weight", ""); await wait(() => !row().answer, "a refusal"); found.refused = text("#answer"); found.invalid = field("weight").getAttribute("aria-invalid");
    found.refusedSweep = text("#sweep");
    one("#reset").click(); await wait(() => row().answer, "the example again"); found.third = row();
    found.unlabelled = [...frame.contentDocument.querySelectorAll("#fields :is(input:not([type=range]), select)")].filter(e => !e.labels.length).length;
    await wait(() => one("#sweep polyline"), "the curve"); found.curve = text("#sweep");
    field("origin").dispatchEvent(new frame.contentWindow.FocusEvent("focusin", { bubbles: true }));
    await wait(() => text("#sweep").includes("origin"), "the bars"); found.bars = text("#sweep");
    found.text = frame.contentDocument.body.innerText; return found;"""
    found, _ = in_browser(tmp_path/"web", tmp_path, script)
    predict = lambda row: bundle.predict_frame(pl.DataFrame([row | {"at": datetime.fromisoformat(row["at"])}], schema=dict(hour=pl.Int64, **{"temp °F": pl.Float64}, rush=pl.Boolean, weight=pl.Float64, origin=pl.String, code=pl.String,
                                                                                 at=pl.Datetime("us", "UTC"), face=pl.List(pl.Float64))))[0]
    assert found["first"]["row"] == GOOD and found["first"]["answer"]["probability"] == pytest.approx(predict(GOOD), abs=1e-6)
    changed = GOOD | {"hour": 23, "temp °F": None, "rush": False, "origin": "unseen"}
    assert found["second"]["row"] == changed and found["second"]["answer"]["probability"] == pytest.approx(predict(changed), abs=1e-6)
    assert found["said"] == "origin is none of the values known"
    assert "No prediction" in found["refused"] and found["invalid"] == "true"
    assert found["third"] == found["first"] and found["unlabelled"] == 0
    assert "As hour changes" in found["curve"] and "As origin changes" in found["bars"] and not found["refusedSweep"].strip()
    for hour in (0, 23): assert f"{100*predict(GOOD | {'hour': hour}):.1f} %" in found["curve"]  # the graph is monotonous in it
    for word in WORDS: assert f"{100*predict(GOOD | {'origin': word}):.1f} %" in found["bars"]
    assert "2026-01-01" in found["text"] and bundle.digest[:12] in found["text"] and f"{100*predict(GOOD):.1f} %" in found["text"]


@pytest.mark.parametrize("kind", ["multiclass", "regression", "quantiles"])
def test_the_page_shows_the_answer_of_each_task(kind, tmp_path, assets):
    bundle = kinds_bundle(tmp_path/"bundle", TASKS[kind])
    web.export_web(bundle, tmp_path/"web", assets)
    found, _ = in_browser(tmp_path/"web", tmp_path, PAGE + "return { ...row(), text: text('#answer') };")
    answer = found["answer"]
    percent = lambda p: "< 0.1 %" if p < 0.001 else f"{100*p:.1f} %"
    if kind == "multiclass": assert all(re.search(rf"{c}\s+{percent(p)}", found["text"]) for c, p in answer["probabilities"].items())
    else: assert f"{answer['prediction']:.5g}" in found["text"]
    if kind == "quantiles": assert "80 % between" in found["text"]


def test_the_page_asks_no_other_host_and_may_not(tmp_path, assets):
    web.export_web(Bundle.open(small_bundle(tmp_path/"bundle")), tmp_path/"web", assets)
    script = PAGE + """const blocked = []; frame.contentDocument.addEventListener("securitypolicyviolation", e => blocked.push(e.violatedDirective));
    const asked = frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name), clean = blocked.length;
    const other = `http://localhost:${location.port}/elsewhere`, image = frame.contentDocument.createElement("img");
    const fetched = await frame.contentWindow.fetch(other).then(() => true, () => false);
    image.src = other; frame.contentDocument.body.append(image); await wait(() => blocked.length > 1, "the policy");
    return { asked, fetched, blocked, clean };"""
    found, site = in_browser(tmp_path/"web", tmp_path, script)
    assert found["clean"] == 0 and len(found["asked"]) >= 8
    assert [url for url in found["asked"] if not url.startswith(f"http://127.0.0.1:{site.port}/")] == []
    assert not found["fetched"] and sorted(found["blocked"]) == ["connect-src", "img-src"] and "/elsewhere" not in site.asked
    for name in OURS:  # the namespace of SVG is a name, and nothing is loaded from there
        assert not re.search(r"https?://|[\"'(]//", (tmp_path/"web"/name).read_text().replace("http://www.w3.org/2000/svg", "")), name


# ---- the folder

def test_an_export_overwrites_nothing_and_leaves_nothing_behind(tmp_path, assets):
    bundle = Bundle.open(small_bundle(tmp_path/"bundle"))
    (tmp_path/"web").mkdir()
    web.export_web(bundle, tmp_path/"web", assets)  # an empty folder is fine
    before = {p.name: p.read_bytes() for p in (tmp_path/"web").iterdir()}
    with pytest.raises(RegistryError, match="exists already"): web.export_web(bundle, tmp_path/"web", assets)
    assert {p.name: p.read_bytes() for p in (tmp_path/"web").iterdir()} == before
    assert (tmp_path/"web"/"model.onnx").read_bytes() == (bundle.path/"model.onnx").read_bytes()
    with pytest.raises(MlprojError, match="cannot be read"): web.export_web(bundle, tmp_path/"new", tmp_path/"nothing")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "web"]


def test_without_npm_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MlprojError, match="npm is not installed.*npm pack onnxruntime-web@"): web.runtime()


def test_an_npm_that_fails_is_quoted(tmp_path, monkeypatch):
    (tmp_path/"npm").write_text("#!/bin/sh\necho 'npm error network unreachable' >&2\nexit 1\n")
    (tmp_path/"npm").chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(MlprojError, match="network unreachable.*assets"): web.runtime()


def test_a_name_cannot_break_out_of_the_page(tmp_path, assets):
    bundle = Bundle.open(small_bundle(tmp_path/"bundle", name="<script>alert(1)</script>"))
    web.export_web(bundle, tmp_path/"web", assets)
    assert "<script>alert" not in (tmp_path/"web"/"index.html").read_text()


@pytest.mark.parametrize("task", [Task("multiclass", "<i>cut</i>", ("10", "2", "__proto__")), Task("regression", "<u>price</u>", quantiles=(0.00001, 0.1234567, 0.9), unit="<b>$</b>")])
def test_hostile_names_and_texts_stay_texts_and_answers_have_the_names_of_the_service(task, tmp_path, assets):
    columns = [Column("<img src=x onerror=alert(1)>", "integer", unit="<b>u</b>", description="<script>alert(2)</script>", min=0, max=10, example=3), Column("__proto__", "number", nullable=True, example=0.1),
               Column("constructor", "string", values=("<svg onload=alert(3)>", "EWR"), description="</label><b>x</b>", example="EWR"), Column("toString", "string", nullable=True, example="JFK")]
    rules = (RowRule("__proto__ > 0", "warn"), RowRule("constructor < toString", "warn"))
    contract = Contract("</title><script>alert(4)</script>", {c.name: c for c in columns}, tuple(c.name for c in columns), rows=rules)
    rows = pl.DataFrame({columns[0].name: [1, 2, 9, 9, 9], "__proto__": [0.5, None, -2.0, 1, 1], "constructor": ["EWR", "\uffee", "\U0001f600", "\uffee", "a"], "toString": ["JFK", None, "\uffee", "\U0001f600", "a"]})
    facts = dict(name=contract.name, run="<b>run</b>", created="<b>2026</b>", task=asdict(task), metrics={}, baseline={}, lineage={}, parity={})
    golden = rows.with_columns(prediction=pl.Series(list(by_hand(contract, rows, task=task)), dtype=pl.Array(pl.Float32, 3)))
    bundle = Bundle.open(write_bundle(tmp_path/"bundle", small_graph(2, 2, task=task), contract, Profile.of(rows), golden, facts))
    script = """const { open } = await import('/predict.js'), answers = await (await open()).predict(rows), frame = document.createElement('iframe');
    frame.src = '/index.html'; document.body.append(frame);
    for (let i = 0; i < 300 && !frame.contentDocument?.querySelector('.big'); i++) await new Promise(done => setTimeout(done, 100));
    const page = frame.contentDocument, odd = page.querySelectorAll('b, i, u, img, script:not([src]), svg[onload]');
    return { answers, odd: [...odd].map(e => e.outerHTML), text: page.body.innerText, title: page.title };"""
    found, _ = in_browser(web.export_web(bundle, tmp_path/"web", assets), tmp_path, script, rows=as_json(rows))
    assert not found["odd"] and found["title"] == contract.name and all(text in found["text"] for text in ("<img src=x onerror=alert(1)> <b>u</b>", "<script>alert(2)</script>", "</label><b>x</b>", task.label, "<b>run</b>"))
    reader, names = RequestReader(contract), "probabilities" if task.classes else "quantiles"
    for answer, row, y in zip(found["answers"], as_json(rows), bundle.predict_frame(rows)):
        wanted = task.answer(y)
        assert answer[names] == pytest.approx(wanted[names], rel=1e-5) and answer["prediction"] == (wanted["prediction"] if task.classes else pytest.approx(wanted["prediction"], rel=1e-5))
        assert answer["warnings"] == reader.read(json.dumps(row).encode())[2]


def test_the_caller_in_the_readme_of_an_onnx_export_predicts_the_example(tmp_path):
    bundle = kinds_bundle(tmp_path/"bundle", TASKS["multiclass"])
    web.export_onnx(bundle, tmp_path/"onnx")
    code = re.search(r"```python\n(.*?)```", (tmp_path/"onnx"/"README.md").read_text(), re.S)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path/"onnx", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.array([float(v) for v in re.findall(r"[\d.e-]+", done.stdout)])
    wanted = bundle.predict_frame(pl.DataFrame([GOOD | {"at": datetime.fromisoformat(GOOD["at"])}]))[0]
    assert found == pytest.approx(wanted, rel=1e-5)
