"The flights model over HTTP: what is served is what was trained."
import json, shutil, subprocess

import numpy as np
import pytest
from bundles import Server

from mlproj.serve.bundle import Bundle
from mlproj.serve.registry import Registry


@pytest.fixture(scope="module")
def served(trained):
    "The champion of a small run, served by plain `bentoml serve` in the repository root."
    with Server(trained.folder/"bentoml") as server: yield server


@pytest.fixture(scope="module")
def bundle(trained): return Bundle.open(Registry(trained.folder/"bentoml").resolve("flights@champion").path)


def test_http_answers_equal_pytorch_on_the_golden_rows(served, bundle, trained):
    # the golden predictions were proven against PyTorch when the bundle was made (`parity`); here the service repeats them
    assert bundle.facts["parity"]["rows"] == 1000 and bundle.facts["parity"]["model"] <= 1e-5
    answers = [served.predict(row).json() for row in bundle.golden.select(bundle.contract.features).to_dicts()]
    assert all("probability" in a for a in answers), next(a for a in answers if "probability" not in a)
    assert all(a["prediction"] == (np.float32(a["probability"]) >= np.float32(bundle.task.threshold)) for a in answers)
    worst = np.abs(np.array([a["probability"] for a in answers]) - bundle.golden["prediction"].to_numpy()).max()
    assert worst <= 1e-5
    assert sum(bool(a["warnings"]) for a in answers) > 300  # extreme and unseen values are accepted, and said


def test_an_answer_names_the_model_that_the_status_names(served, bundle, trained):
    answer = served.predict(bundle.golden.select(bundle.contract.features).row(1, named=True)).json()
    assert answer["model"].removeprefix("flights:") in trained("status").stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_curl_command_that_a_run_prints_works(served, trained):
    command = next(line for line in trained.output.splitlines() if "curl" in line).partition("curl ")[2].split()
    from conftest import ROOT
    done = subprocess.run(["curl", "-s", *[a.replace("localhost:3000", f"127.0.0.1:{served.port}") for a in command]], cwd=ROOT, capture_output=True, text=True)
    assert 0 < json.loads(done.stdout)["probability"] < 1, done


ROW = dict(dep_minute=1020, arr_minute=1200, distance=1400, dest_lat=29.98, dest_lon=-95.34, temp=70.0, dewp=50.0, humid=50.0, wind_dir=200.0, wind_speed=10.0, wind_gust=None,
           precip=0.0, pressure=1012.0, visib=10.0, origin="EWR", dest="IAH", carrier="UA", weekday="Fri")

@pytest.mark.parametrize("change, field", [
    (dict(carrier=...), "carrier"), (dict(distance="far"), "distance"), (dict(gate=3), "gate"), (dict(origin=None), "origin"), (dict(temp=[1]), "temp"), (dict(distance=1.5), "distance"), (dict(temp=True), "temp")])
def test_a_bad_flight_is_refused_by_the_name_of_its_field(served, change, field):
    assert served.predict(ROW).status_code == 200
    answer = served.predict({k: v for k, v in {**ROW, **change}.items() if v is not ...})
    assert answer.status_code == 422 and field in answer.json()["error"]["where"]


@pytest.mark.parametrize("body, field", [(json.dumps(ROW).replace("70.0", "NaN"), "temp"), (json.dumps(ROW)[:-5], ""), ("", ""), ("[1, 2]", "")])
def test_what_is_no_json_record_is_refused(served, body, field):
    answer = served.post(body.encode())
    assert 400 <= answer.status_code < 500 and field in answer.json()["error"]["where"]


def test_the_openapi_document_shows_the_contract_with_an_example(served):
    document = served.client.get("/docs.json").text
    assert all(f'"{name}"' in document for name in ROW) and "minutes since midnight in New York" in document
