"""Every assignment to an object of ParlAI's or torch's, installed from one ordered list.

ParlAI is archived. Where current libraries break it, and where this package needs more of its training loop, teachers
and tasks, it is changed from here as soon as both it and `spt_parlai` are imported. Each hook changes one thing; its
docstring says what breaks without it, where in ParlAI 1.7.2, why the change is safe and when it can go.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

_installed = False


def install() -> None:
    """Install every hook. A second call does nothing."""
    global _installed
    if _installed:
        return
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # ParlAI needs it
    import torch

    everywhere, without_cuda = hooks()
    for hook in everywhere if torch.cuda.is_available() else [*everywhere, *without_cuda]:
        hook()
    _installed = True


def hooks() -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
    """The hooks in the order in which they are installed: those for every machine, then those for one without CUDA.

    The modules are imported here because all of them import more of ParlAI, which must have its hooks by then.
    """
    from spt_parlai.parlai_hooks import (
        chat,
        command_line,
        data_files,
        downloads,
        libraries,
        multiprocess,
        screen,
        slurm,
        start,
        teachers,
        train_loop,
        trained_models,
        user_files,
        workers,
    )

    everywhere = [
        libraries.silence_broadcast_buffers,
        libraries.patch_reduce_on_plateau,
        libraries.patch_delayed_nucleus_beam,
        libraries.patch_rouge_tokenizer,
        libraries.patch_txt2vec_array,
        libraries.patch_dynamic_batching,
        libraries.explain_options_of_another_agent,
        trained_models.find_models_by_name,
        command_line.explain_wrong_options,
        command_line.show_own_options_first,
        command_line.explain_unknown_names,
        command_line.explain_missing_model_file,
        command_line.explain_missing_agent_or_task,
        command_line.explain_unreadable_options,
        command_line.say_that_no_dictionary_is_built,
        start.list_options_of_no_chat,
        start.name_no_commit_of_others,
        start.let_log_levels_take_effect,
        user_files.check_files_first,
        user_files.report_what_cannot_be_saved,
        chat.leave_at_the_prompt,
        chat.begin_anew_in_every_world,
        chat.leave_while_a_reply_is_written,
        chat.end_replies_that_are_shown,
        chat.draw_personas_of_one_side,
        chat.take_commands,
        chat.name_the_speakers_of_a_self_chat,
        multiprocess.patch_workers,
        multiprocess.run_along_before_collectives,
        multiprocess.keep_shares,
        slurm.patch_slurm_context,
        downloads.explain_failed_downloads,
        downloads.explain_unreadable_tasks,
        data_files.ignore_byte_order_marks,
        data_files.name_unreadable_line,
        data_files.read_conversations_by_line,
        workers.same_batches_from_workers,
        workers.count_messages_of_workers,
        teachers.describe_metrics,
        teachers.add_metric_options,
        teachers.report_paper_metrics,
        teachers.show_episode,
        train_loop.begin_or_resume,
        train_loop.unlock_the_model_file,
        train_loop.replay_before_training,
        train_loop.agree_on_time,
        train_loop.interrupt_validation_at_once,
        train_loop.append_reports,
        train_loop.save_progress,
        train_loop.save_train_stats_atomically,
        train_loop.skip_unneeded_replies,
        screen.show_runs_in_brief,
        screen.show_training,
        screen.show_evaluation,
        screen.show_chats_in_brief,
        train_loop.evaluate_one_fold_once,
    ]
    without_cuda = [
        multiprocess.patch_launchers,
        multiprocess.patch_all_gather_list,
        multiprocess.patch_distributed_context,
        multiprocess.patch_join_device,
        multiprocess.patch_data_parallel,
    ]
    return everywhere, without_cuda


import parlai  # noqa: E402, F401  the first import of ParlAI installs the hooks, before a file of this room imports more
