"""Students on disk: a plain Hugging Face folder, or an adapter, that says how it was taught."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import torch
from accelerate import PartialState

from steper.errors import SteperError
from steper.models import STUDENT_SETTING, write_setting
from steper.setting import Setting
from steper.store import write_atomic
from steper.trainer import StepTrainer


def save_student(
    trainer: StepTrainer,
    folder: Path,
    *,
    setting: Setting,
    card: str,
    dtype: torch.dtype | str | None,
) -> None:
    """Save model or adapter, tokenizer, the setting it was taught in, and a model card.

    Every process calls this, because a sharded model is gathered; the first one writes.

    Args:
        trainer: after its training.
        folder: made whole or not at all; replaces what stood there.
        setting: how the student is to be asked.
        card: text of the model card.
        dtype: of the weights on disk where all of them were trained; ``None`` leaves them.
    """
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if dtype is not None and not sharded:
        known: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        cast(torch.nn.Module, trainer.model).to(known)
    partial = folder.with_name(f".{folder.name}.partial")
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)
    PartialState().wait_for_everyone()
    trainer.save_model(str(partial))
    PartialState().wait_for_everyone()
    if not trainer.is_world_process_zero():
        return
    (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; the manifest says it all
    write_setting(partial / STUDENT_SETTING, setting)
    write_atomic(partial / "README.md", card)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def push_student(folder: Path, repository: str) -> None:
    """Upload a student to the hub, into a private repository if there is none yet.

    Raises:
        SteperError: if it fails; the student is complete on disk.
    """
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(repository, exist_ok=True, private=True)
        hub.upload_folder(repo_id=repository, folder_path=str(folder))
    except Exception as error:  # of network, hub or disk: nothing is lost
        raise SteperError(
            f"the upload failed: {str(error).splitlines()[0].rstrip('.')}.",
            where=repository,
            fix=f"The student is safe in {folder}. Run the same command again, or "
            f"`hf upload {repository} {folder}`.",
        ) from None
