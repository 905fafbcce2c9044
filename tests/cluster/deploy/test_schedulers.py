"""The examples for schedulers: Python that compiles, YAML and a crontab that parse, and one command
in all of them.
"""

from __future__ import annotations

import re

import yaml

from tests.support.deploy_files import ROOT, VERSION
from tests.support.documents import Block, blocks

BLOCKS = blocks(ROOT / "docs/how-to/schedulers.md")
COMMAND = "ray job submit --working-dir . -- python -m pipelines.run --config cells.yaml"


def written_in(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def test_all_schedulers_submit_the_same_command() -> None:
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        assert COMMAND in " ".join(block.text.split()), block.name


def test_the_python_of_airflow_dagster_and_prefect_compiles_and_tries_again() -> None:
    named = {"airflow": "retries=5", "dagster": "max_retries=5", "prefect": "retries=5"}
    for scheduler, again in named.items():
        (block,) = (
            b for b in written_in("python") if re.search(rf"(from|import) {scheduler}", b.text)
        )
        compile(block.text, block.name, "exec")
        assert again in block.text


def test_the_workflow_of_argo_tries_again_and_does_not_overlap() -> None:
    (block,) = written_in("yaml")
    spec = yaml.safe_load(block.text)["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    templates = {template["name"]: template for template in spec["workflowSpec"]["templates"]}
    template = templates[spec["workflowSpec"]["entrypoint"]]
    assert int(template["retryStrategy"]["limit"]) == 5
    assert template["container"]["image"].endswith(f"/retinaray:{VERSION}-cpu")


def test_the_line_of_cron_has_a_time_and_a_lock() -> None:
    (block,) = written_in("cron")
    (line,) = (line for line in block.text.splitlines() if not re.match(r"[A-Z_]+=", line))
    times, command = line.split()[:5], line.split(None, 5)[5]
    assert all(re.fullmatch(r"\*|\d+", time) for time in times)
    assert "flock -n " in command and "%" not in command, "cron reads % as the end of a line"
