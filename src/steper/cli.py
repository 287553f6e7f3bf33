"""The command line: ``steper COMMAND [options]``. One command per stage, one function per command.

Options may also come from a TOML file (``--config FILE``); those on the command line win. User
mistakes end with a one-paragraph message and exit code 2.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from steper.errors import SteperError

if TYPE_CHECKING:
    from steper.config import Config

HELP = """\
steper: teach a small language model multi-step retrieval-augmented reasoning.

The road, one command a stage; each reads the folder the one before it wrote:

  steper index DOCUMENTS    a folder of documents, or a file of passages -> a search index
  steper rollout            a teacher answers questions step by step, searching the index
  steper build              filter the trajectories, build the three kinds of example
  steper train              train a student (Vanilla-KD, StepER uniform, StepER difficulty-aware)
  steper evaluate           run any model on held-out questions and score it, with intervals
  steper report             one self-contained HTML page
  steper ask "QUESTION"     one question, each step printed as it happens

  steper compare RUNS       evaluations in pairs: differences with intervals, p-values
  steper trajectories RUN   a page to read what a run did, or two runs side by side
  steper index serve        an index for other programs and machines, over HTTP
  steper recall             how often indexes find the gold passages
  steper judge EVALUATION   a language model grades abilities and reasoning by rubrics
  steper experiment FILE    a study: arms times seeds, compared with intervals, and a report
  steper export             the examples as prompt/completion and messages, for other trainers
  steper demo               all of it, offline, in minutes

Every command: --help for its options, --config FILE.toml for options from a file, and the same
command again to resume. Start with `steper demo`.
"""

C = TypeVar("C", bound="Config")


def main() -> None:
    """Entry point of the ``steper`` script."""
    try:
        code = run(sys.argv[1:])
    except SteperError as error:
        print(f"steper: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\nsteper: stopped. The same command goes on from here.", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        reason = f"{os.strerror(error.errno)}. {_MACHINE[error.errno]}"
        print(f"steper: {where}{reason}", file=sys.stderr)
        code = 2
    sys.exit(code)


_MACHINE = {
    errno.ENOSPC: "Make room, or choose an --out elsewhere; the same command goes on from here.",
    errno.EDQUOT: "Make room, or choose an --out elsewhere; the same command goes on from here.",
    errno.EACCES: "Check its permissions, or choose another --out.",
    errno.EPERM: "Check its permissions, or choose another --out.",
    errno.EROFS: "Choose an --out elsewhere.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
}
"""What the machine refuses, and what to do about it."""


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code.

    Raises:
        SteperError: on a user's mistake.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"steper {version('steper')}")
        return 0
    command, rest = arguments[0], list(arguments[1:])
    # Each branch imports its own stage: `steper --help` and `steper index` load no torch.
    match command:
        case "index":
            _index(rest)
        case "rollout":
            _rollout(rest)
        case "build":
            _build(rest)
        case "train":
            _train(rest)
        case "evaluate":
            _evaluate(rest)
        case "judge":
            _judge(rest)
        case "report":
            _report(rest)
        case "compare":
            _compare(rest)
        case "trajectories":
            _trajectories(rest)
        case "ask":
            _ask(rest)
        case "recall":
            _recall(rest)
        case "export":
            _export(rest)
        case "experiment":
            _experiment(rest)
        case "demo":
            _demo(rest)
        case _:
            raise _unknown(command)
    return 0


def _index(arguments: list[str]) -> None:
    match arguments[:1]:
        case ["serve"]:
            return _serve(arguments[1:])
        case ["check"]:
            return _check(arguments[1:])
    from steper.config import IndexConfig
    from steper.index import build_index, index_table

    config = parse(IndexConfig, "index", arguments)
    if config.kind != "bm25" or config.reranker:
        _quiet_libraries()
    build_index(config)
    print(index_table(config.out))
    print(f"Index: {config.out}")


def _serve(arguments: list[str]) -> None:
    from steper.config import ServeConfig
    from steper.retrieval.indexes import open_index
    from steper.retrieval.remote import Limits
    from steper.serve import serve_index

    config = parse(ServeConfig, "index serve", arguments)
    limits = Limits(
        max_waiting=config.max_waiting, max_queries=config.max_queries, max_k=config.max_k
    )
    _quiet_models(config.index)
    serve_index(open_index(config.index), host=config.host, port=config.port, limits=limits)


def _check(arguments: list[str]) -> None:
    from steper.config import CheckConfig
    from steper.retrieval.indexes import verify_index

    config = parse(CheckConfig, "index check", arguments)
    print(verify_index(config.index))


def _rollout(arguments: list[str]) -> None:
    from steper.config import RolloutConfig
    from steper.rollout import rollout
    from steper.store import require_finished

    config = parse(RolloutConfig, "rollout", arguments)
    if not config.base_url and config.teacher not in ("annotated", "world"):
        _quiet_libraries()
    _quiet_models(config.index)
    folder = rollout(config)
    if config.dry_run:
        print(f"Stopped by --dry-run; the same command without it goes on: {folder}")
        return
    counts = require_finished(folder, stage="rollout")["counts"]
    _show_counts(counts)
    if failed := counts["failed"]:
        why = folder / "failed.jsonl"
        print(f"{failed} failed, {why} says why; --retry-failed tries them again")
    print(f"Trajectories: {folder}")


def _build(arguments: list[str]) -> None:
    from steper.build import build, yield_table
    from steper.config import BuildConfig
    from steper.store import require_finished

    folder = build(parse(BuildConfig, "build", arguments))
    print(yield_table(require_finished(folder, stage="build")["counts"]))
    print(f"Examples: {folder}")


def _train(arguments: list[str]) -> None:
    from steper.config import TrainConfig

    config = parse(TrainConfig, "train", arguments)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    if not first:
        os.environ["TQDM_DISABLE"] = "1"
    _quiet_libraries()
    from steper.store import require_finished
    from steper.train import STUDENT, train

    folder = train(config)
    if config.dry_run or not first:
        return
    _show_counts(require_finished(folder, stage="train")["counts"])
    print(f"Student: {folder / STUDENT}")


def _evaluate(arguments: list[str]) -> None:
    from steper.config import EvaluateConfig
    from steper.evaluate import evaluate, evaluation_table

    config = parse(EvaluateConfig, "evaluate", arguments)
    _quiet_libraries()
    folder = evaluate(config)
    print(evaluation_table([folder]))
    print(f"Evaluation: {folder}")


def _judge(arguments: list[str]) -> None:
    from steper.config import JudgeConfig
    from steper.judging import judge_evaluation, judgment_table

    config = parse(JudgeConfig, "judge", arguments)
    if not config.base_url:
        _quiet_libraries()
    folder = judge_evaluation(config)
    print(judgment_table(folder))
    print(f"Judgment: {folder}")


def _report(arguments: list[str]) -> None:
    from steper.config import ReportConfig

    config = parse(ReportConfig, "report", arguments)
    from steper.report import report

    print(f"Report: {report(config)}")


def _compare(arguments: list[str]) -> None:
    from steper.config import CompareConfig

    config = parse(CompareConfig, "compare", arguments)
    from steper.compare import compare_evaluations

    print(compare_evaluations(config))


def _trajectories(arguments: list[str]) -> None:
    from steper.config import TrajectoriesConfig
    from steper.trajectories import browse

    config = parse(TrajectoriesConfig, "trajectories", arguments)
    written = browse(
        config.runs,
        build=config.build,
        port=config.port,
        out=config.out,
        limit=config.limit,
        open_browser=config.open_browser,
    )
    if written:
        print(f"Page: {written}")


def _ask(arguments: list[str]) -> None:
    from steper.ask import ask
    from steper.config import AskConfig

    config = parse(AskConfig, "ask", arguments)
    _quiet_libraries()
    ask(config)


def _recall(arguments: list[str]) -> None:
    from steper.config import RecallConfig
    from steper.recall import measure_recall

    config = parse(RecallConfig, "recall", arguments)
    _quiet_models(*config.index)
    print(measure_recall(config))


def _export(arguments: list[str]) -> None:
    from steper.config import ExportConfig
    from steper.export import export
    from steper.store import require_finished

    folder = export(parse(ExportConfig, "export", arguments))
    _show_counts(require_finished(folder, stage="export")["counts"])
    print(f"Export: {folder}")


def _experiment(arguments: list[str]) -> None:
    from steper.config import ExperimentConfig

    config = parse(ExperimentConfig, "experiment", arguments)
    _quiet_libraries()
    from steper.experiment import experiment

    experiment(config)


def _demo(arguments: list[str]) -> None:
    from steper.config import DemoConfig

    config = parse(DemoConfig, "demo", arguments)
    _quiet_libraries()
    from steper.demo import demo

    demo(config)


# ---- options ---------------------------------------------------------------------------------


def parse(type_: type[C], command: str, arguments: list[str]) -> C:
    """Parse a command's options, those of ``--config FILE`` first.

    Raises:
        SteperError: if a value is out of range or the file cannot be read.
        SystemExit: on an unknown option, after a message with the nearest known ones.
    """
    import tyro

    arguments = _with_file(type_, arguments)
    return tyro.cli(_checked(type_, command), prog=f"steper {command}", args=arguments)


def _checked(type_: type[C], command: str) -> type[C]:
    """``type_`` with our message for a value out of range; tyro would print pydantic's own."""
    from pydantic import ValidationError

    def new(_: type[C], **values: Any) -> C:
        try:
            return type_(**values)
        except ValidationError as error:
            first = error.errors()[0]
            option = "--" + str(first["loc"][0]).replace("_", "-")
            raise SteperError(
                f"{first['msg']}, got {first['input']!r}.",
                where=f"{command} {option}",
                fix=f"See `steper {command} --help`.",
            ) from None

    return type(type_.__name__, (type_,), {"__new__": new, "__doc__": type_.__doc__})


def _with_file(type_: type[Config], arguments: list[str]) -> list[str]:
    """Replace ``--config FILE`` by the file's options, placed so that those given here win."""
    spelled = [argument.partition("=") for argument in arguments]
    at = next((n for n, (name, _, _) in enumerate(spelled) if name == "--config"), None)
    if at is None:
        return arguments
    used = 1 if spelled[at][1] else 2
    if at + used > len(arguments):
        raise SteperError("--config needs a file.", fix="Name a TOML file.")
    from steper.store import read_toml

    path = Path(spelled[at][2] if used == 1 else arguments[at + 1])
    data = read_toml(path, fix="--config takes a TOML file.")
    from tyro.conf import Positional

    for name, field in type_.model_fields.items():
        if name in data and Positional in field.metadata:
            raise SteperError(
                f"{name}: goes on the command line, not into the file.", where=str(path)
            )
    rest = arguments[:at] + arguments[at + used :]
    # Behind arguments without a name, which a list option would take for its own.
    named = next((n for n, argument in enumerate(rest) if argument.startswith("-")), len(rest))
    tables = {name for name, field in type_.model_fields.items() if isinstance(field.default, dict)}
    return rest[:named] + _flags(data, tables, path) + rest[named:]


def _flags(data: dict[str, Any], tables: set[str], path: Path) -> list[str]:
    flags: list[str] = []
    for key, value in data.items():
        name = key.replace("_", "-")
        match value:
            case dict() if key in tables:
                flags += [f"--{name}", *(str(part) for pair in value.items() for part in pair)]
            case bool():
                flags.append(f"--{name}" if value else f"--no-{name}")
            case list():
                flags += [f"--{name}", *map(str, value)]
            case dict():
                raise SteperError(
                    f"{key}: is a table.", where=str(path), fix="Options are plain `key = value`."
                )
            case _:
                flags += [f"--{name}", str(value)]
    return flags


def _unknown(command: str) -> SteperError:
    from difflib import get_close_matches

    known = [
        "index",
        "rollout",
        "build",
        "train",
        "evaluate",
        "judge",
        "report",
        "compare",
        "trajectories",
        "ask",
        "recall",
        "export",
        "experiment",
        "demo",
    ]
    near = get_close_matches(command, known, n=1)
    return SteperError(
        f"there is no command {command!r}.",
        fix=(f"Perhaps you meant `steper {near[0]}`. " if near else "")
        + "`steper --help` lists the commands.",
    )


def _quiet_models(*indexes: str | Path) -> None:
    """The same, if any of the indexes loads a model; importing transformers takes a second."""
    from steper.retrieval.indexes import describe_index, is_url

    infos = [describe_index(index) for index in indexes if not is_url(index)]
    if any(info.kind != "bm25" or info.reranker for info in infos):
        _quiet_libraries()


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and hints out of the display; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft asks transformers for an option by its old name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _show_counts(counts: dict[str, Any]) -> None:
    from tabulate import tabulate

    rows = [
        (name.replace("_", " "), str(value) if not isinstance(value, dict) else _pairs(value))
        for name, value in counts.items()
    ]
    print(tabulate(rows, disable_numparse=True))


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


if __name__ == "__main__":
    main()
