"""`Installed`: the handle of a plan that is stored as an nnsight edit of a loaded model."""

from contextlib import ExitStack
from types import TracebackType
from typing import Any

from rmuse_interp.edits import hooks as native
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.state import Decision
from rmuse_interp.edits.trace import Recorder


class Installed:
    """The handle of a plan stored as an nnsight edit: `remove` (or leave the ``with`` block) and it is gone.

    Args:
        lens: the model.
        plan: what runs in each of its traces and generations. Those begun by name (`lens.trace`, `lens.generate`,
            `lens.run_with_cache`) decide about their prompts first where the plan needs it.
        decision: what `plan.decide` gave, for the batches that follow; traces of `lens.nn` itself, which are shown no
            prompts, need it for two-pass plans.
        recorder: keeps a trace of its steering.

    Raises:
        RMuseError: a plan that runs on the model already, or layers it does not have.
    """

    def __init__(
        self, lens: Any, plan: Plan, decision: Decision | None = None, recorder: Recorder | None = None
    ):
        lens._require_new(plan)
        self.lens = lens
        self.plan = plan
        self.session = native.Session(plan.to(lens.device), lens.layout, decision, recorder)
        self._undo = ExitStack()
        self._undo.enter_context(native.listening(lens.hf, self.session))
        self.mediator = lens._store(lens.nn, self.session)
        lens._installed.append(self)
        self._undo.callback(self._forget)

    def remove(self) -> None:
        """Take the edit off the model again; a second call does nothing."""
        self._undo.close()

    def _forget(self) -> None:
        # nnsight has no public way to drop one stored edit (`clear_edits` drops all).
        self.lens.nn._edits[:] = [edit for edit in self.lens.nn._edits if edit is not self.mediator]
        self.lens._installed.remove(self)

    def __enter__(self) -> "Installed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
