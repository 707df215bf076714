"""Measures mlproj beside peers and limits, in one run on one machine; prints the tables of bench/README.md.

    python bench/run.py            all
    python bench/run.py training   one of: startup, training, graph

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
    "The flights as the default run sees them: features and the tensors of train and test."
    import numpy as np
    from mlproj.data.contract import infer_contract
    from mlproj.data.profile import Profile
    from mlproj.data.snapshot import normalise
    from mlproj.data.split import time_split
    from mlproj.examples.flights import dataset
    from mlproj.pipeline import compose
    from mlproj.train.features import Tensors, encode, features_graph, fit_features
    config = compose()
    d, s, frame = config.data, config.split, normalise(dataset().frame)
    split = time_split(d.time, s.train_before, s.validation_before, s.zone)
    parts = {name: split.part(frame, name).collect() for name in ("train", "validation", "test")}
    profile = Profile.of(parts["train"])
    contract = infer_contract(profile, "flights", d.features, label=d.label)
    features = fit_features(profile, contract)
    graph = features_graph(features)
    return config, contract, features, graph, parts, {n: Tensors(*encode(graph, contract, p), p[d.label].to_numpy().astype(np.float32)) for n, p in parts.items()}


def training() -> None:
    "The network of the default run, four epochs, batches of 1,024: rows/s without the first epoch, and test AUC (of the last epoch; mlproj: of the best on validation)."
    import logging, tempfile, warnings
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from mlproj.pipeline import call
    from mlproj.train.evaluate import score
    from mlproj.train.fit import Throughput, TensorLoader, fit
    warnings.simplefilter("ignore"); logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    config, _, features, _, _, tensors = flights()
    torch.set_num_threads(config.train.threads)  # for all three alike: on layers this small more are slower
    train, test, epochs, batch = tensors["train"], tensors["test"], 4, 1024
    auc = lambda model: score(test.y, model.predict(test.x_numbers, test.x_codes))["roc_auc"]

    def fresh():
        pl.seed_everything(0, verbose=False)
        return call(config.model, "model", features=features)

    def ours():
        model = fresh()
        with tempfile.TemporaryDirectory() as folder: fitted = fit(model, train, tensors["validation"], folder, max_epochs=epochs, batch_size=batch, progress=False, accelerator="cpu")
        return fitted.rows_per_second, auc(model)

    def lightning():
        model, throughput = fresh(), Throughput(len(train))
        loader = DataLoader(TensorDataset(*map(torch.as_tensor, (train.x_numbers, train.x_codes, train.y))), batch_size=batch, shuffle=True)
        pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False, callbacks=[throughput]).fit(model, loader)
        return throughput.rows_per_second, auc(model)

    def loop():
        model, loader, seconds = fresh(), TensorLoader(train, batch, shuffle=True), []
        optimizer = torch.optim.AdamW(model.parameters(), model.lr, weight_decay=model.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, model.lr, total_steps=epochs*len(loader))
        for _ in range(epochs):
            begun = time.perf_counter()
            model.train()
            for x_numbers, x_codes, y in loader:
                optimizer.zero_grad()
                torch.nn.functional.binary_cross_entropy_with_logits(model(x_numbers, x_codes), y).backward()
                optimizer.step(); schedule.step()
            seconds.append(time.perf_counter() - begun)
        return len(train)*(epochs - 1)/sum(seconds[1:]), auc(model)

    found = {"plain PyTorch loop on sliced tensors (limit)": loop, "mlproj fit": ours, "Lightning, DataLoader(TensorDataset), its progress bar (peer)": lightning}
    runs = {name: [] for name in found}
    for _ in range(3):
        for name, run in found.items(): runs[name].append(run())
    rates = {name: statistics.median(r for r, _ in got) for name, got in runs.items()}
    limit, peer = list(rates.values())[0], list(rates.values())[2]
    table(["training", "rows/s", "of the limit", "against the peer", "test AUC"], [[n, f"{r:,.0f}", f"{r/limit:.2f}", f"{r/peer:.2f}×", f"{runs[n][0][1]:.4f}"] for n, r in rates.items()])


def graph() -> None:
    "One row through the whole graph, in microseconds (median of 5,000), and a batch of 16,384, in rows/s."
    from mlproj.data.contract import RequestReader, example_row, pack
    from mlproj.train.baseline import Logistic
    from mlproj.train.export import join
    from mlproj.train.features import session
    from mlproj.project import to_json
    config, contract, features, encoders, parts, tensors = flights()
    whole = join(encoders, Logistic(features).fit(tensors["train"]).graph())
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
    chosen = sys.argv[1:] or ["startup", "training", "graph"]
    for name in chosen: dict(startup=startup, training=training, graph=graph)[name]()
