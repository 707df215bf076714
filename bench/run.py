"""Measures mlproj beside peers and limits, in one run on one machine; prints the tables of bench/README.md.

    python bench/run.py            all
    python bench/run.py graph      one of: startup, graph

Ratios within a table travel between machines, absolute figures do not. Run on an idle machine.
"""
import os, statistics, subprocess, sys, time
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
ROOT = Path(__file__).resolve().parents[1]


def table(head: list[str], rows: list[list]) -> None:
    print("| " + " | ".join(head) + " |\n|" + " --- |"*len(head))
    for row in rows: print("| " + " | ".join(str(cell) for cell in row) + " |")
    print()


def startup() -> None:
    "Whole processes, median of 7, in turn, so that a drift of the machine meets all of them."
    commands = {"python -c pass (limit)": [sys.executable, "-c", "pass"],
                "python, argparse --help (limit of a lazy command line)": [sys.executable, "-c", "import argparse, json; argparse.ArgumentParser().parse_args(['--help'])"],
                "mlproj --help": [str(Path(sys.executable).parent/"mlproj"), "--help"],
                "bentoml --help": [str(Path(sys.executable).parent/"bentoml"), "--help"],
                "papermill --help": [str(Path(sys.executable).parent/"papermill"), "--help"]}
    times = {name: [] for name in commands}
    for turn in range(8):
        for name, command in commands.items():
            begun = time.perf_counter()
            subprocess.run(command, capture_output=True, cwd="/", check=True)
            if turn: times[name].append(time.perf_counter() - begun)  # the first turn warms the page cache
    medians = {name: statistics.median(t) for name, t in times.items()}
    table(["start-up", "s", "against argparse"], [[n, f"{m:.3f}", f"{m/list(medians.values())[1]:.1f}×"] for n, m in medians.items()])


def flights():
    "The flights as the default run sees them: contract, task, features, their graph and the parts."
    from mlproj.config import compose
    from mlproj.data.contract import infer_contract
    from mlproj.data.profile import Profile
    from mlproj.data.snapshot import normalise
    from mlproj.data.split import time_split
    from mlproj.data.task import fit_task
    from mlproj.examples.flights import dataset
    from mlproj.train.features import features_graph, fit_features
    config = compose()
    d, s, frame = config.data, config.split, normalise(dataset().frame)
    split = time_split(d.time, s.train_before, s.validation_before, s.zone)
    parts = {name: split.part(frame, name).collect() for name in ("train", "validation", "test")}
    profile = Profile.of(parts["train"])
    contract = infer_contract(profile, "flights", d.features, label=d.label)
    features = fit_features(profile, contract)
    return contract, fit_task(profile, d.label), features, features_graph(features), parts


def graph() -> None:
    "One row through the whole graph, in microseconds (median of 5,000), and a batch of 16,384, in rows/s."
    from mlproj.data.contract import RequestReader, example_row, pack
    from mlproj.train.baseline import Linear
    from mlproj.train.export import join
    from mlproj.train.features import Tensors, encode, session
    from mlproj.project import to_json
    contract, task, features, encoders, parts = flights()
    part = parts["train"]
    fitted = Linear(features, task).fit(Tensors(*encode(encoders, contract, part), task.encode(part[task.label])))
    whole = join(encoders, fitted.graph(), task)
    run, batch = session(whole, threads=1), parts["test"].head(16_384)
    numbers, strings = pack(contract, batch)
    reader, body = RequestReader(contract), to_json(example_row(contract)).encode()
    def median_us(f):
        times = []
        for i in range(5_200):
            begun = time.perf_counter_ns(); f(); times.append(time.perf_counter_ns() - begun)
        return statistics.median(times[200:])/1000
    one = dict(numbers=numbers[:1], strings=strings[:1])
    begun = time.perf_counter(); run.run(None, dict(numbers=numbers, strings=strings)); took = time.perf_counter() - begun
    table(["one row, logistic", "µs"], [["read and check the request", f"{median_us(lambda: reader.read(body)):.1f}"], ["the whole graph", f"{median_us(lambda: run.run(None, one)):.1f}"],
                                        ["(a batch of 16,384, rows/s)", f"{batch.height/took:,.0f}"]])


if __name__ == "__main__":
    os.chdir(ROOT)
    chosen = sys.argv[1:] or ["startup", "graph"]
    for name in chosen: dict(startup=startup, graph=graph)[name]()
