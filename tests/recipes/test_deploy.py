"""The deployment files: their linters accept them, and what they name exists."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "recipes" / "deploy"
MANIFESTS = sorted(FOLDER.glob("kubernetes-*.yaml"))
DOCKERFILES = sorted(FOLDER.glob("Dockerfile*"))
VERSION = "1.34"


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda one: one.name)
def test_hadolint_has_no_remark(path):
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert found.stdout + found.stderr == ""
    assert found.returncode == 0


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda one: one.name)
def test_kubernetes_schema_accepts_every_object(path):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in documents(path):
        validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda one: one.name)
def test_services_find_their_pods_and_ports(path):
    found = documents(path)
    pods = [one["spec"]["template"] for one in found if one["kind"] == "Deployment"]
    for service in (one["spec"] for one in found if one["kind"] == "Service"):
        selected = [pod for pod in pods if service["selector"].items() <= pod["metadata"]["labels"].items()]
        assert len(selected) == 1
        named = {port["name"] for port in selected[0]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= named


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda one: one.name)
def test_containers_mount_what_their_pods_have_and_run_as_nobody(path):
    for one in documents(path):
        if one["kind"] != "Deployment":
            continue
        spec = one["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert container["resources"]["limits"]["memory"]


def test_the_serve_config_names_an_application_that_takes_its_arguments():
    from lineahead.runtime.ray_app.arguments import RayArguments

    (config,) = (one for one in documents(FOLDER / "kubernetes-ray.yaml") if one["kind"] == "ConfigMap")
    (application,) = yaml.safe_load(config["data"]["serve.yaml"])["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert RayArguments(**application["args"]).max_replicas == 4


def test_the_images_install_extras_that_exist():
    project = (FOLDER.parents[1] / "pyproject.toml").read_text()
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\[", project, re.DOTALL)[1]
    known = set(re.findall(r"^(\w+) =", extras, re.MULTILINE))
    for path in DOCKERFILES:
        text = path.read_text()
        wanted = re.search(r"/src\[([\w,$]+)\]", text)[1].replace("$EXTRA", "gpu")
        assert set(wanted.split(",")) <= known, path.name
