"""The command line: its help, its options from files, and what a mistake looks like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tyro.conf import Positional

from steper import cli, config
from steper.config import BuildConfig, IndexConfig, ReportConfig, RolloutConfig, TrainConfig
from steper.errors import SteperError

CONFIGS: dict[str, type[config.Config]] = {
    "index": config.IndexConfig,
    "rollout": config.RolloutConfig,
    "build": config.BuildConfig,
    "train": config.TrainConfig,
    "evaluate": config.EvaluateConfig,
    "judge": config.JudgeConfig,
    "report": config.ReportConfig,
    "compare": config.CompareConfig,
    "trajectories": config.TrajectoriesConfig,
    "ask": config.AskConfig,
    "recall": config.RecallConfig,
    "export": config.ExportConfig,
    "experiment": config.ExperimentConfig,
    "demo": config.DemoConfig,
}
ROLLOUT = ["--index", "i", "--questions", "q", "--out", "o"]


def steper(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "steper.cli", *arguments], capture_output=True, text=True
    )


def toml(folder: Path, text: str) -> str:
    path = folder / "options.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# ---- help --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_tells_the_road(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[1] for line in lines if line.startswith("  steper ")]
    assert sorted(set(listed)) == sorted(CONFIGS)
    assert len(lines) < 25 and max(map(len, lines)) <= 100


@pytest.mark.parametrize("command", CONFIGS)
def test_every_command_explains_every_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: steper {command}" in out
    for name, field in CONFIGS[command].model_fields.items():
        assert field.description, f"{name} has no docstring"
        assert " ".join(field.description.split()[:2]) in out
        assert f"--{name.replace('_', '-')}" in out or Positional in field.metadata


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("steper 0.")


# ---- mistakes, as a user sees them ---------------------------------------------------------------


def test_a_mistake_is_one_paragraph_and_exit_code_2() -> None:
    unknown = steper("trian")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == (
        "steper: there is no command 'trian'. Perhaps you meant `steper train`. "
        "`steper --help` lists the commands.\n"
    )
    value = steper("rollout", *ROLLOUT, "--k", "0")
    assert (value.returncode, value.stdout) == (2, "")
    assert value.stderr == (
        "steper: rollout --k: Input should be greater than or equal to 1, got 0. "
        "See `steper rollout --help`.\n"
    )


def test_a_command_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(SteperError, match=r"^there is no command 'xyzzy'. `steper --help`"):
        cli.run(["xyzzy"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ROLLOUT, "--max-stps", "3"], ["Unrecognized options: --max-stps", "--max-steps INT"]),
        ([*ROLLOUT, "--k", "many"], ["--k", "many"]),
        ([*ROLLOUT, "--strategy", "none"], ["--strategy", "ircot", "single-step"]),
        (["--index", "i"], ["--questions", "--out"]),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], message: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(["rollout", *arguments])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert all(part in err for part in message)


@pytest.mark.parametrize(
    ("type_", "command", "arguments", "message"),
    [
        (
            RolloutConfig,
            "rollout",
            [*ROLLOUT, "--error-rate", "1"],
            r"rollout --error-rate: .*1\.0",
        ),
        (BuildConfig, "build", ["--rollout", "r", "--out", "o", "--threshold", "0"], "--threshold"),
        (
            TrainConfig,
            "train",
            ["--data", "d", "--out", "o", "--base", "b", "--row-tokens", "-1"],
            "train --row-tokens: .*got -1",
        ),
    ],
)
def test_values_out_of_range_are_named(
    type_: type[RolloutConfig], command: str, arguments: list[str], message: str
) -> None:
    with pytest.raises(SteperError, match=message):
        cli.parse(type_, command, arguments)


# ---- options from a file -------------------------------------------------------------------------


@pytest.mark.parametrize("joined", [True, False])
def test_the_command_line_wins_over_the_file(tmp_path: Path, joined: bool) -> None:
    path = toml(
        tmp_path,
        'data = "d"\nout = "file"\nbase = "b"\nrow_tokens = 2\nseed = -3\nlr = 1e-3\n'
        "bf16 = true\ngradient_checkpointing = true\nlambdas = [1.5, 1, 0.5]\n",
    )
    named = [f"--config={path}"] if joined else ["--config", path]
    parsed = cli.parse(TrainConfig, "train", ["--out", "line", *named, "--no-bf16", "--seed", "4"])
    assert parsed == TrainConfig(
        data=Path("d"),
        out=Path("line"),
        base="b",
        row_tokens=2,
        seed=4,
        lr=1e-3,
        bf16=False,
        gradient_checkpointing=True,
        lambdas=(1.5, 1.0, 0.5),
    )
    assert type(parsed) is TrainConfig


def test_a_list_in_the_file_does_not_take_the_arguments_of_the_line(tmp_path: Path) -> None:
    path = toml(tmp_path, 'out = "r.html"\ntrainings = ["t1", "t2"]\n')
    for arguments in (["--config", path, "e1", "e2"], ["e1", "e2", "--config", path]):
        parsed = cli.parse(ReportConfig, "report", arguments)
        assert parsed.evaluations == (Path("e1"), Path("e2"))
        assert parsed.trainings == (Path("t1"), Path("t2"))


def test_an_unknown_key_of_the_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = toml(tmp_path, "max_stps = 3\n")
    with pytest.raises(SystemExit) as stop:
        cli.parse(RolloutConfig, "rollout", [*ROLLOUT, "--config", path])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "Unrecognized options: --max-stps" in err and "--max-steps" in err


def test_a_value_out_of_range_in_the_file_is_named(tmp_path: Path) -> None:
    path = toml(tmp_path, "k = 0\n")
    with pytest.raises(SteperError, match=r"rollout --k: .*got 0"):
        cli.parse(RolloutConfig, "rollout", [*ROLLOUT, "--config", path])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"options\.toml: no such file"),
        ("k = \n", r"options\.toml: cannot be read: .*line 1"),
        ("[rollout]\nk = 2\n", r"options\.toml: rollout: is a table"),
        ('source = "docs"\n', r"options\.toml: source: goes on the command line"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = str(tmp_path / "options.toml") if text is None else toml(tmp_path, text)
    with pytest.raises(SteperError, match=message):
        cli.parse(IndexConfig, "index", ["--out", "o", "--config", path])


def test_config_needs_a_file() -> None:
    with pytest.raises(SteperError, match="--config needs a file"):
        cli.parse(IndexConfig, "index", ["corpus", "--out", "o", "--config"])
