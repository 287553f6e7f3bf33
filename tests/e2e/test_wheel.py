"""The wheel is whole: it holds every data file, and the demo runs from it outside the repo."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "src" / "steper"

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    run(*pip, "--wheel-dir", folder, REPO, cwd=folder)
    (path,) = folder.glob("steper-*.whl")
    return path


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    files = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files
    assert {"steper/py.typed", "steper/world/words.txt", "steper/templates/world.toml"} <= names
    assert "steper/world/base_reader/model.safetensors" in names
    assert "steper/world/base_reader_small/model.safetensors" in names


def test_the_demo_runs_from_it_outside_the_repo(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel,
        cwd=tmp_path)  # fmt: skip
    # The dependencies are those of this environment, whose own editable steper stays unseen:
    # a path named in a .pth file has its own .pth files left unread.
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    place = run(python, "-c", "import steper.cli; print(steper.cli.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(site)

    small = ("--train-questions", "40", "--test-questions", "10")
    out = run(home / "bin" / "steper", "demo", *small, cwd=tmp_path)
    assert "report.html" in out
    results = json.loads((tmp_path / "runs" / "demo" / "results.json").read_text("utf-8"))
    arms = {"base", "vanilla_kd", "steper_uniform", "steper_difficulty", "teacher"}
    assert arms | {"total_seconds"} == results.keys()
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size > 10_000
