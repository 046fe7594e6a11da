"""L(D) of another study beside the runs of this one: where what compute buys and what data allow contradict each other
(Henighan et al. 2020, section 6, figures 14 and 15; Kaplan et al. 2020, section 6.3, figure 15).

A study of L(D) has one large model on several subsets, one of L(C) several sizes on all data: no study is both.
"""

from pathlib import Path

from analysis.guards import judged_on
from analysis.runs import Counting, StudyRuns, read_runs, refuse_variants
from analysis.separable import POWER_CONSTANT
from analysis.sources import study_points
from analysis.study_fits import Attempt, Trial, attempt


def data_limits(
    folder: Path, study: StudyRuns, counting: Counting, draws: int, seed: int
) -> Attempt:
    """L(D) of the results in `folder`, in the place of the study's own. Raises `ValueError` for runs that were not
    judged on the data of this study, and for such as allow no L(D)."""
    other = read_runs(folder, counting.split, counting.include)
    refuse_variants(other, None)
    refuse_other_data("--data-limits", other, study, counting.split)
    found = study_points(other, POWER_CONSTANT.name, "tokens", counting)
    trial = Trial(
        "loss-by-tokens", f"L(D) of {folder.resolve().name}", POWER_CONSTANT.name, "tokens"
    )
    done = attempt(trial, found, draws, seed)
    if done.fit is None:
        raise ValueError(
            f"--data-limits {folder}: gives no L(D): {done.problem} Wanted one size trained on several subsets or "
            "lengths: name another study, or leave the option out."
        )
    return done


def refuse_other_data(option: str, other: StudyRuns, study: StudyRuns, split: str) -> None:
    """Raise `ValueError` where the runs that an option names were not judged on the data of the study."""
    if not (other.runs and study.runs):
        return
    mine, theirs = (judged_on(each.runs[0], split) for each in (study, other))
    differ = [name for name in mine if mine[name] != theirs[name]]
    if differ:
        said = "; ".join(f"{name} {theirs[name]}, not {mine[name]}" for name in differ)
        raise ValueError(
            f"{option} {other.path}: judged on other data than {study.path}: {said}; wanted one dataset in both. "
            "Train the two studies on the same data."
        )
