"""Injects faults into the joined flights and says what the contract caught; or measures how fast it looks.

    python bench/contract.py              26 faults at 1, 5, 20 and 100 % of the rows, seeded
    python bench/contract.py speed FILE   a Parquet file checked against a contract of its first rows, beside the same counts as one plain Polars query

The contract is inferred from the training part (before September) and reviewed as a person would: the lines in `reviewed`. A fault is caught when a rule is
broken that the clean table keeps, or is broken by more rows. Where a row fault is quarantined, the rows set aside are compared with those injected, row by row.
"""
import sys, time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mlproj.data.contract import RowRule, infer_contract
from mlproj.data.guard import check, quarantine
from mlproj.data.profile import Profile
from mlproj.examples.flights import KEY, WEATHER, dataset

RATES = (0.01, 0.05, 0.2, 1.0)
HARDNESS = dict(refuse=2, quarantine=1, warn=0)
col = pl.col


def reviewed(contract):
    "What a person adds to the inferred contract."
    hard = dict(distance=("min", "max"), temp=("min", "max"), carrier=("values",), origin=("values",), tailnum=("pattern",), dest_lat=("min", "max"), dest_lon=("min", "max"))
    columns = {n: replace(c, severity={rule: "quarantine" for rule in hard.get(n, ())}) for n, c in contract.columns.items()}
    columns["temp"] = replace(columns["temp"], min=-20, max=120)  # the winter of the training part was only two months long
    night = RowRule("arr_minute > dep_minute or dep_minute >= 1080", why="only flights after 18:00 land the next day")
    return replace(contract, columns=columns, rows=(night,), table=replace(contract.table, freshness="2d"))


def when(column, value):
    "A row fault: the value of a column in the rows that are hit."
    return lambda t, hit: t.with_columns(pl.when(hit).then(value).otherwise(col(column)).alias(column))


def swapped(t, hit):
    return t.with_columns(dest_lat=pl.when(hit).then("dest_lon").otherwise("dest_lat"), dest_lon=pl.when(hit).then("dest_lat").otherwise("dest_lon"))


def days_missing(t, share, rng):
    days = t["departure"].dt.date().unique().sort()[1:-1].to_list()
    gone = rng.choice(days, max(1, round(share*len(days))), replace=False).tolist()
    return t.filter(~col("departure").dt.date().is_in(gone))


def lost_partners(t, hit):
    return t.with_columns(pl.when(~hit).then(col(c)).alias(c) for c in WEATHER)


# name: (function of the table and the rows that are hit, can a contract see it?)
ROW_FAULTS = {
    "nulls where none were (distance)": (when("distance", None), True),
    "NaN (temp)": (when("temp", float("nan")), True),
    "infinity (temp)": (when("temp", float("inf")), True),
    "negative distance": (when("distance", -col("distance")), True),
    "x1000 (distance)": (when("distance", col("distance")*1000), True),
    "unknown carrier": (when("carrier", pl.lit("ZZ")), True),
    "lower-cased codes (carrier)": (when("carrier", col("carrier").str.to_lowercase()), True),
    "padded codes (origin)": (when("origin", col("origin") + " "), True),
    "mojibake (tailnum)": (when("tailnum", "Ã" + col("tailnum")), True),
    "truncated codes (carrier)": (when("carrier", col("carrier").str.head(1)), True),
    "lat and lon swapped": (swapped, True),
    "midnight as 24:00 (arr_minute)": (when("arr_minute", 1440), True),
    "departure after arrival": (when("arr_minute", pl.max_horizontal(col("dep_minute") - 30, 1)), True),
    "temperature in Celsius": (when("temp", (col("temp") - 32)/1.8), False),
    "constant sensor (temp)": (when("temp", 57.02), False),
    "truncated tail numbers": (when("tailnum", col("tailnum").str.head(3)), False),
    "time zone shifted by 5 h": (when("departure", col("departure").dt.offset_by("5h")), False),
    "labels all false": (when("late", False), False),
}
# the same for faults of the table: function of the table, the share and a generator
TABLE_FAULTS = {
    "number as text (distance)": (lambda t, share, rng: t.with_columns(col("distance").cast(pl.String)), True),
    "column dropped (temp)": (lambda t, share, rng: t.drop("temp"), True),
    "column renamed (temp)": (lambda t, share, rng: t.rename(dict(temp="temperature")), True),
    "rows twice": (lambda t, share, rng: pl.concat([t, t.sample(fraction=share, seed=0)]), True),
    "days missing": (days_missing, True),
    "rows lost evenly": (lambda t, share, rng: t.sample(fraction=1 - share, seed=0, shuffle=False), False),
}


def new_violations(report, clean) -> list:
    "What is broken that was not, or by more rows."
    before = {(v.column, v.rule): v.rows for v in clean.violations}
    return sorted((v for v in report.violations if v.rows > before.get((v.column, v.rule), 0) or (v.column, v.rule) not in before), key=lambda v: -HARDNESS[v.severity])


def exact(contract, frame, hit, before) -> str:
    "Proves that no row is lost, and says how the rows set aside (beyond `before`) compare with those that are hit."
    good, bad = (part.collect() for part in quarantine(contract, frame))
    assert good.height + bad.height == frame.height
    aside = set(bad["row"].to_list())
    assert good.equals(frame.filter(~pl.int_range(pl.len()).is_in(list(aside))))
    if hit is None or not aside - before: return ""
    wanted = set(np.flatnonzero(hit.to_numpy()).tolist())
    if aside - before == wanted - before: return "all, and no others"
    return f"{len(aside & wanted)/len(wanted):.0%}" + (", and no others" if aside <= wanted | before else ", and others")


def cases(table, joins, now):
    "(fault, can it be seen?, share, table, joins, now, rows hit) of every fault at every rate."
    rng = np.random.default_rng(0)
    for share in RATES:
        hit = pl.Series("hit", rng.random(table.height) < share)
        for name, (fault, seen) in ROW_FAULTS.items():
            faulty = fault(table.with_columns(hit), col("hit")).drop("hit")
            # what the fault left as it was is not faulty: a missing value stays missing
            changed = pl.any_horizontal(table[c].ne_missing(faulty[c]) for c in table.columns)
            yield name, seen, share, faulty, joins, now, table.select(changed).to_series()
        for name, (fault, seen) in TABLE_FAULTS.items(): yield name, seen, share, fault(table, share, rng), joins, now, None
        weather = replace(joins[0], unmatched=round(share*table.height), nulls={c: max(share, s) for c, s in joins[0].nulls.items()})
        yield "a join loses its partners", True, share, lost_partners(table.with_columns(hit), col("hit")).drop("hit"), (weather, *joins[1:]), now, None
        yield "newest row 1, 5, 20, 100 days old", True, share, table, joins, now + share*timedelta(days=100), None


def faults() -> None:
    whole = dataset()
    table, now = whole.frame, datetime(2014, 1, 1, 6)
    train = table.filter(col("departure").dt.replace_time_zone(None) < datetime(2013, 9, 1))
    contract = reviewed(infer_contract(Profile.of(train, key=KEY), "flights", ["distance"], KEY, "departure", "late", joins=whole.joins, rows=table.height))
    clean = check(contract, table, now, whole.joins)
    before = set(quarantine(contract, table)[1].collect()["row"].to_list())
    print("The clean table:", clean, "", sep="\n")
    tried, caught, lines = {True: 0, False: 0}, {True: 0, False: 0}, {}
    for name, seen, share, faulty, joins, at, hit in cases(table, whole.joins, now):
        report = check(contract, faulty, at, joins)
        found = new_violations(report, clean)
        tried[seen], caught[seen] = tried[seen] + 1, caught[seen] + bool(found)
        lines.setdefault((name, seen), []).append((said(found), exact(contract, faulty, hit, before)))
    print("| fault | " + " | ".join(f"{r:.0%}" for r in RATES) + " | of the faulty rows, set aside |\n|" + " --- |"*(len(RATES) + 2))
    for (name, seen), cells in lines.items():
        aside = dict.fromkeys(aside for _, aside in cells if aside)
        print(f"| {name}{'' if seen else ' *'} | " + " | ".join(cell for cell, _ in cells) + f" | {', '.join(aside)} |")
    print(f"\n* all values are plausible: no rule on rows or columns can tell, drift may.\nCaught {caught[True]} of {tried[True]} that rules can see, "
          f"and {caught[False]} of {tried[False]} of the others (*). In all {sum(tried.values())}, good and set aside together are the table, row by row.")


def said(found) -> str:
    "The hardest rule that caught a fault, and whether the table is refused for its share of rows set aside."
    rules = [v for v in found if v.rule != "quarantined"] or found
    if not rules: return "-"
    refused = ", table refused" if len(rules) < len(found) else ""
    return f"{rules[0].severity} {'row rule' if ' ' in rules[0].rule and not rules[0].rule.startswith('join') else rules[0].rule}{refused}"


def speed(path: str) -> None:
    import resource
    frame = pl.scan_parquet(path)
    contract = infer_contract(Profile.of(frame.head(100_000)), "speed", [])
    rules = []
    for c in contract.columns.values():
        x = col(c.name)
        if not c.nullable or c.missing is not None: rules.append(x.null_count())
        if c.min is not None: rules += [(x < c.min).sum(), (x > c.max).sum()]
        if c.values is not None: rules.append((~x.is_in(list(c.values))).sum())
        if c.pattern is not None: rules.append((~x.str.contains(f"^(?:{c.pattern})$")).sum())
    begun = time.perf_counter()
    report = check(contract, frame)
    took, peak = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10
    begun = time.perf_counter()
    frame.select(test.alias(str(i)) for i, test in enumerate(rules)).collect(engine="streaming")
    plain = time.perf_counter() - begun
    print(f"{report.rows:,} rows, {len(rules)} rules: check {took:.2f} s, peak {peak:,.0f} MB; one plain query {plain:.2f} s; ratio {took/plain:.2f}")


if __name__ == "__main__":
    speed(sys.argv[2]) if sys.argv[1:2] == ["speed"] else faults()
