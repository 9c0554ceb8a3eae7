"""Dockerfile, compose file and Makefile, as far as they can be checked where no container engine runs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
OURS = ("migrate", "web", "housekeeping", "beat", "gpu")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


def dockerfile() -> dict[str, str]:
    """The stages of the Dockerfile, by name."""
    text = (ROOT / "Dockerfile").read_text()
    return dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", text, re.M | re.S))


def test_the_compose_file_follows_the_specification(compose: dict[str, Any]) -> None:
    """Against the compose specification's own JSON schema, which this package carries."""
    pytest.importorskip("check_jsonschema")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_part_is_there_and_training_only_on_demand(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"postgres", "redis", *OURS, "s3"} <= set(services)
    profiles = {name: service.get("profiles") for name, service in services.items() if service.get("profiles")}
    assert profiles == {"gpu": ["gpu"], "s3": ["s3"], "s3-bucket": ["s3"]}


def test_names_that_are_used_are_defined(compose: dict[str, Any]) -> None:
    stages = dockerfile()
    for name, service in compose["services"].items():
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert {volume.split(":")[0] for volume in service.get("volumes", ())} <= set(compose["volumes"]), name
        assert set(service.get("depends_on", ())) <= set(compose["services"]), name
        if "build" in service:
            assert service["build"]["target"] in stages, name
            assert service["image"] == f"tiebreak:{service['build']['target']}", name


def test_only_the_web_port_is_published_and_only_to_this_machine(compose: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert list(ports) == ["web"] and all(port.startswith("127.0.0.1:") for port in ports["web"])
    assert compose["networks"]["inside"]["internal"] is True
    outside = [name for name, service in compose["services"].items() if "outside" in service["networks"]]
    assert outside == ["web", "gpu"]


def test_no_password_has_a_default(compose: dict[str, Any]) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = re.findall(r"\$\{(\w*PASSWORD)([^}]*)\}", text)
    assert {name for name, _ in used} == {"POSTGRES_PASSWORD", "REDIS_PASSWORD"}
    assert all(rest.startswith(":?") for _, rest in used)


def test_durability_is_asked_for(compose: dict[str, Any]) -> None:
    postgres, redis = compose["services"]["postgres"], compose["services"]["redis"]
    assert "synchronous_commit=on" in postgres["command"] and "--data-checksums" in str(postgres["environment"])
    assert postgres["volumes"] == ["postgres:/var/lib/postgresql"], "where the image of PostgreSQL 18 keeps its data"
    options = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "everysec")
    assert options["--maxmemory-policy"] == "noeviction"


def test_our_services_wait_for_the_migration_and_have_no_powers(compose: dict[str, Any]) -> None:
    for name in OURS:
        service = compose["services"][name]
        assert service["cap_drop"] == ["ALL"] and service["read_only"] is True, name
        if name != "migrate":
            assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}, name


def test_the_web_image_has_no_torch_and_neither_runs_as_root() -> None:
    stages = dockerfile()
    assert set(stages) == {"base", "web", "train"}
    assert "train" not in stages["web"] and "torch" not in stages["web"]
    assert all("\nUSER tiebreak\n" in stages[name] for name in ("web", "train"))


def test_what_the_image_copies_is_there_and_nothing_else_can_slip_in() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert not allowed & {".env", ".venv", ".git", ".tiebreak", "tests"}
    missing = [name for name in allowed if not (ROOT / name).exists()]
    assert not missing


def test_every_make_target_says_what_it_does() -> None:
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"install", "demo", "up", "dev", "test", "lint", "bench", "clean"} <= {
        line.split()[1] for line in shown.splitlines()
    }


@pytest.mark.parametrize("script", ["scripts/install.sh", "scripts/ensure_chromium.sh"])
def test_scripts_are_plain_shell(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111
    assert subprocess.run(["sh", "-n", script], cwd=ROOT).returncode == 0


def test_a_wrong_python_is_one_sentence(tmp_path: Path) -> None:
    """In a checkout without .venv, on a machine whose Pythons are all too old."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/install.sh", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo "Python 3.9.2" ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    for tool in ("sh", "dirname", "cksum", "sed", "tr", "cat"):
        (tmp_path / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    done = subprocess.run(
        ["/bin/sh", tmp_path / "scripts/install.sh", "embedded"],
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        "tiebreak: Python 3.11 or newer is needed and there is Python 3.9.2: install one, or name it with "
        "PYTHON=/path/to/python3.\n"
    )
