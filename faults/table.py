"""Every fault, in the order of the page."""

from __future__ import annotations

from faults import damage, disks, folders, kills, lines, mismatches, nonfinite, programs, rewards, rollouts
from faults.verdict import Fault

_RESUMES = "bitwise equal once resumed"


def _numbered(count: int, prefix: str = "") -> tuple[str, ...]:
    return tuple(f"{prefix}{number}" for number in range(1, count + 1))


TABLE = (
    Fault(
        "kill-while-saving",
        "kill -9 while a checkpoint is being written",
        f"an intact checkpoint loads, stale files are swept, {_RESUMES}",
        _numbered(30),
        kills.kill_while_saving,
    ),
    Fault("kill-at-random", "kill -9 at any moment of a run", _RESUMES, _numbered(10), kills.kill_at_random),
    Fault(
        "disk-full",
        "the disk is full right before one file is written",
        f"the error names the file, the checkpoint before it loads, {_RESUMES}",
        disks.FILES,
        disks.fill_up,
    ),
    Fault(
        "truncated",
        "a file of the newest checkpoint is cut short",
        f"found by checksum and said, the checkpoint before it is used, {_RESUMES}",
        _numbered(20, "truncate "),
        damage.damage,
    ),
    Fault(
        "flipped",
        "a bit of the newest checkpoint is flipped",
        f"found by checksum and said, the checkpoint before it is used, {_RESUMES}",
        _numbered(20, "flip "),
        damage.damage,
    ),
    Fault(
        "sigterm",
        "SIGTERM in rollout, reward, optimiser and save, five steps each",
        f"saved within one step and 10 s, {_RESUMES}",
        tuple(f"{phase} {step}" for phase in kills.PHASES for step in range(1, 6)),
        kills.terminate,
    ),
    Fault(
        "sigint-twice",
        "Ctrl-C, and Ctrl-C again at once, in each phase",
        f"ends within 10 s, an intact checkpoint loads, {_RESUMES}",
        tuple(kills.PHASES),
        kills.interrupt_twice,
    ),
    Fault(
        "read-only",
        "a folder that cannot be written, at the start and in mid-run",
        f"the error names it, {_RESUMES}",
        ("a new run", "a resumed run", "the checkpoints of a running one", "a run about to end"),
        folders.read_only,
    ),
    Fault(
        "missing",
        "a run folder or a part of it is not there, or vanishes in mid-run",
        f"the error names it, no second folder is made; with it back, {_RESUMES}",
        ("the run folder", "recipe.toml", "the run folder, while it runs", "the checkpoints, while it runs"),
        folders.missing,
    ),
    Fault(
        "stale-lock",
        "a lock that is left over, torn, of a reused process number, or of a living process",
        f"swept and said, or the living one named and left alone, {_RESUMES}",
        ("killed", "another process has its number", "torn", "a living writer"),
        folders.stale_lock,
    ),
    Fault(
        "non-finite",
        "nan, +inf or -inf in rewards, logits, gradients or values of one step, or of all from it on",
        "no non-finite weight, the step is counted, the run stops after so many in a row, " + _RESUMES,
        nonfinite.CASES,
        nonfinite.poison,
    ),
    Fault(
        "reward",
        "a reward function misbehaves in one of 14 ways on some rows, as a row and as a batch function",
        f"the run goes on, those samples are left out and counted, no process is left, {_RESUMES}",
        rewards.CASES,
        rewards.misbehave,
    ),
    Fault(
        "program",
        "a generated program does harm, or steals or forges the answer, in the sandbox of a reward worker",
        "paid 0 within 3 s by asserts and by output, other programs are paid, no file changes, no process is left",
        tuple(programs.PROGRAMS),
        programs.attack,
    ),
    Fault(
        "rollouts",
        "nothing but EOS, no end, equal rewards, groups of one, no actions",
        "finite, and as documented",
        rollouts.CASES,
        rollouts.degenerate,
    ),
    Fault(
        "data-lines",
        "a line of a data file that is none",
        "strict: file and line are named before the run begins; lenient: left out, counted and logged",
        lines.CASES,
        lines.bad_line,
        refused=True,
    ),
    Fault(
        "memory",
        "no more memory when the model is loaded, in a rollout, in an update",
        f"an error that names the settings, the checkpoint before it loads, {_RESUMES}",
        mismatches.MEMORY,
        mismatches.memory,
        refused=True,
    ),
    Fault(
        "model-mismatch",
        "a vocabulary, a shape or a config that does not fit the model's weights",
        "the error names what does not fit, no run folder is made",
        (*mismatches.VOCABULARY, *mismatches.SHAPE),
        mismatches.model_mismatch,
        refused=True,
    ),
    Fault(
        "checkpoint-mismatch",
        "a run resumed with another base model, other prompts, another critic",
        f"the error names it, no byte of the run is changed, {_RESUMES} with its own",
        mismatches.CHECKPOINT,
        mismatches.checkpoint_mismatch,
        refused=True,
    ),
)
