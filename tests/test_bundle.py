"""What a bundle refuses. (The chapter 30_bundle proves the same on its own bundle; here with more columns, with none of a kind, and for every task.)"""
import io
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
from bundles import TASKS, by_hand, environment, key_pair, small_bundle, small_contract, small_graph, small_rows
from onnx import TensorProto
from onnx import helper as oh

import mlproj.serve.bundle as bundle_module
from mlproj.data.contract import pack
from mlproj.data.task import Task
from mlproj.project import ParityError, RegistryError, sha256, to_json
from mlproj.serve.bundle import FILES, Bundle, bundle_json, check_graph, describe_bundle, sign_bundle, verify_bundle, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory): return small_bundle(tmp_path_factory.mktemp("bundle")/"b")


@pytest.fixture
def copy(bundle, tmp_path): return shutil.copytree(bundle, tmp_path/"copy")


@pytest.mark.parametrize("name", ("manifest.json", *FILES))
def test_a_flipped_byte_is_refused_wherever_it_is(copy, name):
    data, pick = (copy/name).read_bytes(), random.Random(0)
    places = range(len(data)) if name == "manifest.json" else {0, len(data) - 1, *pick.sample(range(len(data)), 150)}
    for at in places:
        for bits in (1, 0x20, 0x80):  # 0x20 turns a space into NUL and a letter into its other case
            (copy/name).write_bytes(data[:at] + bytes([data[at] ^ bits]) + data[at + 1:])
            with pytest.raises(RegistryError) as error: verify_bundle(copy)
            assert str(copy) in error.value.where
    (copy/name).write_bytes(data)
    verify_bundle(copy)


def hostile_manifest(copy, **changes):
    manifest = json.loads((copy/"manifest.json").read_text())
    (copy/"manifest.json").write_text(json.dumps(manifest | changes, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("change", [
    lambda c: (c/"extra.json").write_text("{}"), lambda c: (c/".hidden").write_text(""), lambda c: (c/"sub").mkdir(), lambda c: (c/"facts.json").unlink(),
    lambda c: (c/"manifest.json").unlink(), lambda c: os.truncate(c/"profile.json", 0), lambda c: (c/"model.onnx").open("ab").write(b"\0"),
    lambda c: ((c/"model.onnx").rename(c.parent/"m"), (c/"model.onnx").symlink_to(c.parent/"m")), lambda c: (c.parent/"link").hardlink_to(c/"model.onnx"),
    lambda c: ((c/"manifest.json").rename(c.parent/"m"), (c/"manifest.json").symlink_to(c.parent/"m")), lambda c: ((c/"model.onnx").unlink(), os.mkfifo(c/"model.onnx")),
    lambda c: hostile_manifest(c, format=2.0), lambda c: hostile_manifest(c, format=True), lambda c: hostile_manifest(c, files={}), lambda c: hostile_manifest(c, files=[]), lambda c: hostile_manifest(c, more=1),
    lambda c: hostile_manifest(c, files={n: dict(sha256="0"*64, size=10**30) for n in FILES}), lambda c: hostile_manifest(c, files={n: dict(sha256="0"*64, size=10**12) for n in FILES}),
    lambda c: hostile_manifest(c, files={n: dict(sha256="0"*64, size=-1) for n in FILES}), lambda c: hostile_manifest(c, files={n: dict(sha256=[], size=1) for n in FILES}),
    lambda c: hostile_manifest(c, files={n: dict(sha256="0", size=True) for n in FILES}), lambda c: hostile_manifest(c, files={n: None for n in FILES}),
    lambda c: swap(c/"facts.json", c/"profile.json"), lambda c: (c/"golden.parquet").write_bytes(b""), lambda c: ((c/"profile.json").unlink(), (c/"profile.json").mkdir()),
    lambda c: (c/"profile.json").rename(c/"Profile.json"), lambda c: (c/"facts.json").symlink_to("/etc/passwd") if (c/"facts.json").unlink() is None else None,
    lambda c: hostile_manifest(c, files={"../" + n: dict(sha256="0"*64, size=1) for n in FILES}), lambda c: ((c/"m").mkdir(), (c/"model.sig").symlink_to("m")), lambda c: os.mkfifo(c/"model.sig"),
    lambda c: (c/"model.sig").write_bytes(b"0"*100_000),
    lambda c: (c/"manifest.json").write_text("["*60_000), lambda c: (c/"manifest.json").write_bytes(b"\xff"), lambda c: (c/"manifest.json").write_text(" "*100_000),
])
def test_what_was_not_written_is_refused(copy, change):
    change(copy)
    with pytest.raises(RegistryError): verify_bundle(copy)


def swap(a, b):
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second); b.write_bytes(first)


def test_an_older_format_is_refused_with_what_to_do(copy):
    (copy/"manifest.json").write_text((copy/"manifest.json").read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(RegistryError, match="is of format 1, and this mlproj reads format 2; package the run again"): Bundle.open(copy)


def test_no_bundle_at_all(tmp_path):
    with pytest.raises(RegistryError, match="is not a bundle"): verify_bundle(tmp_path/"nothing")
    with pytest.raises(RegistryError, match="is missing"): verify_bundle(tmp_path)


@pytest.mark.parametrize("numbers, strings, task, int8", [(2, 2, "binary", False), (3, 0, "binary", False), (0, 2, "multiclass", False), (2, 2, "multiclass", True), (2, 1, "regression", True), (2, 2, "quantiles", False)])
def test_predictions_are_those_of_the_oracle(tmp_path, numbers, strings, task, int8):
    task = TASKS[task]
    opened = Bundle.open(small_bundle(tmp_path/"b", numbers=numbers, strings=strings, bias=0.3, task=task, int8=int8))
    rows = small_rows(small_contract(numbers=numbers, strings=strings), 100, seed=1)
    expected = by_hand(opened.contract, rows, 0.3, task)
    assert opened.task == task and expected.shape == (100, *task.shape[1:])
    np.testing.assert_allclose(opened.predict_frame(rows), expected, rtol=1e-6, atol=2e-5 if task == TASKS["regression"] else 1e-6)
    singles = [opened.predict(*pack(opened.contract, rows[i:i + 1]))[0] for i in range(rows.height)]
    np.testing.assert_allclose(singles, opened.predict_frame(rows), rtol=1e-6, atol=1e-7)
    assert opened.predict_frame(rows).dtype == np.float32 and opened.predict_frame(rows[:0]).shape == (0, *task.shape[1:])
    assert opened.verify_golden() <= 1e-4 and opened.golden["prediction"].dtype == (pl.Array(pl.Float32, task.width) if task.width else pl.Float32)


def rewritten(tmp_path, bundle, **changes):
    "The same bundle with another graph, other facts or golden rows."
    old = Bundle.open(bundle)
    given = dict(graph=(bundle/"model.onnx").read_bytes(), contract=old.contract, profile=old.profile, golden=old.golden, facts=old.facts) | changes
    return write_bundle(tmp_path/"again", **given)


@pytest.mark.parametrize("other", ["multiclass", "regression", "quantiles"])
def test_a_graph_of_another_task_is_refused(tmp_path, bundle, other):
    wrong = rewritten(tmp_path, bundle, graph=small_graph(2, 2, task=TASKS[other]))
    with pytest.raises(RegistryError, match="not those of the contract and the task"): Bundle.open(wrong)


def stranger(folder, name: str, data: bytes):
    "A bundle as another tool may write it: other bytes of a file, and a manifest that fits them."
    (folder/name).write_bytes(data)
    manifest = json.loads((folder/"manifest.json").read_text())
    manifest["files"][name] = dict(sha256=sha256(data), size=len(data))
    (folder/"manifest.json").write_text(to_json(manifest))
    return folder


@pytest.mark.parametrize("change", [lambda f: {k: v for k, v in f.items() if k != "name"}, lambda f: {k: v for k, v in f.items() if k != "parity"}, lambda f: f | dict(metrics=None), lambda f: f | dict(baseline=[1]),
                                    lambda f: f | dict(name=5), lambda f: f | dict(created=None), lambda f: f | dict(metrics=dict(auc=float("nan"))), lambda f: [f], lambda f: f | dict(run="\ud800")])
def test_facts_that_a_stranger_wrote_are_refused_when_the_bundle_is_opened(copy, change):
    facts = json.loads((copy/"facts.json").read_text())
    for ensure_ascii in (True, False):
        data = json.dumps(change(facts), indent=1, sort_keys=True, ensure_ascii=ensure_ascii) + "\n"
        with pytest.raises(RegistryError, match="facts.json"): Bundle.open(stranger(copy, "facts.json", data.encode(errors="surrogatepass")))
    twice = to_json(facts).replace("{", '{"name": "another",', 1)  # which of two names it is, readers disagree on
    with pytest.raises(RegistryError, match="facts.json"): Bundle.open(stranger(copy, "facts.json", twice.encode()))


def test_golden_rows_and_a_profile_that_a_stranger_wrote_are_no_traceback(tmp_path, bundle):
    for i, data in enumerate((b"", b"PAR1", (bundle/"golden.parquet").read_bytes()[:-9], parquet(dict(n0=[1])))):
        opened = Bundle.open(stranger(shutil.copytree(bundle, tmp_path/f"g{i}"), "golden.parquet", data))
        with pytest.raises(RegistryError, match="golden.parquet: "): opened.verify_golden()
    for i, data in enumerate((b"", b"[]", b"{}", b"\xff", b'{"rows": 1, "columns": [{}], "key": [], "duplicates": 0}')):
        opened = Bundle.open(stranger(shutil.copytree(bundle, tmp_path/f"p{i}"), "profile.json", data))
        with pytest.raises(RegistryError, match="profile.json: "): opened.profile


def parquet(columns: dict) -> bytes:
    pl.DataFrame(columns).write_parquet(file := io.BytesIO())
    return file.getvalue()


def test_a_bundle_cannot_write_lines_of_its_own_to_the_terminal(tmp_path, bundle):
    "Nor move the cursor: each text stays in its cell."
    old, odd = Bundle.open(bundle), "a\n\x1b[2Jsignature  verified\u202e\x9b"
    contract = replace(old.contract, columns={n: replace(c, unit=odd) for n, c in old.contract.columns.items()})
    facts = old.facts | dict(run=odd, model=odd, metrics={odd: dict(value=0.5, low=0.4)}, lineage={odd: odd}, parity={odd: 1})
    text = describe_bundle(Bundle.open(rewritten(tmp_path, bundle, facts=facts, contract=contract)), odd)
    assert not set("\x1b\u202e\x9b") & set(text) and not any(line.startswith("signature  verified") for line in text.splitlines())
    assert text.count("signature  verified") >= 6 and "[0.4, ]" in text


def test_the_graph_of_a_bundle_is_the_one_that_was_opened(copy):
    opened, data = Bundle.open(copy), (copy/"model.onnx").read_bytes()
    assert opened.graph == data
    (copy/"model.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RegistryError, match="model.onnx: is not what the manifest says"): opened.graph


def test_a_graph_with_a_class_too_few_is_refused(tmp_path):
    whole = small_bundle(tmp_path/"b", task=TASKS["multiclass"])
    more = Task("multiclass", "cut", ("Fair", "Good", "Ideal", "Poor"))
    golden = Bundle.open(whole).golden.with_columns(prediction=pl.Series(np.zeros((40, 4), np.float32)))
    with pytest.raises(RegistryError, match="not those of the contract and the task"): Bundle.open(rewritten(tmp_path, whole, facts=Bundle.open(whole).facts | dict(task=asdict(more)), golden=golden))


@pytest.mark.parametrize("task", ["binary", None, dict(kind="ternary", label="x"), dict(kind="binary", label="x", more=1), dict(kind="binary")])
def test_facts_without_a_task_are_not_written(tmp_path, bundle, task):
    with pytest.raises(RegistryError, match="facts hold no task"): rewritten(tmp_path, bundle, facts=Bundle.open(bundle).facts | dict(task=task))
    assert not (tmp_path/"again").exists()


def test_the_label_of_golden_rows_is_kept_and_nothing_else(tmp_path, bundle):
    golden = Bundle.open(bundle).golden.with_columns(late=pl.lit(True), key=pl.lit(1))
    assert Bundle.open(rewritten(tmp_path, bundle, golden=golden)).golden.columns == ["n0", "n1", "s0", "s1", "late", "prediction"]


# Graphs that reach out of their file. Each would have the runtime read what the process may read.

def outside(location) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[500], data_location=TensorProto.EXTERNAL)
    for key, value in dict(location=str(location), offset="0", length="2000").items(): tensor.external_data.add(key=key, value=value)
    return tensor


def constant(**attribute): return oh.make_node("Constant", [], ["w"], **attribute)


def in_branch(tensor):
    branch = oh.make_graph([constant(value=tensor)], "branch", [], [oh.make_tensor_value_info("w", TensorProto.FLOAT, [500])])
    return [oh.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)]


def attributed(**fields):
    "A node with an attribute that is built field by field."
    node = constant()
    attribute = node.attribute.add(name="value")
    for field, value in fields.items():
        if isinstance(value, list): getattr(attribute, field).extend(value)
        else: getattr(attribute, field).CopyFrom(value)
    return [node]


def model_with(nodes=(), **more) -> bytes:
    value = oh.make_tensor_value_info("x", TensorProto.FLOAT, [500])
    functions, training = more.pop("functions", ()), more.pop("training", ())
    graph = oh.make_graph([*nodes, oh.make_node("Identity", ["x"], ["y"])], "g", [value], [oh.make_tensor_value_info("y", TensorProto.FLOAT, [500])], **more)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10, functions=functions)
    model.training_info.extend(training)
    return model.SerializeToString()


def function_with(nodes): return oh.make_function("", "F", [], ["w"], nodes, [oh.make_opsetid("", 20)])


def sparse(tensor, field="values"):
    found = onnx.SparseTensorProto(dims=[500])
    getattr(found, field).CopyFrom(tensor)
    return found


PLACES = {
    "initializer": lambda t: model_with(initializer=[t]), "sparse initializer": lambda t: model_with(sparse_initializer=[sparse(t)]), "sparse indices": lambda t: model_with(sparse_initializer=[sparse(t, "indices")]),
    "constant": lambda t: model_with([constant(value=t)]), "tensors": lambda t: model_with(attributed(tensors=[t])), "sparse tensor": lambda t: model_with(attributed(sparse_tensor=sparse(t))),
    "sparse tensors": lambda t: model_with(attributed(sparse_tensors=[sparse(t)])), "branch": lambda t: model_with(in_branch(t)), "graphs": lambda t: model_with(attributed(graphs=[in_branch(t)[0].attribute[0].g])),
    "function": lambda t: model_with(functions=[function_with([constant(value=t)])]), "branch in a function": lambda t: model_with(functions=[function_with(in_branch(t))]),
    "default of a function": lambda t: model_with(functions=[oh.make_function("", "F", [], ["w"], [], [oh.make_opsetid("", 20)], attribute_protos=[oh.make_attribute("value", t)])]),
    "training": lambda t: model_with(training=[onnx.TrainingInfoProto(algorithm=oh.make_graph([constant(value=t)], "t", [], []))]),
    "initialization": lambda t: model_with(training=[onnx.TrainingInfoProto(initialization=oh.make_graph([], "t", [], [], initializer=[t]))]),
}


@pytest.mark.parametrize("place", PLACES)
def test_data_in_other_files_are_refused_wherever_they_hide(place, tmp_path, bundle):
    for location in ("secret.bin", "../secret.bin", tmp_path/"secret.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"):
        with pytest.raises(RegistryError, match="keeps data in other files"): check_graph(PLACES[place](outside(location)))
    with pytest.raises(RegistryError, match="keeps data in other files"): rewritten(tmp_path, bundle, graph=PLACES[place](outside("secret.bin")))
    named = outside("secret.bin"); named.data_location = TensorProto.DEFAULT  # said in one of two ways
    unnamed = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[500], data_location=TensorProto.EXTERNAL)
    for tensor in (named, unnamed):
        with pytest.raises(RegistryError, match="keeps data in other files"): check_graph(PLACES[place](tensor))
    check_graph(PLACES[place](onnx.numpy_helper.from_array(np.zeros(500, np.float32), "w")))


def test_no_field_of_onnx_that_leads_to_tensors_or_nodes_is_overlooked():
    short = lambda name: name.removesuffix("Proto").removesuffix("Info").removesuffix("Tensor") or "Tensor"
    held = lambda message: {f.number: f.message_type.name for f in message.fields if f.message_type}
    messages = {m.name: held(m) for m in onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.values()}
    leads = {"TensorProto", "NodeProto"}
    while more := {name for name, fields in messages.items() if leads & set(fields.values())} - leads: leads |= more
    todo, found = ["ModelProto"], {}
    while todo:
        name = todo.pop()
        found[short(name)] = {number: short(kind) for number, kind in messages[name].items() if kind in leads}
        todo += [kind for kind in messages[name].values() if kind in leads and short(kind) not in found]
    assert found == bundle_module._HOLDS
    assert onnx.TensorProto.DESCRIPTOR.fields_by_name["external_data"].number == 13 and onnx.TensorProto.DESCRIPTOR.fields_by_name["data_location"].number == 14
    assert onnx.NodeProto.DESCRIPTOR.fields_by_name["domain"].number == 7


def test_a_bundle_that_was_written_by_a_stranger_reads_no_file(tmp_path, bundle, monkeypatch):
    np.arange(500, dtype=np.float32).tofile(tmp_path/"secret.bin")
    value = [oh.make_tensor_value_info(n, TensorProto.FLOAT, [500]) for n in "xy"]
    hostile = oh.make_model(oh.make_graph([oh.make_node("Add", ["x", "w"], ["y"])], "g", value[:1], value[1:], [outside("secret.bin")]), opset_imports=[oh.make_opsetid("", 20)], ir_version=10).SerializeToString()
    monkeypatch.chdir(tmp_path)
    assert onnxruntime.InferenceSession(hostile).run(None, dict(x=np.zeros(500, np.float32)))[0][-1] == 499  # the runtime alone reads it
    monkeypatch.setattr("mlproj.serve.bundle.check_graph", lambda *_: None)  # a stranger's tool checks nothing
    written = rewritten(tmp_path, bundle, graph=hostile)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match="model.onnx: keeps data in other files"): Bundle.open(written)


@pytest.mark.parametrize("nodes", [[oh.make_node("Shell", ["x"], ["z"], domain="com.example")], [oh.make_node("FusedMatMul", ["x", "x"], ["z"], domain="com.microsoft")], 
                                   [oh.make_node("If", ["yes"], ["w"], then_branch=oh.make_graph([oh.make_node("Shell", [], ["w"], domain="com.example")], "b", [], []))]])
def test_operations_of_other_domains_are_refused(nodes):
    with pytest.raises(RegistryError, match="has an operation of the domain 'com"): check_graph(model_with(nodes))
    with pytest.raises(RegistryError, match="has an operation of the domain 'com"): check_graph(model_with(functions=[function_with(nodes)]))


def test_what_is_no_graph_is_refused(tmp_path, bundle):
    deep = b""
    for tag in (b"\x32", b"\x2a", b"\x0a")*100: deep = tag + onnx_size(len(deep)) + deep  # a node of a graph of an attribute of a node, and so on
    for data in (b"\xff"*100, b"\x3a\x7f", b"\x3a" + onnx_size(len(deep)) + deep, (bundle/"model.onnx").read_bytes()[:-3]):
        with pytest.raises(RegistryError, match="is not an ONNX graph"): check_graph(data)
    flat = b"\x18\x00\x00\x00ORTM" + b"\0"*100  # the runtime's own format, which was not looked through
    for number, data in enumerate((b"", flat)):
        with pytest.raises(RegistryError): Bundle.open(rewritten(tmp_path/str(number), bundle, graph=data))


def onnx_size(n: int) -> bytes:
    "A length as Protocol Buffers write it."
    out = b""
    while n > 127: out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


# Signatures.

@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.delenv("MLPROJ_SIGNING_KEY", raising=False); monkeypatch.delenv("MLPROJ_VERIFY_KEY", raising=False)
    return key_pair(tmp_path)


def test_a_bundle_is_signed_as_it_is_written_and_opens_only_with_its_signature(tmp_path, keys, monkeypatch):
    plain = small_bundle(tmp_path/"plain")
    monkeypatch.setenv("MLPROJ_SIGNING_KEY", str(keys[0]))
    signed = small_bundle(tmp_path/"signed")
    assert verify_bundle(signed)["digest"] == verify_bundle(plain)["digest"] and Bundle.open(signed).signature == "unchecked"
    monkeypatch.setenv("MLPROJ_VERIFY_KEY", str(keys[1]))
    opened = Bundle.open(signed)
    assert opened.signature == "verified" and opened.verify_golden() <= 1e-6
    for call in (verify_bundle, Bundle.open):
        with pytest.raises(RegistryError, match="is not signed, and MLPROJ_VERIFY_KEY asks for it"): call(plain)


def test_signatures_of_others_are_refused(tmp_path, keys, monkeypatch, bundle):
    ours = shutil.copytree(bundle, tmp_path/"ours")
    other = rewritten(tmp_path, bundle, facts=Bundle.open(bundle).facts | dict(run="run-2"))
    sign_bundle(ours, keys[0]); sign_bundle(other, keys[0])
    monkeypatch.setenv("MLPROJ_VERIFY_KEY", str(keys[1]))
    assert verify_bundle(ours)["signature"] == verify_bundle(other)["signature"] == "verified"
    swap(ours/"model.sig", other/"model.sig")
    for folder in (ours, other):
        with pytest.raises(RegistryError, match="is the signature of other files"): verify_bundle(folder)
    sign_bundle(ours, key_pair(tmp_path, "stranger")[0])
    with pytest.raises(RegistryError, match="was not made with the key that belongs to"): verify_bundle(ours)
    sign_bundle(ours, keys[0])
    (ours/"facts.json").write_bytes((ours/"facts.json").read_bytes().replace(b"run-1", b"run-9"))
    with pytest.raises(RegistryError, match="facts.json: is not what the manifest says"): verify_bundle(ours)
    manifest = json.loads((ours/"manifest.json").read_text())  # and with a manifest that fits the change: only the signature can tell
    manifest["files"]["facts.json"]["sha256"] = sha256((ours/"facts.json").read_bytes())
    (ours/"manifest.json").write_text(to_json(manifest))
    with pytest.raises(RegistryError, match="is the signature of other files"): verify_bundle(ours)
    monkeypatch.delenv("MLPROJ_VERIFY_KEY")
    assert Bundle.open(ours).facts["run"] == "run-9"  # without a key, hashes alone cannot know


def test_one_changed_byte_of_a_signature_is_refused(tmp_path, keys, monkeypatch, copy):
    sign_bundle(copy, keys[0])
    monkeypatch.setenv("MLPROJ_VERIFY_KEY", str(keys[1]))
    data, pick = (copy/"model.sig").read_bytes(), random.Random(0)
    for at in pick.sample(range(len(data)), 200):
        (copy/"model.sig").write_bytes(data[:at] + bytes([data[at] ^ pick.randint(1, 255)]) + data[at + 1:])
        with pytest.raises(RegistryError): verify_bundle(copy)
    for other in (b"", data[:-1], data + b"\n", b" " + data, data*2, b"{}", b"[" * 50_000, json.dumps(json.loads(data)).encode()):
        (copy/"model.sig").write_bytes(other)
        with pytest.raises(RegistryError): verify_bundle(copy)


def test_verifying_does_not_import_the_signing_package(tmp_path, keys, copy):
    sign_bundle(copy, keys[0])
    code = f"import sys; from mlproj.serve.bundle import Bundle; print(Bundle.open({str(copy)!r}).signature, *[m for m in ('model_signing', 'sigstore', 'onnx', 'bentoml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path, MLPROJ_VERIFY_KEY=str(keys[1])), capture_output=True, text=True)
    assert done.stdout.split() == ["verified"], done.stderr


def test_strings_of_any_content_are_predicted(bundle):
    opened = Bundle.open(bundle)
    odd = np.array([["a\0b", "JFK"], ["", ""], ["é"*100_000, "\U0001f600"]], object)
    assert np.isfinite(opened.predict(np.zeros((3, 2)), odd)).all()


def test_another_function_fails_the_replay(tmp_path, monkeypatch):
    opened = Bundle.open(small_bundle(tmp_path/"b"))
    monkeypatch.setattr(Bundle, "predict_frame", lambda self, frame: frame["prediction"].to_numpy() + np.float32(2e-5))
    with pytest.raises(ParityError, match="golden row"): opened.verify_golden()


def test_equal_bundles_have_equal_digests(tmp_path):
    digests = {verify_bundle(small_bundle(tmp_path/str(i), bias=b))["digest"] for i, b in enumerate((0, 0, 0.1))}
    assert len(digests) == 2


# What it says of itself.

@pytest.mark.parametrize("task", TASKS)
def test_a_bundle_says_what_it_is(tmp_path, task):
    opened = Bundle.open(small_bundle(tmp_path/"b", task=TASKS[task]))
    text = describe_bundle(opened, "flights:v1")
    lines = [line.split() for line in text.splitlines()]
    assert ["bundle", "flights:v1"] in lines and ["n0", "integer", "0", "to", "24"] in lines and ["n1", "number", "0", "to", "24", "allowed"] in lines
    assert any(line[:1] == ["s0"] and line[2:] == ["EWR,", "JFK,", "LGA"] for line in lines) and any(line[:2] == ["average", "precision"] and line[2:] == ["0.47", "0.44"] for line in lines)
    assert TASKS[task].label in text and opened.digest[:12] in text and not [line for line in text.splitlines() if line != line.rstrip()]
    plain = json.loads(json.dumps(bundle_json(opened, "flights:v1"), allow_nan=False))
    assert Task.of(plain["task"]) == TASKS[task] and [i["name"] for i in plain["inputs"]] == list(opened.contract.features) and set(plain["files"]) == set(FILES)
    assert plain["files"]["model.onnx"] == (tmp_path/"b/model.onnx").stat().st_size
