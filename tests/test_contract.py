"Contracts: texts that people write, tables larger than a batch, memory of a process."
import random, subprocess, sys
from pathlib import Path

import polars as pl
import pytest

from mlproj.data.contract import Column, Contract, JoinRule, RowRule, TableRules, contract_from_yaml, contract_yaml, diff_contracts, parse_rule
from mlproj.data.guard import BATCH, check, guard, quarantine
from mlproj.project import ConfigError, ContractError

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["yes", "null", "1", "1.5", "", " ", "a: b", "{x}", "- y", "é\U0001f6eb", "a\nb", "#", "'", '"', "2013-01-01", "~", "<<", "\t", "a" * 300, "a\x85b", "\u2028", "a \u2029 b", "\ufeff"]
KINDS = dict(a="number", i="integer", s="string", flag="boolean", t="time")


def some_contract(rng) -> Contract:
    "A random contract with texts that YAML likes to take for something else."
    severity = lambda rules: {r: rng.choice(["warn", "refuse"]) for r in rules if rng.random() < 0.3}
    columns = {}
    for name in {rng.choice(["x", "yes", "1", "null", "a b", "é", "a: b", "on", "a\u2028", "\u2029b"]) for _ in range(4)}:
        kind, why = rng.choice(["number", "string", "boolean", "time"]), {"nullable": rng.choice(TEXTS)}
        more = dict(min=-1.5, max=rng.choice([2, 1e300])) if kind == "number" else dict(values=tuple(rng.sample(TEXTS, 4)), pattern=".*") if kind == "string" else {}
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
