"Data that cannot be trusted, through the whole path: set aside, refused, or found out by the audit. The commands that look at data. And columns of texts and vectors."
import json, shutil
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from conftest import ROOT, Shell
from mlproj.data import count
from mlproj.data.profile import Profile, load_profile, save_profile
from mlproj.data.snapshot import normalise, table_digest, take_snapshot

USERDATA = """
from dataclasses import replace
import polars as pl
from mlproj.examples.flights import dataset, read_flights, read_weather
from mlproj.data.source import join

every = lambda n: pl.int_range(pl.len()) % n == 0

def good(folder, fraction): return dataset(folder, fraction)
def some_without_origin(folder, fraction):
    return replace(d := dataset(folder, fraction), frame=d.frame.with_columns(origin=pl.when(~every(200)).then("origin")))
def many_without_origin(folder, fraction):
    return replace(d := dataset(folder, fraction), frame=d.frame.with_columns(origin=pl.when(~every(3)).then("origin")))
def impossible_weather(folder, fraction):
    return replace(d := dataset(folder, fraction), frame=d.frame.with_columns(dewp=pl.when(every(500)).then(pl.col("temp") + 1).otherwise("dewp")))
def weather_lost(folder, fraction):
    d = dataset(folder, fraction)
    lost = [replace(a, unmatched=a.rows_in//2, nulls={c: 0.5 for c in a.nulls}) if a.table == "weather" else a for a in d.joins]
    return replace(d, joins=tuple(lost))
def with_the_delay(folder, fraction):
    d = dataset(folder, fraction)
    delays = read_flights(folder).select(pl.col("time_hour").alias("hour_of"), "carrier", "flight", "origin", "arr_delay").unique(["hour_of", "carrier", "flight", "origin"])
    frame = d.frame.with_columns(hour_of=pl.col("departure").dt.truncate("1h"))
    return replace(d, frame=join(frame, delays, ("hour_of", "carrier", "flight", "origin"), "delays")[0].drop("hour_of"))
"""

def runner(shell: Shell):
    "A small run of the baseline on one of the tables above."
    (shell.folder/"userdata.py").write_text(USERDATA)
    def run(table: str, *overrides, until="registry"): return shell(*shell.small("model=linear", f"data.source._target_=userdata.{table}", "--until", until, *overrides))
    run.shell = shell
    return run


@pytest.fixture
def data(mlproj): return runner(mlproj)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "The folder of a run on good data."
    data = runner(Shell(tmp_path_factory.mktemp("good")))
    done = data("good")
    assert done.returncode == 0, done.stderr
    return data.shell.folder


@pytest.fixture
def known(good, mlproj):
    "The same, in a copy of that folder: there is a contract, and a run to compare with."
    shutil.copytree(good, mlproj.folder, dirs_exist_ok=True)
    return runner(mlproj)


def quarantined(run) -> pl.DataFrame: return pl.read_parquet(run/"quarantine"/"quarantine.parquet")


def test_bad_rows_are_set_aside_with_their_reasons_and_the_run_goes_on(known):
    done = known("some_without_origin", until="report")
    assert done.returncode == 0, done.stderr
    aside, stages = quarantined(known.shell.runs()[-1]), {e["stage"]: e for e in known.shell.events() if e["event"] == "stage"}
    assert aside.height == stages["contract"]["quarantined"] > 20 and f"{aside.height:,} rows set aside" in done.stdout
    assert aside["origin"].null_count() == aside.height and all("origin" in reason for reasons in aside["reasons"] for reason in reasons)
    parts = stages["split"]
    assert parts["train"] + parts["validation"] + parts["test"] + aside.height == stages["data"]["rows"]  # none is lost
    assert f"{aside.height:,} flights were set aside" in (known.shell.runs()[-1]/"report.html").read_text()


def test_too_many_bad_rows_are_refused_and_kept_for_a_look(known):
    done = known("many_without_origin")
    assert done.returncode == 1 and "quarantined" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert quarantined(known.shell.runs()[-1])["origin"].null_count() > 2000 and known.shell.events()[-1]["status"] == "failed"


def test_a_rule_between_columns_sets_rows_aside(known):
    contract = known.shell.contract
    contract.write_text(contract.read_text().replace("table:\n", "rows:\n- rule: dewp <= temp\n  why: air cannot be more than saturated\ntable:\n", 1))
    done = known("impossible_weather")
    assert done.returncode == 0, done.stderr
    aside = quarantined(known.shell.runs()[-1])
    assert aside.height and (aside["dewp"] > aside["temp"]).all() and "dewp <= temp" in str(aside["reasons"][0].to_list())


def test_a_join_that_loses_rows_is_refused(known):
    done = known("weather_lost")
    assert done.returncode == 1 and "weather" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert "join, against the run before: weather: " in done.stdout


def test_a_feature_that_knows_the_label_stops_the_run_until_a_person_accepts_it(data):
    features = "data.features=[dep_minute,distance,origin,carrier,arr_delay]"
    done = data("with_the_delay", features)
    assert done.returncode == 1 and "leakage audit" in done.stderr and "arr_delay" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not any(e.get("stage") == "baseline" for e in data.shell.events())  # nothing was trained
    assert data("with_the_delay", features, "audit.accept=[arr_delay]").returncode == 0


def test_the_ledger_counts_how_often_a_test_part_was_scored(known):
    for more in ([], ["seed=1"], ["split.validation_before=2013-11-15"]): assert known("good", *more).returncode == 0
    evaluated = [next(e for e in known.shell.events(run) if e.get("stage") == "evaluate") for run in known.shell.runs()]
    assert [e["looks"] for e in evaluated if not e["cached"]] == [0, 1, 0]  # the same again is no look, another seed is one, the last is another test part


def test_a_split_by_group_and_one_with_a_purge(data):
    done = data("good", "split=group", "split.group=tailnum")
    assert done.returncode == 0, done.stderr
    done = data("good", "split.purge=2d")
    assert done.returncode == 0 and "purged before the cuts" in done.stdout, done.stderr
    for wrong, said in {"split.purge=two": "two", "split.method=random": "'random' is unknown", "split=group": "split.group"}.items():
        failed = data("good", wrong)
        assert failed.returncode == 1 and said in failed.stderr and failed.stderr.count("\n") == 1, failed.stderr


# The commands

@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table")/"flights.parquet"
    from mlproj.examples.flights import dataset
    dataset(fraction=0.05).frame.write_parquet(path)
    return path


def test_profile_prints_a_table_and_as_json_everything(mlproj, table):
    done = mlproj("profile", str(table), "--key", "departure, carrier, flight, origin")
    assert done.returncode == 0 and "0 repeat the key" in done.stdout and "dep_minute" in done.stdout and not done.stderr
    counted = json.loads(mlproj("profile", str(table), "--json").stdout)
    assert counted["rows"] == pl.read_parquet(table).height and counted["columns"][0]["name"] == "departure"
    csv = table.with_suffix(".csv")
    pl.read_parquet(table).write_csv(csv)
    assert f"{counted['rows']:,} rows" in mlproj("profile", str(csv)).stdout


@pytest.mark.parametrize("args, said", [(["profile", "nothing.parquet"], "nothing.parquet: no such file"), (["profile", "README.md"], "format '.md' is unknown"),
                                        (["profile", "TABLE", "--key", "gate"], "column 'gate' of the key"), (["contract", "check", "TABLE", "--contract", "no.yaml"], "no.yaml"),
                                        (["contract", "diff", "none"], "none: no such file, and no run of that name"),
                                        (["profile", "TABLE", "--key", "origin, origin"], "column 'origin' stands twice")])
def test_what_a_command_cannot_do_is_one_line(mlproj, table, args, said):
    done = mlproj(*(str(table) if a == "TABLE" else a for a in args))
    assert done.returncode == 1 and said in done.stderr and done.stderr.startswith("mlproj: ") and done.stderr.count("\n") == 1, done.stderr


def test_check_says_what_a_contract_refuses_and_keeps_what_it_sets_aside(mlproj, table, tmp_path):
    assert mlproj("contract", "check", str(table)).returncode == 0  # the committed contract, which warns of so few rows
    bad = tmp_path/"bad.parquet"
    pl.read_parquet(table).with_columns(temp=pl.lit(float("inf"))).drop("seats").write_parquet(bad)
    done = mlproj("contract", "check", str(bad), "--quarantine", str(tmp_path/"aside"))
    assert done.returncode == 1 and "column 'seats'" in done.stdout and "rules refuse the table" in done.stderr
    assert pl.read_parquet(tmp_path/"aside"/"quarantine.parquet").height == pl.read_parquet(bad).height
    assert f"{bad} has the columns " in done.stderr
    mlproj("contract", "check", str(table), "--quarantine", str(tmp_path/"aside"))
    assert not (tmp_path/"aside"/"quarantine.parquet").exists()  # nothing is set aside now
    report = json.loads(mlproj("contract", "check", str(bad), "--json").stdout)
    assert report["set_aside"] == report["rows"]


def test_relax_proposes_and_a_person_accepts(mlproj, table, tmp_path):
    contract, warm = tmp_path/"contract.yaml", tmp_path/"warm.parquet"
    contract.write_text((ROOT/"conf/contracts/flights.yaml").read_text())
    pl.read_parquet(table).with_columns(temp=pl.col("temp") + 50).write_parquet(warm)
    before = contract.read_text()
    done = mlproj("contract", "relax", str(warm), "--contract", str(contract))
    assert done.returncode == 0 and "column temp: max" in done.stdout and contract.read_text() == before
    contract.write_text(before + "# a remark of ours\n")
    refused = mlproj("contract", "relax", str(warm), "--contract", str(contract), "--accept")
    assert refused.returncode == 1 and "a remark of ours" in refused.stderr
    contract.write_text(before)
    assert mlproj("contract", "relax", str(warm), "--contract", str(contract), "--accept").returncode == 0
    assert "column temp: max" in mlproj("contract", "diff", str(ROOT/"conf/contracts/flights.yaml"), str(contract)).stdout
    assert "column 'temp'" not in mlproj("contract", "check", str(warm), "--contract", str(contract)).stdout


def test_check_and_relax_say_what_no_loosening_mends(mlproj, table, tmp_path):
    renamed = tmp_path/"renamed.parquet"
    pl.read_parquet(table).rename(dict(seats="seat", flight="number")).write_parquet(renamed)
    done = mlproj("contract", "check", str(renamed))
    assert done.returncode == 1 and "'seat' looks like 'seats'" in done.stderr.splitlines()[-1], done.stderr
    done = mlproj("contract", "relax", str(renamed))  # a column of the key is absent
    assert done.returncode == 0 and "still refused: column 'seats': is missing from the table" in done.stdout, done.stderr
    assert "takes this table as it is" not in done.stdout


def test_the_contract_of_a_run_is_never_rewritten(mlproj, table):
    run = mlproj.folder/"store"/"runs"/"20261121-000000-abcd"
    (run/"stages"/"contract").mkdir(parents=True)
    (run/"events.jsonl").write_text("")
    contract = run/"stages"/"contract"/"contract.yaml"
    contract.write_text(before := (ROOT/"conf/contracts/flights.yaml").read_text())
    for given in ("latest", "20261121", str(contract)):
        done = mlproj("contract", "relax", str(table), "--contract", given, "--accept")
        assert done.returncode == 1 and "is the contract of a run, which is not changed; give --contract FILE" in done.stderr, done.stderr
    assert contract.read_text() == before


def test_a_file_that_is_damaged_half_way_is_one_line(mlproj, tmp_path):
    parquet, late, text = tmp_path/"page.parquet", tmp_path/"late.csv", tmp_path/"text.csv"
    pl.DataFrame(dict(a=range(200_000))).write_parquet(parquet)
    parquet.write_bytes((content := parquet.read_bytes())[:1000] + bytes(100_000) + content[101_000:])
    late.write_text("a,b\n" + "1,2\n"*150_000 + "abc,2\n")
    text.write_bytes(b"a,b\n" + b"x,2\n"*150_000 + b"\xff\xfe,2\n")
    for file in (parquet, late, text):
        for command in (["profile"], ["contract", "check"], ["contract", "relax"]):
            done = mlproj(*command, str(file))
            assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("mlproj: "), done.stderr
            assert "Traceback" not in done.stderr and (command != ["profile"] or f"{file}: cannot be read (" in done.stderr), done.stderr


# Texts, vectors and times

def some_texts(n: int, seed=0) -> list:
    rng = np.random.default_rng(seed)
    words = np.array([f"{'Wé'[i % 2]}{i}" for i in range(4000)], object)[rng.zipf(1.4, (n, 4)).clip(1, 4000) - 1]
    return [None if i % 50 == 0 else "\t ".join(row) if i % 7 == 0 else " ".join(row) for i, row in enumerate(words)]


def by_hand(texts) -> Counter: return Counter(word for text in texts if text is not None for word in set(text.lower().split()))


@pytest.mark.parametrize("kept", [2**17, 2**8])  # all texts, or nearly none of them
def test_words_are_counted_by_rows_however_many_texts_are_kept(monkeypatch, tmp_path, kept):
    monkeypatch.setattr(count, "STRINGS", kept)
    monkeypatch.setattr(count, "BATCH", 1000)
    table = pl.DataFrame(dict(text=some_texts(20_000)))
    table.write_parquet(tmp_path/"t.parquet")
    told, hand = Profile.of(pl.scan_parquet(tmp_path/"t.parquet"))["text"], by_hand(table["text"])
    assert len(hand) > count.WORDS == len(told.words) and told.words_lacking == 0
    assert all(hand[word] == rows for word, rows in told.words.items())
    assert sorted(told.words.values(), reverse=True) == list(told.words.values()) == sorted(hand.values(), reverse=True)[:count.WORDS]
    assert Profile.of(table)["text"].words == told.words  # in other batches


def test_a_bounded_memory_of_words_says_how_much_it_may_lack(monkeypatch):
    for name, size in dict(STRINGS=2**8, BATCH=1000, WORDS_COUNTED=1000, WORDS=200).items(): monkeypatch.setattr(count, name, size)
    texts = some_texts(20_000)
    told, hand = Profile.of(pl.DataFrame(dict(text=texts)))["text"], by_hand(texts)
    assert told.words_lacking > 0 and len(told.words) == 200
    assert all(hand[word] - told.words_lacking <= rows <= hand[word] for word, rows in told.words.items())


def test_an_engine_counts_the_words_of_the_values_it_kept_and_says_what_they_lack(monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.setattr(count, "STRINGS", 2**10)
    texts = some_texts(5000) + ["Always the same"]*500
    told, hand = Profile.of(duckdb.from_arrow(pl.DataFrame(dict(text=texts)).to_arrow()))["text"], by_hand(texts)
    assert told.words["always"] >= 500 and told.words_lacking == len(texts) - 100 - sum(told.counts.values())
    assert all(hand[word] - told.words_lacking <= rows <= hand[word] for word, rows in told.words.items())


def test_codes_have_no_words():
    table = pl.DataFrame(dict(code=["UA 1", "AA2", " DL3 ", None], empty=["", "", None, " "], name=["New York", "JFK", "Los Angeles", "LGA"]))
    assert {name: list(c.words) for name, c in Profile.of(table).columns.items()} == dict(code=[], empty=[], name=["angeles", "jfk", "lga", "los", "new", "york"])


def vectors_and_times(n: int) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    vectors = rng.normal(3, 2, (n, 5)).astype(np.float32)
    vectors[rng.random((n, 5)) < 0.001] = np.inf
    frame = pl.DataFrame(dict(v=vectors, at=[datetime(1969, 6, 1, tzinfo=UTC) + timedelta(seconds=int(s)) for s in rng.integers(0, 40_000_000, n)]))
    return frame.with_columns(v=pl.when(pl.int_range(n) % 11 != 0).then("v"), at=pl.when(pl.int_range(n) % 13 != 0).then("at"))


def test_vectors_and_times_have_the_figures_of_numpy_in_any_batches(monkeypatch):
    table = vectors_and_times(100_000)
    monkeypatch.setattr(count, "VECTORS", 777)
    monkeypatch.setattr(count, "BATCH", 5_000)
    for frame in (table, table.lazy(), table.with_columns(pl.col("v").arr.to_list()), table.lazy().filter(pl.lit(True)).map_batches(lambda f: f)):
        told = Profile.of(frame)
        x = table["v"].drop_nulls().explode().to_numpy().astype(float)
        finite, v = x[np.isfinite(x)], told["v"]
        assert (v.kind, v.length, v.rows, v.missing, v.infinite, v.nan) == ("vector", 5, 100_000, table["v"].null_count(), np.isinf(x).sum(), 0)
        assert (v.min, v.max) == (finite.min(), finite.max()) and np.allclose([v.mean, v.std], [finite.mean(), finite.std()], rtol=1e-9)
        seconds, at = table["at"].drop_nulls().dt.epoch("us").to_numpy()/1e6, told["at"]
        assert np.abs(np.quantile(seconds, np.arange(33)/32, method="inverted_cdf") - at.quantiles).max() <= at.quantile_error < 40_000_000/2000
        assert abs(at.mean - seconds.mean()) <= at.quantile_error and abs(at.std/seconds.std() - 1) < 1e-3


def test_a_snapshot_gives_vectors_back_as_they_were(tmp_path):
    table = vectors_and_times(3000).with_columns(n=pl.Series([[i] * (i % 4) if i % 5 else None for i in range(3000)], dtype=pl.List(pl.UInt16)))
    snapshot = take_snapshot(table, tmp_path/"t")
    assert snapshot.verify().equals(normalise(table)) and take_snapshot(table, tmp_path/"t").version == 0
    assert snapshot.verify()["v"].to_list() == table["v"].to_list() and snapshot.verify()["n"].to_list() == table["n"].to_list()
    moved = normalise(table).with_columns(n=pl.col("n").shift(1))
    assert table_digest(moved) != snapshot.digest and take_snapshot(moved, tmp_path/"t").version == 1


def test_a_profile_that_an_earlier_version_wrote_is_still_read(tmp_path):
    profile = Profile.of(pl.DataFrame(dict(x=[1, 2, 2], s=["a b", "c d", None])))
    saved = json.loads(save_profile(profile, tmp_path/"p.json").read_text())
    for column in saved["columns"]:
        for figure in ("words", "words_lacking", "length"): del column[figure]
    (tmp_path/"p.json").write_text(json.dumps(saved))
    assert load_profile(tmp_path/"p.json")["x"] == profile["x"] and load_profile(tmp_path/"p.json")["s"].words == {}
