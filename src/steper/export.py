"""`steper export`: step examples as files that other trainers read.

Every example is written as prompt and completion and, a second time, as a conversation of two
messages, each as JSONL and as Parquet, with a copy of the build's ``setting.json``. See
``docs/trl.md`` for how to train on them.

There is no column of weights. Eq. 3 weighs all examples alike: the plain mean of ℓ over N examples
of n trajectories *is* Eq. 3, but for the constant N/3n, which a learning rate makes up for. A
trainer that averages over tokens instead would need 1/(target tokens), which only the tokenizer
knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steper.build import EXAMPLES, read_examples
from steper.config import ExportConfig
from steper.errors import SteperError
from steper.models import RUN_SETTING, read_setting, write_setting
from steper.store import Run, require_finished, write_atomic, write_records
from steper.types import TASKS, StepExample

PROMPT_COMPLETION = "prompt_completion"
MESSAGES = "messages"

_TEXT, _NUMBER = pa.string(), pa.int64()
_KEYS = [("id", _TEXT), ("trajectory_id", _TEXT), ("task", _TEXT), ("step", _NUMBER)]
_MESSAGE = pa.struct([("role", _TEXT), ("content", _TEXT)])
# Written down instead of inferred: the columns do not depend on the rows.
_SCHEMAS = {
    PROMPT_COMPLETION: pa.schema([("prompt", _TEXT), ("completion", _TEXT), *_KEYS]),
    MESSAGES: pa.schema([(MESSAGES, pa.list_(_MESSAGE)), *_KEYS]),
}


def export(config: ExportConfig) -> Path:
    """Run the stage and return its folder.

    Raises:
        SteperError: on bad input, or if there is no example of the chosen tasks.
    """
    require_finished(config.data, stage="build")
    tasks = [task for task in TASKS if task in config.tasks]
    stage = Run.open(
        config.out,
        stage="export",
        config={"tasks": tasks},
        inputs={"examples": config.data / EXAMPLES, "setting": config.data / RUN_SETTING},
    )
    if stage.finished:
        return stage.path
    examples = [example for example in read_examples(config.data) if example.task in tasks]
    if not examples:
        raise SteperError(
            f"holds no example of the tasks {', '.join(tasks) or '(none)'}.",
            where=str(config.data),
            fix="Name other --tasks, or leave the option out for all.",
        )
    _write(stage.path / PROMPT_COMPLETION, [prompt_completion(example) for example in examples])
    _write(stage.path / MESSAGES, [messages(example) for example in examples])
    write_setting(stage.path / RUN_SETTING, read_setting(config.data / RUN_SETTING))
    numbers = Counter(example.task for example in examples)
    stage.finish(
        {
            "trajectories": len({example.trajectory_id for example in examples}),
            "examples": {task: numbers[task] for task in tasks},
        }
    )
    return stage.path


def prompt_completion(example: StepExample) -> dict[str, Any]:
    """An example as plain text, to be trained on as it stands."""
    return {"prompt": example.prompt, "completion": example.target, **_keys(example)}


def messages(example: StepExample) -> dict[str, Any]:
    """An example as a conversation, which a trainer puts into the model's chat template."""
    said = [("user", example.prompt), ("assistant", example.target)]
    return {
        MESSAGES: [{"role": role, "content": content} for role, content in said],
        **_keys(example),
    }


def _keys(example: StepExample) -> dict[str, Any]:
    """What tells the example apart, the same in all files."""
    return {name: getattr(example, name) for name, _ in _KEYS}


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``path``.jsonl and ``path``.parquet, each atomically."""
    table = pa.Table.from_pylist(rows, schema=_SCHEMAS[path.name])
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    write_records(path.with_suffix(".jsonl"), rows)
    write_atomic(path.with_suffix(".parquet"), buffer.getvalue().to_pybytes())
