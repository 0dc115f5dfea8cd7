"""The tasks of `compare`: one file a task, and the table of all."""

from collections.abc import Sequence

from s2wrap.compare.tasks.anomaly import Anomaly
from s2wrap.compare.tasks.base import Bench, Task
from s2wrap.compare.tasks.classification import Classification
from s2wrap.compare.tasks.correspondence import Correspondence
from s2wrap.compare.tasks.neighbours import Neighbours
from s2wrap.compare.tasks.reconstruction import Reconstruction
from s2wrap.compare.tasks.regression import Regression
from s2wrap.compare.tasks.retrieval import Retrieval
from s2wrap.compare.tasks.segmentation import Segmentation
from s2wrap.compare.tasks.stability import Stability
from s2wrap.errors import S2WrapError

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "retrieval": Retrieval,
    "segmentation": Segmentation,
    "neighbours": Neighbours,
    "anomaly": Anomaly,
    "regression": Regression,
    "correspondence": Correspondence,
    "stability": Stability,
    "reconstruction": Reconstruction,
}
"""All tasks, in the order in which they are run."""

__all__ = ["TASKS", "Bench", "Task", "choose_tasks"]


def choose_tasks(names: Sequence[str] | None, form: str, reconstructs: bool) -> list[str]:
    """Return the names of the tasks that are run on a folder.

    Args:
        names: those asked for; None for the default ones of the folder's form (on plain pictures, a reconstruction
            takes their place where one is asked for).
        form: of the folder.
        reconstructs: whether the features of a target are to be reconstructed.

    Raises:
        S2WrapError: a name that is no task, or a task that needs a folder of another form.

    >>> choose_tasks(None, "plain", False)
    ['correspondence', 'stability']
    """
    if names is None:
        default = [name for name, task in TASKS.items() if task.default and form in task.forms]
        return ["reconstruction"] if reconstructs and form == "plain" else default + ["reconstruction"] * reconstructs
    if unknown := [name for name in names if name not in TASKS]:
        raise S2WrapError(f"task {unknown[0]!r} is unknown; use some of {', '.join(TASKS)}, with commas")
    for name in names:
        forms = TASKS[name].forms
        if form not in forms and "plain" not in forms:
            possible = [other for other, task in TASKS.items() if {form, "plain"} & set(task.forms)]
            raise S2WrapError(
                f"{name} needs a folder with {' or '.join(forms)} pictures, and this one is {form}; its tasks are "
                f"{', '.join(possible)}"
            )
    return [name for name in TASKS if name in names or (name == "reconstruction" and reconstructs)]
