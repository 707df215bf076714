"Runs listed, filtered and sorted; the journal of real runs; notes."
import itertools, json, operator, random
from datetime import datetime, timedelta, timezone

import pytest

from mlproj.journal import add_note, facts, journal, period, pick, read_notes, runs_table, runs_text
from mlproj.ledger import Ledger, append_line
from mlproj.project import MlprojError
from mlproj.serve.registry import Registry

UTC = timezone.utc


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    "Forty random runs."
    rng, ledger = random.Random(0), Ledger(tmp_path/"runs")
    for n in range(40):
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=7*n)
        run = ledger.start(dict(seed=n, data=dict(name=rng.choice(["flights", "diamonds"])), model=rng.choice([None, dict(_target_="a.b.Net", lr=rng.choice([0.1, 0.01]), deep=rng.choice([True, False]))]),
                                baseline=dict(_target_="x.Linear")), ["mlproj", "run", f"experiment=e{n % 3}"], at)
        if n % 5: run.record("stage", at, stage="evaluate", seconds=1.0, test_rmse=rng.random(), cached=bool(n % 2))
        if n % 7: run.record("finished", at, status=rng.choice(["succeeded", "failed", "rejected"]), seconds=rng.random()*100, peak_mb=n, error="went wrong")
    return ledger


OPERATORS = {"=": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}

@pytest.mark.parametrize("op", OPERATORS)
def test_conditions_mean_what_they_say(ledger, op):
    "Against a plain loop over the files."
    everything = [(json.loads((r.path/"config.json").read_text()), r) for r in ledger.runs()]
    found = {one["id"] for one in pick(ledger, f"model.lr{op}0.1")}
    assert found == {r.id for c, r in everything if c["model"] and OPERATORS[op](c["model"]["lr"], 0.1)}
    middle = 0.5
    values = {r.id: e["test_rmse"] for _, r in everything for e in r.events("stage")}
    assert {one["id"] for one in pick(ledger, f"test_rmse{op}{middle}")} == {id for id, v in values.items() if OPERATORS[op](v, middle)}


def test_conditions_on_words_switches_overrides_and_time(ledger):
    runs = {r.id: facts(r) for r in ledger.runs()}
    count = lambda where: len(list(pick(ledger, where)))
    assert count("status=unfinished") == sum(f["status"] == "unfinished" for f in runs.values()) == 6
    assert count("model=Net deep=true data=flights") == sum(f["model"] == "Net" and f["model.deep"] and f["data"] == "flights" for f in runs.values()) > 0
    assert count("model=Linear") == sum(f.get("model.lr") is None for f in runs.values()) > 0
    assert count("experiment=e1") == 13 and count("experiment!=e1") == 27
    assert count("when>=2026-01-05 when<2026-01-07") == sum("2026-01-05" <= f["when"] < "2026-01-07" for f in runs.values()) > 0
    assert count("why~WRONG") == sum("wrong" in f["why"] for f in runs.values()) > 0
    assert count("") == 40 and count("error='went wrong'") == count("error!=null")


def test_rows_come_in_the_order_that_was_asked_for_and_those_without_come_last(ledger):
    rows = runs_table(ledger, sort="-test_rmse", last=100)
    values = [row.get("evaluate.test_rmse") for row in rows]
    known = [v for v in values if v is not None]
    assert len(rows) == 40 and known == sorted(known, reverse=True) and values[:len(known)] == known
    assert [r["id"] for r in runs_table(ledger, last=5)] == [r.id for r in ledger.runs()[:5]]
    assert runs_table(ledger, sort="seconds", last=1)[0]["seconds"] == min(facts(r)["seconds"] or 1e9 for r in ledger.runs())
    assert json.dumps(rows)  # for --json


@pytest.mark.parametrize("where, sort, said", [("modl.lr>1", "", "no run has 'modl.lr'; did you mean 'model.lr'?"), ("status", "", "'status' is no condition"), ("", "test_rsme", "no run has 'test_rsme'; did you mean"),
                                               ("status='x", "", "cannot be read (No closing quotation)"), ("name=flights _target_=x", "", "'_target_' could be baseline._target_ or model._target_")])
def test_what_cannot_be_meant_is_said(ledger, where, sort, said):
    with pytest.raises(MlprojError) as error: runs_table(ledger, where, sort)
    assert said in str(error.value)


def test_the_table_fits_its_width_and_every_run_is_one_line(ledger):
    text = runs_text(runs_table(ledger, last=100), 80)
    assert len(text.split("\n")) == 41 and max(map(len, text.split("\n"))) <= 80


def test_an_empty_or_damaged_run_folder_does_not_hide_the_others(ledger):
    runs = ledger.runs()
    (runs[0].path/"config.json").unlink()
    (runs[1].path/"config.json").write_text("{")
    (runs[2].path/"events.jsonl").write_text("")
    (ledger.path/"stray").mkdir()
    assert len(runs_table(ledger, last=100)) == 40 and journal(ledger, zone=UTC).count("**run**") >= 37


def test_every_day_of_a_period_is_covered_once():
    now, zone = datetime(2026, 3, 31, 23, 30, tzinfo=UTC), timezone(timedelta(hours=2))
    assert period("today", now, zone) == (datetime(2026, 4, 1, tzinfo=zone), datetime(2026, 4, 2, tzinfo=zone))
    months = [period(f"2026-{m:02}", now, UTC) for m in range(1, 13)]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(months)) and (months[0][0], months[-1][1]) == period("2026", now, UTC)
    assert period("week", now, UTC)[0] == period("yesterday", now, UTC)[0] - timedelta(days=5) and period("today", now, UTC)[0] == period("yesterday", now, UTC)[1]


def test_a_journal_has_every_thing_of_its_period_once_in_order(ledger, tmp_path):
    for n in range(5): add_note(tmp_path, f"note {n}", datetime(2026, 1, 2 + n, 12, tzinfo=UTC))
    append_line(tmp_path/"notes.jsonl", dict(at="2026-01-03T06:00:00+00:00", event="alarm", text="freshness: no run for 3 days", model="flights"))
    told = journal(ledger, {}, read_notes(tmp_path), zone=UTC)
    assert all(told.count(f"**run** `{r.id}`") == 1 for r in ledger.runs())
    assert "- 06:00 **alarm** freshness: no run for 3 days" in told.split("## Saturday, 3 January 2026")[1].split("##")[0]
    days = [journal(ledger, {}, read_notes(tmp_path), *period(f"2026-01-{d:02}", datetime.now(UTC), UTC), zone=UTC) for d in range(1, 32)]
    assert sum(day.count("\n- ") for day in days) == told.count("\n- ") == 46
    flights = journal(ledger, {}, read_notes(tmp_path), model="flights", zone=UTC)
    assert flights.count("**run**") == sum(facts(r)["data"] == "flights" for r in ledger.runs()) and "alarm" in flights
    assert "alarm" not in journal(ledger, {}, read_notes(tmp_path), model="diamonds", zone=UTC)


def test_the_journal_of_a_real_run_names_run_and_promotion(trained):
    registry, ledger = Registry(trained.folder/"bentoml"), Ledger(trained.folder/"store"/"runs")
    told = journal(ledger, {n: registry.history(n) for n in registry.names()})
    assert trained.run.name in told and "test average precision" in told and "**promoted** `flights:" in told
    row = next(row for row in runs_table(ledger, last=100) if row["id"] == trained.run.name)
    assert row["low"] <= row["score"] <= row["high"] and row["metric"] == "average_precision" and row["status"] == "succeeded"
