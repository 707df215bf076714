"Contracts: texts that people write, both doors to the graph, tables larger than a batch, memory of a process."
import json, random, struct, subprocess, sys
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from mlproj.data.contract import (Column, Contract, JoinRule, RequestReader, RowRule, TableRules, contract_from_yaml, contract_yaml,
                                  diff_contracts, example_row, infer_contract, json_schema, pack, parse_rule, relax)
from mlproj.data.guard import BATCH, check, guard, quarantine
from mlproj.data.profile import Profile
from mlproj.project import ConfigError, ContractError

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["yes", "null", "1", "1.5", "", " ", "a: b", "{x}", "- y", "é\U0001f6eb", "a\nb", "#", "'", '"', "2013-01-01", "~", "<<", "\t", "a" * 300, "a\x85b", "\u2028", "a \u2029 b", "\ufeff"]
KINDS = dict(a="number", i="integer", s="string", flag="boolean", t="time")


def some_contract(rng) -> Contract:
    "A random contract with texts that YAML likes to take for something else."
    severity = lambda rules: {r: rng.choice(["warn", "refuse"]) for r in rules if rng.random() < 0.3}
    columns = {}
    for name in {rng.choice(["x", "yes", "1", "null", "a b", "é", "a: b", "on", "a\u2028", "\u2029b"]) for _ in range(4)}:
        kind, why = rng.choice(["number", "string", "boolean", "time", "vector"]), {"nullable": rng.choice(TEXTS)}
        more = dict(number=dict(min=-1.5, max=rng.choice([2, 1e300])), string=dict(values=tuple(rng.sample(TEXTS, 4)), pattern=".*"),
                    time=dict(example="2013-01-01T00:00:00Z"), vector=dict(length=rng.choice([1, 768]), example=0.5)).get(kind, {})
        columns[name] = Column(name, kind, rng.choice(TEXTS), rng.choice(TEXTS), nullable=rng.random() < 0.5, severity=severity(["min", "nullable"]), why=why, **more)
    table = TableRules(rng.choice([None, (1, None), (None, 5)]), joins={rng.choice(TEXTS[6:]): JoinRule(0.5, None, {"x": 0.25}, why=rng.choice(TEXTS))}, severity=severity(["rows"]))
    return Contract(rng.choice(TEXTS), columns, (), source=rng.choice(TEXTS), table=table)


def test_a_contract_survives_being_written_and_read_whatever_its_texts():
    rng = random.Random(0)
    for _ in range(200):
        contract = some_contract(rng)
        again = contract_from_yaml(contract_yaml(contract))
        assert again == contract and contract_yaml(again) == contract_yaml(contract) and diff_contracts(contract, again) == ()


def test_whatever_is_written_as_a_rule_it_is_a_rule_or_an_error_that_names_it():
    rng, words = random.Random(0), ["a", "i", "s", "flag", "t", "1", "'x'", "<", "==", "in", "(", ")", ",", "and", "or", "not", "-", "+", "*", "abs", "abs(", ".", "[", "]", "lambda", ":", "is", "True", "None", "/", "**", "@", "é", "\n", "if", "else", "=", ":="]
    parsed = 0
    for _ in range(5000):
        rule = " ".join(rng.choice(words) for _ in range(rng.randint(1, 9)))
        try: parse_rule(rule, KINDS).broken()
        except ConfigError as error: assert "rule" in str(error)
        else: parsed += 1
    assert parsed > 10


@pytest.fixture
def large(tmp_path):
    "A file of several batches, broken in few places far apart."
    rows = 5*BATCH//2
    place = pl.int_range(rows)
    frame = pl.select(a=pl.when(place == BATCH + 7).then(None).when(place == rows - 1).then(float("inf")).otherwise(place % 1000).cast(pl.Float64),
                      s=pl.when(place.is_in([BATCH - 1, 2*BATCH])).then(pl.lit("odd")).otherwise(pl.lit("even")))
    frame.write_parquet(tmp_path/"large.parquet", row_group_size=70_000)
    return tmp_path/"large.parquet"


CONTRACT = Contract("large", dict(a=Column("a", "number", max=999), s=Column("s", "string", values=("even",), severity=dict(values="quarantine"))), (), rows=(RowRule("a < 999 or s == 'odd'", "warn"),))


def test_a_table_of_many_batches_has_the_first_broken_rows_where_they_are(large):
    report = check(CONTRACT, pl.scan_parquet(large))
    assert {v.rule: (v.rows, v.first) for v in report.violations} == {
        "nullable": (1, BATCH + 7), "infinite": (1, 5*BATCH//2 - 1), "values": (2, BATCH - 1), "a < 999 or s == 'odd'": (5*BATCH//2//1000 - 2, 999)}
    assert report.set_aside == 4 and report == check(CONTRACT, pl.read_parquet(large))


def test_good_rows_and_those_set_aside_of_a_large_file_are_the_file(large, tmp_path):
    guarded, frame = guard(CONTRACT, pl.scan_parquet(large), tmp_path), pl.read_parquet(large)
    aside = pl.read_parquet(tmp_path/"quarantine.parquet")
    assert aside["row"].to_list() == [BATCH - 1, BATCH + 7, 2*BATCH, 5*BATCH//2 - 1]
    assert frame[aside["row"]].equals(aside.drop("row", "reasons"))
    assert guarded.frame.collect().equals(frame.with_row_index("row").filter(~pl.col("row").is_in(aside["row"].to_list())).drop("row"))
    assert quarantine(CONTRACT, frame)[0].collect(engine="streaming").equals(guarded.frame.collect(engine="streaming"))


def test_a_refused_table_leaves_the_rows_set_aside_to_be_looked_at(large, tmp_path):
    with pytest.raises(ContractError, match="column 'b': is missing from the table.*quarantine.parquet"):
        guard(Contract("large", CONTRACT.columns | dict(b=Column("b", "integer")), ()), pl.scan_parquet(large), tmp_path)
    assert pl.read_parquet(tmp_path/"quarantine.parquet").height == 4


def test_memory_does_not_grow_with_the_table(large, tmp_path):
    code = f"""
import sys, resource
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT/'tests')!r}]
import polars as pl
from test_contract import CONTRACT
from mlproj.data.guard import check
assert check(CONTRACT, pl.scan_parquet([{str(large)!r}]*int(sys.argv[1]))).rows > 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)"""
    peak = {n: int(subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True, text=True, check=True).stdout) for n in (4, 80)}
    # 80 files are 40 million rows: 1.4 GB if they were kept
    assert peak[80] < peak[4] + 300, peak


# Both doors: tables and requests

ALL = Contract("all", dict(i=Column("i", "integer", nullable=True), t=Column("t", "time", nullable=True), x=Column("x", "number", nullable=True), v=Column("v", "vector", length=3, nullable=True),
                           s=Column("s", "string", nullable=True), flag=Column("flag", "boolean", nullable=True), w=Column("w", "vector", length=1, nullable=True)),
               ("s", "v", "t", "i", "w", "flag", "x"))
MOMENTS = [datetime(1, 1, 1, tzinfo=UTC), datetime(1883, 11, 18, 12, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), datetime(1970, 1, 1, tzinfo=UTC),
           datetime(2013, 3, 10, 6, 59, 59, 999_999, UTC), datetime(2262, 4, 11, 1, 2, 3, 456_789, UTC), datetime(9999, 12, 31, 23, 59, 59, 123_457, UTC)]


def some_row(rng) -> dict:
    number = lambda: rng.choice([0.0, -0.0, 0.1, 1e-320, -1.7e308, rng.random(), float(rng.randrange(2**63)), rng.gauss(0, 1e9)])
    moment = rng.choice([*MOMENTS, datetime(1900, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(2*10**16))])
    row = dict(i=rng.randrange(-2**53, 2**53), t=moment, x=number(), v=[number() for _ in range(3)], s=rng.choice(["", "é", "\U0001f6eb", "null", "a\nb"]), flag=rng.random() < .5, w=[number()])
    return {n: None if rng.random() < .15 else value for n, value in row.items()}


def body_of(row: dict, rng) -> bytes:
    zone = timezone(timedelta(minutes=rng.choice([0, -300, 330, 845])))
    try: at = row["t"] and row["t"].astimezone(zone).isoformat()
    except OverflowError: at = row["t"].isoformat().replace("+00:00", "Z")  # that zone is in another year
    return json.dumps(row | dict(t=at)).encode()


@pytest.mark.parametrize("unit, zone", [("us", "UTC"), ("us", "America/New_York"), ("ms", "Asia/Kolkata")])
def test_a_table_and_the_requests_of_its_rows_are_the_same_to_the_last_bit(unit, zone):
    rng, reader = random.Random(0), RequestReader(ALL)
    rows = [some_row(rng) for _ in range(2000)]
    if unit == "ms": rows = [row | dict(t=row["t"] and row["t"].replace(microsecond=row["t"].microsecond//1000*1000)) for row in rows]
    table = pl.DataFrame(rows, schema=dict(i=pl.Int64, t=pl.Datetime("us", "UTC"), x=pl.Float64, v=pl.List(pl.Float64), s=pl.String, flag=pl.Boolean, w=pl.Array(pl.Float64, 1)))
    table = table.with_columns(pl.col("t").dt.cast_time_unit(unit).dt.convert_time_zone(zone))
    numbers, strings = pack(ALL, table)
    assert numbers.flags.c_contiguous and numbers.shape == (2000, ALL.number_width) == (2000, 8)
    for i, row in enumerate(rows):
        n, s, warnings = reader.read(body_of(row, rng))
        assert n.tobytes() == numbers[i].tobytes() and s[0].tolist() == strings[i].tolist() and not warnings
    for some in (table[:0], table[7:8]): assert pack(ALL, some)[0].tobytes() == numbers[7:7 + some.height].tobytes()


def test_every_number_stands_where_the_slices_say():
    numbers, _ = pack(ALL, pl.DataFrame(dict(i=[7], t=[datetime(1970, 1, 2, tzinfo=UTC)], x=[0.5], v=[[1, 2, 3]], s=["a"], flag=[True], w=[[9.0]])))
    assert {n: numbers[0, place].tolist() for n, place in ALL.number_slices.items()} == dict(v=[1, 2, 3], t=[86400], i=[7], w=[9], flag=[1], x=[0.5])
    assert ALL.numbers == tuple(ALL.number_slices)


def test_nanoseconds_are_rounded_alike_at_both_doors():
    contract, texts = Contract("t", dict(t=Column("t", "time")), ("t",)), ["1969-12-31T23:59:59.9999995", "1970-01-01T00:00:00.0000005", "2013-01-01T00:00:00.1234564", "2013-01-01T00:00:00.1234565"]
    table = pl.DataFrame(dict(t=pl.Series([t + "00" for t in texts]).str.to_datetime("%Y-%m-%dT%H:%M:%S%.9f", time_unit="ns", time_zone="UTC")))
    read = [RequestReader(contract).read(json.dumps(dict(t=t + "Z")).encode())[0] for t in texts]
    assert np.concatenate(read).tobytes() == pack(contract, table)[0].tobytes()


def test_times_are_seconds_since_1970_whatever_the_zone_and_the_season():
    new_york, contract = ZoneInfo("America/New_York"), Contract("t", dict(t=Column("t", "time")), ("t",))
    walls = [datetime(2013, 3, 10, 1, 59, 59), datetime(2013, 3, 10, 3), datetime(2013, 11, 3, 1, 30), datetime(2013, 11, 3, 1, 30, fold=1), datetime(1969, 7, 20, 16, 17, 40, 250_000), datetime(1883, 11, 18, 12, 30)]
    moments = [wall.replace(tzinfo=new_york) for wall in walls]
    by_hand = [moment.timestamp() for moment in moments]
    assert by_hand[1] - by_hand[0] == 1 and by_hand[3] - by_hand[2] == 3600  # the oracle knows of the seasons
    table = pl.DataFrame(dict(t=[m.astimezone(UTC) for m in moments])).with_columns(pl.col("t").dt.convert_time_zone("America/New_York"))
    assert pack(contract, table)[0][:, 0].tolist() == by_hand
    assert [RequestReader(contract).read(json.dumps(dict(t=m.astimezone(UTC).isoformat())).encode())[0].item() for m in moments] == by_hand
    days = [date(1582, 10, 15), date(1969, 12, 31), date(2013, 3, 10), date(9999, 12, 31)]
    assert pack(contract, pl.DataFrame(dict(t=days)))[0][:, 0].tolist() == [(day - date(1970, 1, 1)).days*86400.0 for day in days]


@pytest.mark.parametrize("times", [pl.Series("t", [datetime(2013, 1, 1)]), pl.Series("t", ["2013-01-01T00:00:00Z"]), pl.Series("t", [1356998400])])
def test_what_is_no_instant_is_refused_as_a_feature(times):
    contract = Contract("t", dict(t=Column("t", "time")), ("t",))
    with pytest.raises(ContractError, match="column 't': is "): pack(contract, times.to_frame())
    assert [v.severity for v in check(contract, times.to_frame()).violations] == ["refuse"]
    if times.dtype == pl.Datetime("us"): assert not check(Contract("t", contract.columns, ()), times.to_frame()).violations  # a time that no model sees may be zoneless


@pytest.mark.parametrize("seed", range(3))
def test_rows_with_vectors_that_the_guard_lets_through_are_those_that_the_graph_takes(seed):
    rng, contract = random.Random(seed), Contract("v", dict(v=Column("v", "vector", length=2, nullable=True, severity=dict(infinite="warn"))), ("v",))
    element = lambda: rng.choice([0.5, -1.0, None, float("nan"), float("inf")] + [1.0]*10)
    table = pl.DataFrame(dict(v=[None if rng.random() < .2 else [element() for _ in range(rng.choice([2, 2, 2, 2, 1, 0, 3]))] for _ in range(300)]), schema=dict(v=pl.List(rng.choice([pl.Float32, pl.Float64]))))
    good, bad = (part.collect() for part in quarantine(contract, table))
    fine = lambda v: v is None or len(v) == 2 and None not in v and not any(x != x for x in v)
    assert good["v"].to_list() == [v for v in table["v"].to_list() if fine(v)] and bad.height + good.height == 300 and 50 < bad.height < 250
    np.testing.assert_array_equal(pack(contract, good)[0], [v or [np.nan]*2 for v in good["v"].to_list()])
    with pytest.raises(ContractError, match=f"column 'v': is not 2 numbers in row {good.height};"): pack(contract, pl.concat([good, bad.select("v")]))
    for row in bad["row"].to_list():
        with pytest.raises(ContractError, match="in row 0"): pack(contract, table[row])
    assert check(contract, table).set_aside == bad.height


REQUESTS = ["null", "0", "1.0", "1.5", "-1e300", "1e999", "true", '"a"', '""', '"2013-01-01T00:00:00Z"', '"2013-01-01T00:00:00"', "[]", "[1, 2]", "[1, 2.5, -3e5]", "[1, 2, null]", '[1, 2, "3"]', "[1, 2, [3]]", "[true, 1, 2]", "[1, 2, 3, 4]", "{}", "12345678901234567890"]


@pytest.mark.parametrize("nullable", [False, True])
def test_the_published_schema_accepts_what_the_reader_accepts(nullable):
    jsonschema = pytest.importorskip("jsonschema")
    columns = {n: Column(n, c.kind, length=c.length, nullable=nullable) for n, c in ALL.columns.items()}
    columns |= dict(s=Column("s", "string", nullable=nullable, values=("a", "b"), severity=dict(values="refuse")))
    contract = Contract("all", columns, ALL.features)
    reader, validator, right = RequestReader(contract), jsonschema.Draft202012Validator(json_schema(contract)), dict(i="1", t='"2013-01-01T00:00:00Z"', x="1.5", v="[1, 2, 3]", s='"a"', flag="true", w="[0]")
    differ = []
    for name in ALL.features:
        for value in REQUESTS:
            body = "{" + ", ".join(f'"{n}": {value if n == name else text}' for n, text in right.items()) + "}"
            try: accepted = bool(reader.read(body.encode()))
            except ContractError as error:
                accepted = False
                assert f"field '{name}'" in str(error), error
            if accepted != validator.is_valid(json.loads(body)): differ.append((name, value, accepted))
    # JSON schema looks at the format of a time only when asked to, knows no limits of numbers, and takes 1.0 for an integer
    assert {(n, v) for n, v, _ in differ} <= {("t", '""'), ("t", '"a"'), ("t", '"2013-01-01T00:00:00"'), ("i", "1.0"), ("i", "12345678901234567890"), ("x", "1e999"), ("i", "-1e300")}, differ
    assert set(json_schema(contract)["required"]) == set(ALL.features)


def test_a_contract_is_inferred_from_times_and_vectors_and_takes_its_own_example():
    table = pl.DataFrame(dict(t=[datetime(2013, 1, day, tzinfo=UTC) for day in (1, 2, 9)], v=[[0.5, 1.5], [2.5, -0.5], [1.0, 1.0]], n=[1, 2, 3]), schema_overrides=dict(v=pl.Array(pl.Float32, 2)))
    contract = infer_contract(Profile.of(table), "c", ("t", "v", "n"))
    assert not check(contract, table).warned and contract_from_yaml(contract_yaml(contract)) == contract
    assert example_row(contract) == dict(t="2013-01-02T00:00:00Z", v=[1.0, 1.0], n=2)
    numbers, _, warnings = RequestReader(contract).read(json.dumps(example_row(contract)).encode())
    assert numbers.tolist() == [[datetime(2013, 1, 2, tzinfo=UTC).timestamp(), 1, 1, 2]] and not warnings
    odd = table.with_columns(v=pl.Series([[0.5, float("inf")], None, [1.0, 1.0]]), t=pl.lit(None, pl.Datetime("us", "UTC")))
    relaxed = relax(contract, Profile.of(odd))
    assert {(c.where, c.rule) for c in diff_contracts(contract, relaxed)} == {("column v", "nullable"), ("column t", "nullable"), ("column v", "severity of infinite")}
    assert not check(relaxed, odd).quarantined and relaxed.columns["v"].why["infinite"].startswith("1 numbers in 3 rows")


def test_rules_between_times_hold_in_requests_as_in_tables():
    contract = Contract("trip", dict(a=Column("a", "time"), b=Column("b", "time", nullable=True)), ("a", "b"), rows=(RowRule("a < b"),))
    table = pl.DataFrame(dict(a=[datetime(2013, 1, 1, 12, tzinfo=UTC)]*3, b=[datetime(2013, 1, 1, hour, tzinfo=UTC) for hour in (13, 12)] + [None]))
    reader, kept = RequestReader(contract), []
    for row in table.iter_rows(named=True):
        try: reader.read(json.dumps({n: t and t.astimezone(timezone(timedelta(hours=-5))).isoformat() for n, t in row.items()}).encode())
        except ContractError: kept.append(False)
        else: kept.append(True)
    assert kept == [True, False, True] == [not broken for broken in table.select(contract.judges[0][1].broken()).to_series()]
