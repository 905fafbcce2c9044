"""A workflow: a tuple of stages in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.workflow.stages import Finished, Stage, run_or_reuse


def run_stages(
    stages: Sequence[Stage],
    *,
    root: str,
    name: str,
    before_call: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
) -> dict[str, Finished]:
    """Run or reuse every stage, and return the finished stages by name. See `run_or_reuse`."""
    _check_order(stages)
    finished: dict[str, Finished] = {}
    for stage in stages:
        # Only what the stage names: an input that its fingerprint does not know is an error.
        results = {input_: finished[input_] for input_ in (*stage.inputs, *stage.reads)}
        finished[stage.name] = run_or_reuse(
            stage, results, root=root, name=name, before_call=before_call, say=say
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
