"""Why an attempt ended, from what srun, the run and the kernel say; and what is done then."""

import signal
from dataclasses import replace

import pytest

from launch.exits import FAILED, LOST, STOPPED
from slurm.attempts import Attempt, Attempts, read
from slurm.causes import CRASHES, INTERRUPTIONS, Action, Cause, decide, find, node_of_lost
from slurm.memory_kills import memory_kills
from slurm.step import End, Ended, ended, slurm_lines

KILLED = "srun: error: n2: task 1: Killed"
NO_STEP = "srun: error: Unable to create step for job 7"
EXCLUSIVE = "SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually exclusive."


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ([KILLED], [End("n2", "1", -9)]),
        (["srun: error: n1: tasks 0-1: Exited with exit code 3"], [End("n1", "0-1", 3)]),
        (["srun: error: n1: task 0: Out Of Memory"], [End("n1", "0", -9)]),
        (["srun: error: n1: task 0: Segmentation fault (core dumped)"], [End("n1", "0", -11)]),
        (["srun: error: n1: task 0: User defined signal 2"], [End("n1", "0", -12)]),
        (["srun: got SIGCONT", "0: srun: error: n9: task 0: Killed"], []),
        (["srun: error: a: task 2: Killed", KILLED], [End("a", "2", -9), End("n2", "1", -9)]),
    ],
)
def test_what_srun_says(said, ends):
    assert list(ended(1, said).ends) == ends


@pytest.mark.parametrize(
    ("said", "failure", "memory_event", "cause", "node"),
    [
        ([KILLED], None, False, Cause.KILLED, "n2"),
        ([KILLED], None, True, Cause.MEMORY, "n2"),
        (["srun: error: n1: task 0: Out Of Memory"], None, False, Cause.MEMORY, "n1"),
        (
            ["slurmstepd-n1: error: StepId=3.0 exceeded memory limit (900 > 200), being killed"],
            None,
            False,
            Cause.MEMORY,
            None,
        ),
        (
            ["srun: error: n1: task 0: Exited with exit code 1"],
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            False,
            Cause.MEMORY,
            "n1",
        ),
        (
            ["srun: error: n1: task 0: Exited with exit code 1"],
            "FloatingPointError: step 3 has loss nan",
            False,
            Cause.FAILED,
            "n1",
        ),
        (
            ["srun: error: n1: task 0: Exited with exit code 1"],
            "RuntimeError: CUDA error: uncorrectable ECC error encountered",
            False,
            Cause.NODE,
            "n1",
        ),
        (
            ["srun: error: n1: task 0: Exited with exit code 2"],
            "OSError: [Errno 116] Stale file handle: '/shared/data/train-0.bin'",
            False,
            Cause.NODE,
            "n1",
        ),
        (["srun: error: n1: task 0: Exited with exit code 2"], None, False, Cause.FAILED, "n1"),
        ([f"srun: error: n1: task 0: Exited with exit code {LOST}"], None, False, Cause.HANG, "n1"),
        (
            [f"srun: error: n1: task 0: Exited with exit code {STOPPED}"],
            None,
            0,
            Cause.STOPPED,
            None,
        ),
        (["srun: error: n1: task 0: Terminated"], None, False, Cause.STOPPED, None),
        (["srun: error: Node failure on n2", KILLED], None, False, Cause.NODE, "n2"),
        (
            ["srun: error: Task launch for StepId=7.0 failed on node n2: Communication failure"],
            None,
            False,
            Cause.NODE,
            "n2",
        ),
        ([f"{NO_STEP}: Invalid job id specified"], None, False, Cause.STEP, None),
        ([f"{NO_STEP}: Job step creation temporarily disabled"], None, False, Cause.STEP, None),
        ([f"{NO_STEP}: Memory required by task is not available"], None, 0, Cause.FAILED, None),
        ([f"{NO_STEP}: More processors requested than permitted"], None, 0, Cause.FAILED, None),
        (["srun: error: Only allocated 1 nodes asked for 3"], None, False, Cause.FAILED, None),
        ([f"srun: fatal: {EXCLUSIVE}"], None, False, Cause.FAILED, None),
        (["srun: fatal: Could not establish a configuration source"], None, 0, Cause.STEP, None),
        (
            ["srun: error: Unable to contact slurm controller (connect failure)", KILLED],
            None,
            False,
            Cause.KILLED,
            "n2",
        ),
        (["srun: something new"], None, False, Cause.KILLED, None),
    ],
)
def test_the_cause(said, failure, memory_event, cause, node):
    finding = find(ended(1, said), failure, bool(memory_event))
    assert (finding.cause, finding.node) == (cause, node)


HANGS = "x: rank 3 on host hangs: its stacks are above. All ranks end"
DIED = "x: rank 5 died: its process has been silent for 31 s. All ranks end"
STORE = (
    "x: rank 0 died: the store where the ranks meet, which it keeps, does not answer. All ranks end"
)


@pytest.mark.parametrize(
    ("said", "nodes", "node"),
    [
        (HANGS, ("n1", "n2"), None),  # whose time is up first need not be the one behind
        (HANGS, ("n1",), "n1"),
        (DIED, ("n1", "n2"), "n2"),
        (DIED, ("n1", "n2", "n3", "n4"), "n3"),
        (STORE, ("n1", "n2"), "n1"),
    ],
)
def test_the_node_that_a_hang_is_laid_to(said, nodes, node):
    """Not the one whose rank was the first to leave: eight ranks in all."""
    assert node_of_lost(said, nodes, 8) == node


def test_slurms_own_words_among_those_of_the_ranks(tmp_path):
    """Of an attempt that ran before, in the same file, nothing is left: each has a log of its own."""
    log = tmp_path / "7.attempt-1.log"
    assert slurm_lines(log) == []
    said = "1: slurmstepd-n2: error: StepId=3.0 exceeded memory limit (9 > 2), being killed"
    log.write_text(f"0: step 1\n0: I said: slurmstepd-n2: error: out of memory\n{said}\n")
    assert slurm_lines(log) == [said]
    assert find(ended(137, [KILLED, *slurm_lines(log)]), None, False).cause == Cause.MEMORY


def test_ended_well_without_being_finished():
    assert find(Ended(0), None, False).cause == Cause.FAILED


def test_the_message_of_a_killed_rank():
    assert find(ended(137, [KILLED]), None, False).message == "rank 1 on n2: killed by SIGKILL"


def test_the_message_of_ranks_that_srun_tells_nothing_of():
    said = ["srun: job 7 queued", "srun: something new", "odd"]
    assert find(ended(1, said), None, False).message == (
        "srun ended with status 1 and told nothing of the ranks; its last line: srun: something new"
    )
    assert find(Ended(1), None, False).message.endswith("told nothing of the ranks")
    assert EXCLUSIVE in find(ended(1, [f"srun: fatal: {EXCLUSIVE}"]), None, False).message


def attempts(*rows) -> list[Attempt]:
    """(cause, steps saved afterwards, node) of each."""
    return [
        Attempt(number, 0, ("n1", "n2"), ("a",), 0.0, "log", 1.0, cause, "why", node, "a", saved)
        for number, (cause, saved, node) in enumerate(rows, start=1)
    ]


@pytest.mark.parametrize("cause", [Cause.MEMORY, Cause.FAILED])
def test_what_would_come_again_is_never_repeated(cause):
    decision = decide(attempts((cause, 50, "n1")))
    assert decision.action == Action.GIVE_UP
    assert decision.finding.cause == cause


def test_a_crash_is_repeated_in_place_then_elsewhere_then_given_up():
    crash = (Cause.KILLED, 0, "n2")
    assert decide(attempts(crash)).action == Action.AGAIN
    second = decide(attempts(crash, crash))
    assert (second.action, second.exclude) == (Action.REQUEUE, ("n2",))
    elsewhere = decide(attempts(crash, (Cause.HANG, 0, "n1")))
    assert (elsewhere.action, elsewhere.exclude) == (Action.REQUEUE, ())
    third = decide(attempts(*[crash] * CRASHES))
    assert third.action == Action.GIVE_UP
    assert third.finding.cause == Cause.NO_PROGRESS
    assert "3 attempts in a row saved no new step; the last: why" in third.finding.message


def test_a_crash_after_interruptions_is_the_first_crash():
    for other in (Cause.STOPPED, Cause.NODE, Cause.BUSY):
        rows = [(other, 0, None)] * 2 + [(Cause.KILLED, 0, "n2")]
        assert decide(attempts(*rows)).action == Action.AGAIN


def test_a_crash_after_progress_is_always_repeated():
    rows = [(Cause.KILLED, saved, "n2") for saved in range(10, 100, 10)]
    assert decide(attempts(*rows)).action == Action.AGAIN


def test_another_run_has_its_own_count():
    *others, last = attempts(*[(Cause.KILLED, 0, "n2")] * CRASHES)
    assert decide([*others, replace(last, blamed="b")]).action == Action.AGAIN


@pytest.mark.parametrize("cause", [Cause.STOPPED, Cause.STEP])
def test_interruptions_have_patience(cause):
    stopped = (cause, 0, None)
    assert decide(attempts(*[stopped] * (INTERRUPTIONS - 1))).action == Action.REQUEUE
    assert decide(attempts(*[stopped] * INTERRUPTIONS)).action == Action.GIVE_UP


def test_a_bad_node_is_excluded():
    decision = decide(attempts((Cause.NODE, 0, "n2")))
    assert (decision.action, decision.exclude) == (Action.REQUEUE, ("n2",))


def test_every_signal_has_a_name():
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR2):
        assert number.name in End("n1", "0", -number).words
    assert End("n1", "0", FAILED).words == "rank 0 on n1: exit status 1"


# --- the record


def test_attempts_are_kept_over_requeues(tmp_path):
    first = Attempts(tmp_path, "7", restart=0)
    first.begin(["a"], ["n1"])
    first.end(cause=Cause.STOPPED, saved=4)
    assert not first.superseded
    second = Attempts(tmp_path, "7", restart=1)
    assert first.superseded
    assert not second.superseded
    assert [(each.cause, each.saved) for each in second.all] == [("time limit or preemption", 4)]
    assert second.begin(["a"], ["n2"]).log == "7.attempt-2.log"
    assert read(tmp_path / "7.attempts.json") == second.all


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"number": 1}]', '{"a": 1}'])
def test_a_damaged_record_is_named(tmp_path, text):
    path = tmp_path / "7.attempts.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="not the attempts of a job") as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "Remove this file" in str(caught.value)


# --- the kernel's count


def test_memory_kills_of_a_slurm_job(tmp_path):
    """Version 2 counts all steps of the job together."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/slurm/job_7/step_batch/user/task_0\n")
    assert memory_kills(tmp_path, tmp_path) == 0
    (tmp_path / "slurm/job_7").mkdir(parents=True)
    (tmp_path / "slurm/job_7/memory.events").write_text("oom 4\noom_kill 3\n")
    assert memory_kills(tmp_path, tmp_path) == 3


def test_memory_kills_of_version_1_and_of_the_machine(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("4:memory:/box\n1:cpu:/box\n")
    (tmp_path / "vmstat").write_text("nr_free_pages 3\noom_kill 2\n")
    assert memory_kills(tmp_path, tmp_path) == 2
    (tmp_path / "memory/box").mkdir(parents=True)
    (tmp_path / "memory/box/memory.oom_control").write_text("under_oom 0\noom_kill 5\n")
    assert memory_kills(tmp_path, tmp_path) == 5
    assert memory_kills() >= 0  # this machine's
