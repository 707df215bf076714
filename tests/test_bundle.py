"""What a bundle refuses. (The chapter 30_bundle proves the same on its own bundle; here with more columns, and with none of a kind.)"""
import json
import os
import shutil

import numpy as np
import pytest
from bundles import by_hand, small_bundle, small_contract, small_rows

from mlproj.data.contract import pack
from mlproj.project import ParityError, RegistryError
from mlproj.serve.bundle import FILES, Bundle, verify_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory): return small_bundle(tmp_path_factory.mktemp("bundle")/"b")


@pytest.fixture
def copy(bundle, tmp_path): return shutil.copytree(bundle, tmp_path/"copy")


@pytest.mark.parametrize("name", ("manifest.json", *FILES))
def test_a_flipped_byte_is_refused_wherever_it_is(copy, name):
    data = (copy/name).read_bytes()
    places = {*range(0, len(data), max(1, len(data)//150)), len(data) - 1}
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
    lambda c: hostile_manifest(c, format=2), lambda c: hostile_manifest(c, files={}), lambda c: hostile_manifest(c, files=[]), lambda c: hostile_manifest(c, more=1),
    lambda c: hostile_manifest(c, files={n: dict(sha256="0", size=True) for n in FILES}), lambda c: hostile_manifest(c, files={n: None for n in FILES}),
    lambda c: (c/"manifest.json").write_text("["*60_000), lambda c: (c/"manifest.json").write_bytes(b"\xff"), lambda c: (c/"manifest.json").write_text(" "*100_000),
])
def test_what_was_not_written_is_refused(copy, change):
    change(copy)
    with pytest.raises(RegistryError): verify_bundle(copy)


def test_no_bundle_at_all(tmp_path):
    with pytest.raises(RegistryError, match="is not a bundle"): verify_bundle(tmp_path/"nothing")
    with pytest.raises(RegistryError, match="is missing"): verify_bundle(tmp_path)


@pytest.mark.parametrize("numbers, strings", [(2, 2), (3, 0), (0, 2)])
def test_predictions_are_those_of_the_oracle(tmp_path, numbers, strings):
    opened = Bundle.open(small_bundle(tmp_path/"b", numbers=numbers, strings=strings, bias=0.3))
    rows = small_rows(small_contract(numbers=numbers, strings=strings), 100, seed=1)
    np.testing.assert_allclose(opened.predict_frame(rows), by_hand(opened.contract, rows, 0.3), atol=1e-6)
    singles = [opened.predict(*pack(opened.contract, rows[i:i + 1]))[0] for i in range(rows.height)]
    np.testing.assert_allclose(singles, opened.predict_frame(rows), atol=1e-7)
    assert opened.predict_frame(rows).dtype == np.float32 and opened.predict_frame(rows[:0]).shape == (0,)
    assert opened.verify_golden() <= 1e-6


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
