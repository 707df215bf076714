"""The service as a real process, through plain `bentoml serve` in the repository root."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
from bundles import ROOT, TASKS, Server, environment, key_pair, refused, small_bundle, small_contract, small_graph, small_rows

from mlproj.data.contract import Column, Contract, pack
from mlproj.data.profile import Profile
from mlproj.data.task import Task
from mlproj.project import MlprojError
from mlproj.serve.answer import Endpoint, openapi, records, served
from mlproj.serve.bundle import Bundle, sign_bundle, write_bundle
from mlproj.serve.registry import Registry

ELSEWHERE = "polars _polars_runtime_32 torch lightning pytorch_lightning wandb hydra onnx sklearn deltalake pandas narwhals".split()
ROW = dict(n0=5, n1=1.5, s0="JFK", s1="LGA")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    registry = Registry(home/"bentoml")
    registry.promote(registry.add(small_bundle(home/"bundle")))
    return home/"bentoml"


@pytest.fixture(scope="module")
def bundle(home): return Bundle.open(Registry(home).resolve().path)


@pytest.fixture(scope="module")
def server(home):
    with Server(home) as server: yield server


def test_probes_and_pages(server):
    for path in ("/healthz", "/livez", "/readyz", "/metrics", "/docs.json", "/schema.json"): assert server.client.get(path).status_code == 200, path
    page = server.client.get("/")
    assert page.status_code == 200 and "swagger" in page.text
    for source in re.findall(r'(?:src|href)="\./(static_content/[^"]+)"', page.text): assert server.client.get("/" + source).status_code == 200, source
    assert "default-src 'self'" in page.headers["content-security-policy"]  # the page's tracker is not loaded


def test_http_predicts_what_the_bundle_predicts(server, home, bundle):
    rows = bundle.golden.drop("prediction")
    answers = [server.predict(row) for row in rows.to_dicts()]
    assert {a.status_code for a in answers} == {200}
    found = np.array([a.json()["probability"] for a in answers], np.float32)
    np.testing.assert_array_equal(found, bundle.predict_frame(rows))
    np.testing.assert_allclose(found, bundle.golden["prediction"], atol=1e-6)
    assert [a.json()["prediction"] for a in answers] == (found >= np.float32(0.4)).tolist()
    answer = answers[0].json()
    assert answer["model"] == Registry(home).resolve().tag and answer["warnings"] == []
    assert len({a.json()["request_id"] for a in answers}) == len(answers)


@pytest.mark.parametrize("task", TASKS)
def test_together_and_alone_a_record_is_predicted_the_same(tmp_path, task):
    opened = Bundle.open(small_bundle(tmp_path/"b", task=TASKS[task], int8=True))
    endpoint, rows = Endpoint(opened, "m:v1"), small_rows(opened.contract, 64, seed=5)
    values = [endpoint.reader.values(json.dumps(row).encode()) for row in records(opened.contract, rows)]
    alone = np.concatenate([endpoint.predict([v]) for v in values])
    for n in (2, 3, 16, 64): np.testing.assert_allclose(endpoint.predict(values[:n]), alone[:n], rtol=1e-6, atol=1e-6)


def test_the_rehearsal_of_packaging_answers_as_http_does(server, bundle):
    rows = pl.concat([bundle.golden.drop("prediction"), pl.DataFrame(dict(n0=[99, 3, 3, 3, None], n1=[-1e308, np.inf, np.nan, 1e30, 1.0], s0=["JFK", "JFK", "JFK", "SWF", "JFK"], s1=["é\0", "", None, "JFK", "SWF"]))])
    answers = [server.post(json.dumps(row).encode()) for row in records(bundle.contract, rows)]
    found, refused = served(bundle, rows)
    assert refused.tolist() == [a.status_code != 200 for a in answers] == [False]*40 + [False, True, False, True, True]
    np.testing.assert_array_equal(found[~refused], np.array([a.json()["probability"] for a in answers if a.status_code == 200], np.float32))
    assert np.isnan(found[refused]).all()


@pytest.mark.parametrize("task", TASKS)
def test_answers_and_their_schema_follow_the_task(tmp_path, task):
    opened = Bundle.open(small_bundle(tmp_path/"b", task=TASKS[task], int8=True))
    rows = small_rows(opened.contract, 60, seed=5)
    found, refused = served(opened, rows)
    assert not refused.any()
    np.testing.assert_array_equal(found, opened.predict_frame(rows))
    status, body = Endpoint(opened, "m:v1").answer(json.dumps(ROW).encode(), "r1")
    answer, schema = json.loads(body), openapi(opened.contract, opened.task, "m:v1")["components"]["schemas"]["Prediction"]
    assert status == 200 and list(answer) == schema["required"] == [*opened.task.answer(found[0]), "model", "request_id", "warnings"]
    for key in ("probabilities", "quantiles"): assert list(answer.get(key, ())) == schema["properties"].get(key, {}).get("required", [])
    assert schema["properties"]["prediction"]["type"] == {bool: "boolean", str: "string", float: "number"}[type(answer["prediction"])]


def test_columns_of_every_kind_pass_through_the_bundle_and_the_service(tmp_path):
    kinds = dict(at="time", v="vector", yes="boolean", x="number")
    contract = Contract("kinds", {n: Column(n, kind, nullable=True, length=2 if kind == "vector" else None) for n, kind in kinds.items()}, tuple(kinds))
    at = pl.datetime_range(datetime(2013, 1, 1), datetime(2013, 1, 2), "1h13m", time_zone="America/New_York", eager=True)
    rows = pl.DataFrame(dict(at=at)).with_row_index("i").with_columns(v=pl.concat_list(pl.col("i")/2, pl.lit(-1.5)), yes=pl.col("i") % 2 == 0, x=pl.col("i")*1e-3).drop("i")
    rows = pl.concat([rows, pl.DataFrame({n: [None] for n in kinds}, schema=rows.schema)])
    numbers, graph = pack(contract, rows)[0], small_graph(5, 0, task=TASKS["regression"])
    expected = (np.where(np.isnan(numbers), 0, numbers - 12).astype(np.float32)*np.float32(0.1)).sum(1)*100
    facts = dict(name="kinds", run="r", created="", task=asdict(TASKS["regression"]), metrics={}, baseline={}, lineage={}, parity={})
    opened = Bundle.open(write_bundle(tmp_path/"b", graph, contract, Profile.of(rows.select("x")), rows.with_columns(prediction=pl.Series(expected)), facts))
    assert opened.verify_golden() <= 1e-5*np.abs(expected).max()
    assert pack(contract, opened.golden)[0].tobytes() == numbers.tobytes()  # through Parquet, to the last bit
    found, refused = served(opened, opened.golden)
    np.testing.assert_array_equal(found, opened.predict_frame(rows))
    assert not refused.any() and found[-1] == 0


def test_a_rehearsal_that_fails_is_no_refusal(bundle, monkeypatch):
    monkeypatch.setattr(Task, "answer", lambda self, row: 1/0)
    with pytest.raises(MlprojError, match="row 0: the service answers 500"): served(bundle, bundle.golden)


def test_values_never_seen_are_warned_of_or_refused_as_the_contract_says(server):
    answer = server.predict(ROW | dict(n0=99, s1="SWF"))
    assert answer.status_code == 200
    assert answer.json()["warnings"] == [dict(field="n0", rule="is above 24"), dict(field="s1", rule="is none of the values known")]
    answer = server.predict(ROW | dict(s0="SWF"))
    assert answer.status_code == 422 and answer.json()["error"]["where"] == "field 's0'"


def raw(**changes) -> bytes:
    "A record whose values are given as JSON text."
    values = {k: json.dumps(v) for k, v in ROW.items()} | changes
    return ("{" + ", ".join(f'"{k}": {v}' for k, v in values.items()) + "}").encode()


SECRET = "Ann-Example-1970"
BAD = {
    "missing column": (raw().replace(b'"n0": 5, ', b""), 422, "n0"),
    "null where none may be": (raw(n0="null"), 422, "n0"),
    "string for a number": (raw(n1=f'"{SECRET}"'), 422, "n1"),
    "number for a string": (raw(s0="1"), 422, "s0"),
    "fraction for an integer": (raw(n0="1.5"), 422, "n0"),
    "boolean for an integer": (raw(n0="true"), 422, "n0"),
    "list": (raw(n1="[1]"), 422, "n1"),
    "unknown field": (raw(gate=f'"{SECRET}"'), 422, "gate"),
    "integer of 400 digits": (raw(n0="9"*400), 422, "n0"),
    "integer of 5000 digits": (raw(n0="-" + "9"*5000), 422, "n0"),
    "infinite": (raw(n1="1e999"), 422, "n1"),
    "infinite integer": (raw(n0="1e999"), 422, "n0"),
    "not an object": (b"[1, 2]", 422, None),
    "a bare number": (b"1", 422, None),
    "null": (b"null", 422, None),
    "deep nesting": (b"["*100_000, 422, None),
    "deep nesting in a field": (raw(n1="["*50_000 + "]"*50_000), 422, "n1"),
    "deep objects": (b'{"n1": '*50_000, 422, "n1"),
    "NaN": (raw(n1="NaN"), 400, "n1"),
    "cut off": (raw()[:30], 400, None),
    "empty": (b"", 400, None),
    "not UTF-8": (raw(s0='"\xff"').replace("ÿ".encode(), b"\xff"), 400, None),
    "UTF-16": (raw().decode().encode("utf-16"), 400, None),
    "lone surrogate": (raw(s0='"\\ud800"'), 400, None),
    "lone surrogate in a name": (raw(**{"\\ud800": "1"}), 400, None),
    "control character": (raw(s0='"a\0b"'), 400, None),
    "two records": (raw() + raw(), 400, None),
    "single quotes": (raw().replace(b'"', b"'"), 400, None),
    "many quotes": (b'{"s0": "' + b'\\"'*400_000, 400, None),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_name_the_field(server, case):
    body, status, named = BAD[case]
    answer = server.post(body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"where", "what", "hint"} and error["what"] and "\n" not in error["what"] and answer.json()["request_id"]
    if named: assert error["where"] == f"field {named!r}"
    assert SECRET not in answer.text and "Traceback" not in answer.text and len(answer.text) < 1000


def test_odd_but_valid_requests_are_answered(server):
    for body in (raw(s1='"a\\u0000b"'), raw(s1='"' + "é"*400_000 + '"'), raw(s1='""'), raw(n1="null", s1="null"), raw(n1="1e308"), raw(n1="-0"), b" \n" + raw() + b"\n",
                 raw()[:-1] + b', "n0": 6}', json.dumps(dict(reversed(ROW.items()))).encode(), raw(s1='"\\ud83d\\ude00"')):
        answer = server.post(body)
        assert answer.status_code == 200, (body[:100], answer.text)
        assert 0 <= answer.json()["probability"] <= 1
    assert server.post(raw()[:-1] + b', "n0": 6}').json()["probability"] == server.post(raw(n0="6")).json()["probability"]  # of duplicate keys the last one counts


def test_http_errors(server):
    for method in ("GET", "PUT", "DELETE", "HEAD", "OPTIONS"):
        answer = server.client.request(method, "/predict")
        assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/vnd.bentoml+pickle", "application/octet-stream", "text/json"):
        assert server.post(raw(), kind).status_code == 415, kind
    for kind in (None, "application/json; charset=utf-8", "Application/JSON"): assert server.post(raw(), kind).status_code == 200, kind
    for path in ("/nope", "/predict/", "/PREDICT", "/predict/submit", "/static_content/%2e%2e/%2e%2e/main-openapi.html", "/favicon.ico"):
        assert server.client.get(path).status_code == 404, path
    assert set(server.client.get("/nope").json()["error"]) == {"where", "what", "hint"}
    assert server.client.post("/healthz", content=b"x").status_code == 405


def test_long_bodies(server):
    for size in (1024*1024 + 1, 3*1024*1024):
        answer = server.post(b" "*size)
        assert answer.status_code == 413 and "1,048,576" in answer.json()["error"]["what"]
    def chunks():
        for _ in range(40): yield b" "*65536
    assert server.client.post("/predict", content=chunks()).status_code == 413  # without a declared length
    assert server.post(raw() + b" "*(1024*1024 - len(raw()))).status_code == 200


def test_bytes_that_are_not_http(server):
    for text in (b"\x00\xff garbage\r\n\r\n", b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.sendall(text)
            s.shutdown(socket.SHUT_WR)
            assert not s.recv(1000).startswith(b"HTTP/1.1 5")
    assert server.predict(ROW).status_code == 200


def test_openapi_is_the_contract(server, bundle):
    document = server.client.get("/docs.json").json()
    assert document["openapi"].startswith("3.1") and set(document["paths"]) == {"/predict", "/predict/batch", "/healthz", "/livez", "/readyz", "/metrics"}
    record = document["components"]["schemas"]["Record"]
    assert list(record["properties"]) == list(bundle.contract.features) == record["required"] and record["additionalProperties"] is False
    assert record["properties"]["n1"]["type"] == ["number", "null"] and record["properties"]["s0"]["enum"] == ["EWR", "JFK", "LGA"]
    post = document["paths"]["/predict"]["post"]
    assert set(post["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "431", "503"}
    example = post["requestBody"]["content"]["application/json"]["example"]
    answer = server.predict(example)
    assert answer.status_code == 200 and answer.json()["warnings"] == []
    for name, value in (("Prediction", answer.json()), ("Problem", server.post(b"").json())): assert set(document["components"]["schemas"][name]["required"]) == set(value)


def test_metrics_count_every_request(server):
    def values():
        lines = server.client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("mlproj_")}
    server.predict(ROW); server.post(b""); server.predict(ROW | dict(n0=99))
    before = values()
    for _ in range(20): server.predict(ROW)
    server.post(b""); server.predict(ROW | dict(n0=99))
    after = values()
    grown = {k: after[k] - before[k] for k in after if after[k] != before.get(k)}
    assert grown['mlproj_requests_total{status="200"}'] == 21 and grown['mlproj_requests_total{status="400"}'] == 1
    assert grown['mlproj_warnings_total{column="n0"}'] == 1 and grown["mlproj_request_seconds_count"] == 22 and grown["mlproj_request_seconds_sum"] > 0
    assert any(k.startswith('mlproj_model_info{model="flights:') for k in after)


def test_bentoml_client(server):
    import bentoml
    with bentoml.SyncHTTPClient(server.url) as client:
        assert client.predict(ROW)["probability"] == server.predict(ROW).json()["probability"]
        with pytest.raises(bentoml.exceptions.BentoMLException): client.predict(dict(n0=1))


def test_concurrent_clients_get_their_own_answers(server, bundle):
    rows = small_rows(bundle.contract, 640, seed=9)
    bodies, expected = [json.dumps(row).encode() for row in records(bundle.contract, rows)], bundle.predict_frame(rows)

    def ask(first):  # sixteen connections, each with every sixteenth row, and nonsense after each
        with httpx.Client(base_url=server.url, timeout=20) as client: return [(i, client.post("/predict", content=bodies[i]), client.post("/predict", content=b"{")) for i in range(first, len(bodies), 16)]

    with ThreadPoolExecutor(16) as pool: answers = [a for found in pool.map(ask, range(16)) for a in found]
    assert {a.status_code for _, a, _ in answers} == {200} and {a.status_code for *_, a in answers} == {400} and len(answers) == 640
    np.testing.assert_allclose(np.array([a.json()["probability"] for _, a, _ in answers], np.float32), expected[[i for i, *_ in answers]], atol=1e-7)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_workers_load_nothing_that_only_training_or_tables_need(server):
    assert server.workers()
    for pid in server.workers():
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "onnxruntime" in maps and not [m for m in ELSEWHERE if f"/site-packages/{m}/" in maps]
    code = f"import mlproj.serve.service, sys; sys.exit(' '.join(m for m in {ELSEWHERE} if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], env=environment(server.environment["BENTOML_HOME"]), cwd=ROOT, capture_output=True, text=True).stderr.strip() == ""


def test_logs_hold_no_values_and_no_tracebacks(server):
    server.post(raw(n1=f'"{SECRET}"')); server.post(raw(s0=f'"{SECRET}"'))
    log = server.log.read_text()
    assert SECRET not in log and "Traceback" not in log and "Starting production HTTP BentoServer" in log


# Starting up: one line, a non-zero exit code, and nothing is left running.

def one_line(code, output, *said):
    assert code not in (0, None), output
    lines = [line for line in output.splitlines() if line.strip()]
    assert len(lines) == 1 and all(s in lines[0] for s in said), output


def test_port_taken(server, home): one_line(*refused(home, port=server.port), "Address already in use", f"127.0.0.1:{server.port}")


def test_empty_registry(tmp_path): one_line(*refused(tmp_path), "no model in the registry", "mlproj run")


def test_unknown_reference(home): one_line(*refused(home, MLPROJ_MODEL="fligths"), "did you mean 'flights'?")


def test_open_door_without_a_key(home): one_line(*refused(home, "--host", "0.0.0.0"), "no API key", "MLPROJ_API_KEY")


def test_corrupt_bundle(tmp_path):
    registry = Registry(tmp_path/"home")
    registry.promote(registry.add(small_bundle(tmp_path/"b")))
    model = registry.resolve().path/"model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    one_line(*refused(tmp_path/"home"), "model.onnx", "cannot be used", "mlproj rollback flights")


def test_a_model_without_the_signature_that_is_asked_for(home, tmp_path):
    one_line(*refused(home, MLPROJ_VERIFY_KEY=str(key_pair(tmp_path)[1])), "is not signed, and MLPROJ_VERIFY_KEY asks for it", "mlproj rollback flights")


def test_serve_command_with_keys_from_any_folder(tmp_path):
    registry, (private, public) = Registry(tmp_path/"home"), key_pair(tmp_path)
    sign_bundle(small_bundle(tmp_path/"b", name="diamonds", task=TASKS["multiclass"]), private)
    registry.promote(registry.add(tmp_path/"b"))
    server = Server(tmp_path/"home", cwd=tmp_path, MLPROJ_API_KEY="k3y", MLPROJ_VERIFY_KEY=str(public))
    server.command = [sys.executable, "-c", f"from mlproj.serve.service import serve; serve('diamonds', port={server.port})"]
    with server:
        wrong = [server.predict(ROW, headers=headers).status_code for headers in ({}, dict(authorization="Bearer k3"), dict(authorization="k3y"), dict(authorization="Basic k3y"))]
        assert wrong == [401]*4
        answer = server.predict(ROW, headers=dict(authorization="Bearer k3y"))
        assert answer.status_code == 200 and sum(answer.json()["probabilities"].values()) == pytest.approx(1)
        assert server.client.get("/readyz").status_code == 200  # probes need no key
        components = server.client.get("/docs.json").json()["components"]
        assert "securitySchemes" in components and components["schemas"]["Prediction"]["properties"]["prediction"]["enum"] == ["Fair", "Good", "Ideal"]
        workers = server.workers()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        until = time.time() + 5
        while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.time() < until: time.sleep(0.05)
        assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    assert "Traceback" not in server.log.read_text() and "k3y" not in server.log.read_text()
