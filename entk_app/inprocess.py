"""Run a campaign in this process, task after task: for tests and benchmarks. The real one runs on a pilot."""

from __future__ import annotations

import logging

from entk_app.campaign import Campaign, StageSpec
from entk_app.records import Summary
from entk_app.tasks import note_failure, run_task

logger = logging.getLogger(__name__)


def run_campaign(campaign: Campaign) -> Summary:
    """Walk the campaign's stages, from the first or from where an earlier walk was cut off, and return the summary."""
    stage: StageSpec | None = campaign.begin()
    while stage is not None:
        for task in stage.tasks:
            try:
                run_task(task.kind, campaign.layout.root, task.order)
            except Exception as error:
                # As on a pilot: a task that fails has published nothing, and says why.
                logger.exception("task %s failed", task.name)
                note_failure(campaign.layout, task.order, error)
        stage = campaign.advance()
    return campaign.summarise()
