"What is installed: the wheel and the Bento hold everything they need, work away from the checkout, and the pins are what runs."
import os, re, shlex, shutil, socket, ssl, subprocess, sys, tarfile, tempfile, zipfile
from configparser import ConfigParser
from datetime import datetime, timedelta, timezone
from importlib.metadata import packages_distributions, requires, version
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest
import yaml
from bundles import Server, environment, small_bundle
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_layers import PATHS, imports

from mlproj.serve.bundle import Bundle
from mlproj.serve.registry import Registry

ROOT = Path(__file__).resolve().parents[1]


def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT/"settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT/"constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines if line)}


def run(*command, **kwargs) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The wheel, built from a copy of the checkout, so that no build folder is left in it."
    copy, out = tmp_path_factory.mktemp("build")/"checkout", tmp_path_factory.mktemp("dist")
    left_out = (ROOT/".gitignore").read_text().replace("/\n", "\n").split()  # environments, run folders, caches
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", *left_out))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy, cwd=copy)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_every_config(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT/"mlproj").rglob("*.py")}
    expected |= {f"mlproj/{p.relative_to(ROOT).as_posix()}" for p in (ROOT/"conf").rglob("*") if p.suffix in (".yaml", ".py") and "__pycache__" not in p.parts}
    expected |= {f"mlproj/reports/{p.name}" for p in (ROOT/"nbs"/"reports").glob("*.ipynb")}
    assert "mlproj/conf/__init__.py" in expected
    assert not expected - held
    assert not [name for name in held if name.startswith(("tests/", "nbs/", "conf/"))]


def test_the_metadata_is_that_of_settings_ini(wheel):
    with zipfile.ZipFile(wheel) as archive:
        read = lambda name: next(archive.read(n).decode() for n in archive.namelist() if n.endswith(f".dist-info/{name}"))
        metadata, entries = read("METADATA"), read("entry_points.txt")
    cfg = settings()
    assert wheel.name.startswith(f"{cfg['lib_name']}-{cfg['version']}-")
    for line in [f"Name: {cfg['lib_name']}", f"Version: {cfg['version']}", f"Summary: {cfg['description']}", f"Requires-Python: >={cfg['min_python']}"]:
        assert line in metadata.splitlines()
    base = {Requirement(line.partition(": ")[2]).name for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line}
    assert base == {Requirement(r).name for r in cfg["requirements"].split()}
    script = cfg["console_scripts"].split("=")
    assert f"{script[0]} = {script[1]}" in entries and "mlproj = mlproj.testing" in entries


def test_the_installed_wheel_answers_from_an_empty_folder(wheel, tmp_path):
    target, empty = tmp_path/"site", tmp_path/"empty"
    empty.mkdir()
    run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps", "--target", target, wheel)
    env = os.environ | {"PYTHONPATH": str(target)}
    assert run(sys.executable, "-c", "import mlproj.cli; print(mlproj.cli.__file__)", cwd=empty, env=env).startswith(str(target))
    assert "run" in run(sys.executable, "-m", "mlproj.cli", "--help", cwd=empty, env=env)
    assert "run" in run(sys.executable, target/"bin"/"mlproj", "--help", cwd=empty, env=env)
    assert not list(empty.iterdir())  # asking for help leaves nothing behind


REQUIREMENTS = sorted({r for key, value in settings().items() if re.fullmatch(r"(\w+_)?requirements", key) for r in value.split()})


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_every_requirement_is_pinned_within_its_bounds_and_installed_as_pinned(requirement):
    wanted = Requirement(requirement)
    pin = pins().get(canonicalize_name(wanted.name))
    assert pin, f"constraints.txt does not pin {wanted.name}"
    assert wanted.specifier.contains(pin, prereleases=True)
    if wanted.name in ("dvc", "lakefs-spec"): pytest.importorskip(wanted.name.replace("-", "_"))  # they are not in [all]
    installed = version(wanted.name)
    assert installed.split("+")[0] == pin  # torch's 2.13.0+cpu is its 2.13.0


def test_every_pin_is_exact():
    assert all(re.fullmatch(r"[\w.!+-]+", pin) for pin in pins().values()), "constraints.txt has a line without =="


# The Bento: the service, its champion and its requirements, with nothing of training.

DOCKERFILE = (ROOT/"deploy/Dockerfile").read_text()
ROW = dict(n0=5, n1=1.5, s0="JFK", s1="LGA")


def bentofile() -> dict: return yaml.safe_load((ROOT/"bentofile.yaml").read_text())
def locked() -> set[str]: return {canonicalize_name(pin.partition("==")[0]) for pin in bentofile()["python"]["packages"]}


def closure(name: str, everywhere: bool) -> set[str]:
    "Every module that importing one imports, in turn; `everywhere` follows the imports of functions too."
    found, todo = {name}, [name]
    while todo:
        current = todo.pop()
        new = {*(current.rsplit(".", i)[0] for i in range(1, current.count(".") + 1)), *(imports(current, everywhere) if current in PATHS else ())} - found
        found |= new
        todo += new & PATHS.keys()
    return found


def test_the_bento_includes_every_module_that_the_service_imports():
    from bentoml._internal.bento.build_config import BentoPathSpec
    included = BentoPathSpec(bentofile()["include"], [], str(ROOT)).includes
    needed = {PATHS[name].relative_to(ROOT).as_posix() for name in closure("mlproj.serve.service", everywhere=True) & PATHS.keys()}
    assert "mlproj/serve/bundle.py" in needed and "mlproj/data/contract.py" in needed
    assert not sorted(path for path in needed if not included(path)), "add them to include in bentofile.yaml"
    assert not [path for path in (p.relative_to(ROOT).as_posix() for p in PATHS.values()) if included(path) and not path.startswith(("mlproj/data/", "mlproj/serve/", "mlproj/__init__.py", "mlproj/project.py"))]


def test_the_bento_installs_every_package_that_the_service_imports():
    distributions = packages_distributions()
    outside = {name.partition(".")[0] for start in ("mlproj.serve.service", "mlproj.serve.score") for name in closure(start, everywhere=False) - PATHS.keys()} - set(sys.stdlib_module_names)
    assert {"bentoml", "polars"} <= outside
    missing = {name for name in outside if not locked() & set(map(canonicalize_name, distributions[name]))}
    assert not missing, "add them to the roots below, and their trees to bentofile.yaml"


def test_the_bento_is_pinned_to_the_constraints():
    listed = bentofile()["python"]["packages"]
    needed, todo = set(), [(name, ()) for name in "bentoml cryptography httptools msgspec numpy onnxruntime polars PyYAML uvloop".split()]
    while todo:
        name, extras = todo.pop()
        if (canonicalize_name(name), extras) in needed: continue
        needed.add((canonicalize_name(name), extras))
        for requirement in map(Requirement, requires(name) or ()):
            if requirement.marker is None or any(requirement.marker.evaluate(dict(extra=e)) for e in ("", *extras)): todo.append((requirement.name, tuple(sorted(requirement.extras))))
    assert {canonicalize_name(pin.partition("==")[0]): pin.partition("==")[2] for pin in listed} == {name: pins()[name] for name, _ in needed}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A Bento of the first of two champions: its folder, its tag, the tag of its model, and that model's bundle."
    folder = tmp_path_factory.mktemp("bento")
    registry = Registry(folder/"home")
    model = registry.add(small_bundle(folder/"one"))
    registry.promote(model)
    run(sys.executable, "-m", "bentoml", "build", cwd=ROOT, env=environment(folder/"home"), timeout=120)
    registry.promote(registry.add(small_bundle(folder/"two", run="run-2", bias=2.0)))
    bento = next((folder/"home/bentos/predictor").glob("*/"))
    return bento, f"predictor:{bento.name}", model, Bundle.open(folder/"one")


def assert_answers(server: Server, model: str, bundle: Bundle):
    answer = server.predict(ROW).json()
    assert answer["model"] == model
    assert np.float32(answer["probability"]) == bundle.predict(np.array([[5, 1.5]]), np.array([["JFK", "LGA"]], object))[0]


def test_a_built_bento_serves_the_champion_of_its_build(built, tmp_path):
    bento, tag, model, bundle = built
    assert not [p for p in (bento/"src").rglob("*.py") if "train" in p.parts]
    assert yaml.safe_load((bento/"apis/openapi.yaml").read_text())["paths"]["/predict"]
    requirements = (bento/"env/python/requirements.txt").read_text()
    assert set(requirements.split()) == set(bentofile()["python"]["packages"]) and "torch" not in requirements and "--index-url" not in requirements
    with Server(bento.parents[2], tag, cwd=tmp_path, PYTHONPATH="", MLPROJ_DRAIN_SECONDS="0") as server:
        assert_answers(server, model, bundle)
        assert health_check(server.port) == 0
    assert health_check(server.port) == 1


def health_check(port: int) -> int:
    "The exit code of the image's health check, at another port."
    command = yaml.safe_load(re.search(r"HEALTHCHECK .*?CMD (\[.*?\])\n", DOCKERFILE, re.S)[1])
    return subprocess.run([sys.executable, *(part.replace(":3000/", f":{port}/") for part in command[1:])], capture_output=True).returncode


ONLY_THE_LOCK = """
import sys
from importlib.machinery import PathFinder
class OnlyTheLock:
    def find_spec(self, name, path=None, target=None):
        if name == "mlproj": return PathFinder.find_spec(name, [{src!r}])
        if name.partition(".")[0] in {others!r}: raise ModuleNotFoundError(f"{{name}} is not in the Bento's lock", name=name)
sys.meta_path.insert(0, OnlyTheLock())
"""


def test_an_exported_bento_needs_nothing_but_its_lock(built, tmp_path):
    bento, tag, model, bundle = built
    run(sys.executable, "-m", "bentoml", "export", tag, tmp_path/"exported.bento", cwd=tmp_path, env=environment(bento.parents[2]))
    with tarfile.open(tmp_path/"exported.bento") as archive: archive.extractall(tmp_path/"bento", filter="data")
    others = {module for module, owners in packages_distributions().items() if not locked() & set(map(canonicalize_name, owners))} - {"mlproj"}
    assert {"torch", "onnx", "typer"} <= others  # as if they were not installed
    (tmp_path/"sitecustomize.py").write_text(ONLY_THE_LOCK.format(src=str(tmp_path/"bento/src"), others=others))
    with Server(tmp_path/"empty", str(tmp_path/"bento"), cwd=tmp_path, PYTHONPATH=str(tmp_path), MLPROJ_DRAIN_SECONDS="0") as server: assert_answers(server, model, bundle)  # no registry: the bundle is inside
    assert "Traceback" not in server.log.read_text()


def certificate(folder: Path):
    "A certificate for this host that signs itself, and its key, as tls.crt and tls.key."
    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")]), datetime.now(timezone.utc)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(minutes=5), now + timedelta(days=1)).add_extension(names, False).sign(key, hashes.SHA256())
    (folder/"tls.crt").write_bytes(made.public_bytes(pem.Encoding.PEM))
    (folder/"tls.key").write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))


def test_tls_as_documented_takes_modern_ciphers_only(built, tmp_path, monkeypatch):
    bento, tag, model, bundle = built
    certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path/"tls.crt"))  # what our client trusts
    options = shlex.split(re.search(r"^bentoml serve bento (.*--ssl.*)$", (ROOT/"deploy/README.md").read_text(), re.M)[1])
    server = Server(bento.parents[2], tag, *options, cwd=tmp_path, PYTHONPATH="", MLPROJ_DRAIN_SECONDS="0", MLPROJ_API_KEY="k3y")
    for name in ("tls.crt", "tls.key"): server.command[server.command.index(name)] = str(tmp_path/name)
    server.url = server.url.replace("http:", "https:")
    with server:
        server.client.headers["authorization"] = "Bearer k3y"
        assert_answers(server, model, bundle)
        context = ssl.create_default_context(cafile=str(tmp_path/"tls.crt"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", server.port)) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped: assert re.search("GCM|CHACHA20", wrapped.cipher()[0])
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            plain.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" not in plain.recv(1000)


# The image, and its place in a cluster. There is no Docker here: what is checked is that the parts say the same.

def test_containerize_packs_the_model_and_builds_our_dockerfile(built, monkeypatch):
    from bentoml import Bento
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.container import construct_containerfile
    from bentoml._internal.models.model import ModelStore
    bento, tag, model, _ = built
    assert (bento/"env/docker/Dockerfile").read_text() == DOCKERFILE.rstrip("\n")
    BentoMLContainer.model_store.set(ModelStore(bento.parents[2]/"models"))
    monkeypatch.chdir(tempfile.gettempdir())  # from elsewhere BentoML refuses templates: bentoml/BentoML#5566
    try:
        with construct_containerfile(Bento.from_path(bento)) as (context, dockerfile):
            assert Path(dockerfile).read_text() == DOCKERFILE.rstrip("\n")
            assert (Path(context)/"models"/model.replace(":", "/")/"bundle/model.onnx").is_file()
            for source in re.findall(r"^COPY (\S+)", DOCKERFILE, re.M): assert (Path(context)/source).exists()
    finally: BentoMLContainer.model_store.reset()


def test_the_image_is_pinned_unprivileged_and_holds_no_key():
    assert re.findall(r"^FROM (.*)$", DOCKERFILE, re.M) == [re.search(r"python:3\.11\.\d+-slim-[a-z]+", DOCKERFILE)[0]]
    assert not re.search(r"apt-get|curl|gcc|build-essential", DOCKERFILE) and "--only-binary=:all:" in DOCKERFILE
    assert not re.search(r"^(ENV|ARG|\s+)\s*MLPROJ_API_KEY", DOCKERFILE, re.M)
    instructions = re.findall(r"^([A-Z]+) ", DOCKERFILE, re.M)
    assert instructions.index("USER") > max(i for i, name in enumerate(instructions) if name in ("RUN", "COPY"))
    assert not [c for c in ("{{", "{%", "{#") if c in DOCKERFILE]  # it goes through BentoML's templates unchanged


def test_the_manifest_agrees_with_the_image_and_the_service():
    parts = {part["kind"]: part for part in yaml.safe_load_all((ROOT/"deploy/kubernetes.yaml").read_text())}
    deployment, service, budget = (parts[kind]["spec"] for kind in ("Deployment", "Service", "PodDisruptionBudget"))
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    labels = deployment["template"]["metadata"]["labels"].items()
    for selector in (deployment["selector"]["matchLabels"], service["selector"], budget["selector"]["matchLabels"]): assert selector.items() <= labels
    assert f"\nUSER {pod['securityContext']['runAsUser']}\n" in DOCKERFILE and pod["securityContext"]["runAsNonRoot"]
    [port] = container["ports"]
    assert f"\nEXPOSE {port['containerPort']}\n" in DOCKERFILE and {p["targetPort"] for p in service["ports"]} == {port["name"]}
    assert {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")} == dict(startup="/readyz", liveness="/livez", readiness="/readyz")
    assert container["securityContext"]["readOnlyRootFilesystem"] and re.search(r"BENTOML_HOME=/tmp/", DOCKERFILE) and [m["mountPath"] for m in container["volumeMounts"]] == ["/tmp"]
    key, = (e for e in container["env"] if e["name"] == "MLPROJ_API_KEY")
    assert "secretKeyRef" in key["valueFrom"] and "Secret" not in parts  # a key in a file would be everybody's
