"""A workflow: a tuple of stages in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.errors import UsageError
from cluster.workflow.stages import Finished, Stage, run_or_reuse


@dataclass(frozen=True)
class Selection:
    """Which stages may run: from `first` to `last`, by default all. Those before `first` must have
    finished; those after `last` are left out.
    """

    first: str | None = None
    last: str | None = None

    def of(self, stages: Sequence[Stage]) -> tuple[Sequence[Stage], frozenset[str]]:
        """The stages up to the last one, and the names of those that must have finished.
        `UsageError` where a name is that of no stage, or the first one comes after the last one.
        """
        names = [stage.name for stage in stages]
        for option, name in (("from_stage", self.first), ("until_stage", self.last)):
            if name is not None and name not in names:
                raise UsageError(
                    f"{option} {name}: is no stage of this run; it has {', '.join(names)}"
                )
        begin = 0 if self.first is None else names.index(self.first)
        end = len(names) if self.last is None else names.index(self.last) + 1
        if begin >= end:
            raise UsageError(
                f"from_stage {self.first}: comes after until_stage {self.last}; swap them"
            )
        return stages[:end], frozenset(names[:begin])


ALL = Selection()


def run_stages(
    stages: Sequence[Stage],
    *,
    root: str,
    name: str,
    selection: Selection = ALL,
    before_call: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
) -> dict[str, Finished]:
    """Run or reuse the selected stages, and return the finished ones by name. See `run_or_reuse`.
    `UsageError` where a stage before the selection has not finished.
    """
    _check_order(stages)
    wanted, must_have_finished = selection.of(stages)
    finished: dict[str, Finished] = {}
    for stage in wanted:
        # Only what the stage names: an input that its fingerprint does not know is an error.
        results = {input_: finished[input_] for input_ in (*stage.inputs, *stage.reads)}

        def begin(name: str = stage.name) -> None:
            if name in must_have_finished:
                raise UsageError(
                    f"from_stage {selection.first}: {name}, which comes before it, has not finished"
                    " with these options; leave from_stage out, or --plan true shows what changed"
                )
            before_call()

        finished[stage.name] = run_or_reuse(
            stage, results, root=root, name=name, before_call=begin, say=say
        )
    return finished


def _check_order(stages: Sequence[Stage]) -> None:
    """`ValueError` where two stages have one name, or a stage needs one that does not run before
    it; found before the first stage runs.
    """
    earlier: list[str] = []
    for stage in stages:
        if stage.name in earlier:
            raise ValueError(f"two stages are named {stage.name!r}; give each its own name")
        for input_ in (*stage.inputs, *stage.reads):
            if input_ not in earlier:
                raise ValueError(
                    f"stage {stage.name!r} needs {input_!r}, which does not run before it; the"
                    f" stages before it are {', '.join(earlier) or 'none'}"
                )
        earlier.append(stage.name)
