"""The registry under concurrency and sudden death; BentoML's own commands on what it stores."""
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from bundles import environment, key_pair, small_bundle

from mlproj.project import RegistryError
from mlproj.serve.bundle import sign_bundle
from mlproj.serve.registry import Registry


def bentoml(home, *arguments):
    return subprocess.run([sys.executable, "-m", "bentoml", *arguments], env=environment(home), capture_output=True, text=True, timeout=60)


def work(home, bundles, number):
    registry = Registry(home)
    for bundle in bundles:
        tag = registry.add(bundle)
        registry.promote(tag, reason=f"worker {number}")
        registry.promote(tag, alias=f"alias{number}")


def test_concurrent_adds_and_promotions_lose_nothing(tmp_path):
    import bentoml.models  # noqa: F401  before the fork, once for all
    bundles = [small_bundle(tmp_path/f"b{i}", run=f"run-{i}", bias=i/10) for i in range(16)]
    shared = small_bundle(tmp_path/"shared", run="shared", bias=9.0)  # all of them add this one
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=work, args=(tmp_path/"home", [*bundles[n::8], shared], n)) for n in range(8)]
    for worker in workers: worker.start()
    for worker in workers: worker.join(60)
    assert [w.exitcode for w in workers] == [0]*8
    registry = Registry(tmp_path/"home")
    versions, history = registry.versions("flights"), registry.history("flights")
    assert len(versions) == 17 and len({v.tag for v in versions}) == 17
    assert {v.tag for v in versions} == {e.tag for e in history}
    for n in range(8): assert len([e for e in history if e.alias == f"alias{n}"]) == 3
    champions = [e for e in history if e.alias == "champion"]
    assert [e.previous for e in champions] == [None, *(e.tag for e in champions[:-1])]  # no promotion overlooked another
    assert (tmp_path/"home/models/flights/latest").read_text() == versions[-1].version
    for version in versions: registry.resolve(version.tag)


DEATHS = dict(copying="r.shutil.copytree = die", storing="import bentoml._internal.models.model as m; m.Model.save = die", moving="r.os.rename = die", naming="r.write_atomic = die")


@pytest.mark.parametrize("moment", DEATHS)
def test_kill_during_add_leaves_the_store_usable(tmp_path, moment):
    home, first, second = tmp_path/"home", small_bundle(tmp_path/"one"), small_bundle(tmp_path/"two", run="run-2", bias=1.0)
    registry = Registry(home)
    registry.promote(registry.add(first))
    code = f"import os, signal\nimport mlproj.serve.registry as r\ndef die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n{DEATHS[moment]}\nr.Registry({str(home)!r}).add({str(second)!r})"
    assert subprocess.run([sys.executable, "-c", code], env=environment(home), timeout=60).returncode == -signal.SIGKILL
    from bentoml._internal.models.model import ModelStore
    assert len(ModelStore(home/"models").list()) == len(registry.versions("flights"))  # what `bentoml models list` reads
    tag = registry.add(second)
    assert registry.resolve("flights:latest").tag == tag and len(registry.versions("flights")) == 2
    assert registry.resolve().tag != tag and not (home/"mlproj/.staging").exists()


def test_bentoml_commands_see_our_models(tmp_path):
    tag = Registry(tmp_path/"home").add(small_bundle(tmp_path/"b"))
    listed = bentoml(tmp_path/"home", "models", "list", "-o", "json")
    assert [m["tag"] for m in json.loads(listed.stdout)] == [tag], listed.stderr
    got = bentoml(tmp_path/"home", "models", "get", "flights:latest", "-o", "path")
    assert os.path.isfile(os.path.join(got.stdout.replace("\n", ""), "bundle", "model.onnx")), got.stderr


def test_other_models_of_the_store_are_not_ours(tmp_path):
    import bentoml.models
    from bentoml._internal.models.model import ModelStore
    (tmp_path/"home/models").mkdir(parents=True)
    with bentoml.models.create("iris", _model_store=ModelStore(tmp_path/"home/models")): pass
    registry = Registry(tmp_path/"home")
    assert registry.names() == []
    registry.promote(registry.add(small_bundle(tmp_path/"b")))
    assert registry.names() == ["flights"] and registry.resolve().name == "flights"


def test_a_damaged_champion_says_so_and_can_be_rolled_back(tmp_path):
    registry = Registry(tmp_path/"home")
    good, bad = (registry.add(small_bundle(tmp_path/f"b{i}", run=f"run-{i}", bias=i)) for i in range(2))
    registry.promote(good); registry.promote(bad)
    (registry.models/bad.replace(":", "/")/"bundle/profile.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"profile\.json: .* cannot be used: .*`mlproj rollback flights`") as error: registry.resolve()
    assert "\n" not in str(error.value)
    assert registry.rollback("flights", reason="damaged").tag == good and registry.resolve().tag == good


def test_a_bundle_that_was_swapped_for_another_is_damaged(tmp_path):
    registry = Registry(tmp_path/"home")
    tag = registry.add(small_bundle(tmp_path/"b"))
    folder = registry.resolve(tag).path
    folder.rename(tmp_path/"away")
    small_bundle(folder, bias=2.0)
    with pytest.raises(RegistryError, match="another one"): registry.resolve(tag)


def test_signatures_are_asked_for_once_a_key_is_configured(tmp_path, monkeypatch):
    registry, (private, public) = Registry(tmp_path/"home"), key_pair(tmp_path)
    monkeypatch.setenv("MLPROJ_SIGNING_KEY", str(private))
    signed = registry.add(small_bundle(tmp_path/"signed"))
    monkeypatch.delenv("MLPROJ_SIGNING_KEY")
    registry.promote(signed)
    unsigned = registry.add(small_bundle(tmp_path/"unsigned", run="run-2"))
    registry.promote(unsigned)  # no key is configured yet
    monkeypatch.setenv("MLPROJ_VERIFY_KEY", str(public))
    with pytest.raises(RegistryError, match=f"{unsigned} cannot be used: is not signed, and MLPROJ_VERIFY_KEY asks for it.*`mlproj rollback flights`"): registry.resolve()
    with pytest.raises(RegistryError, match="is not signed"): registry.add(small_bundle(tmp_path/"more", run="run-3"))
    with pytest.raises(RegistryError, match="is not signed"): registry.promote(unsigned, alias="shadow")
    assert registry.rollback("flights", reason="not signed").tag == signed and registry.resolve().tag == signed
    sign_bundle(registry.versions("flights")[-1].path, private)  # the version keeps its name
    assert registry.promote(unsigned).tag == registry.resolve().tag == unsigned
    sign_bundle(registry.resolve().path, key_pair(tmp_path, "stranger")[0])
    with pytest.raises(RegistryError, match="was not made with the key that belongs to"): registry.resolve()
