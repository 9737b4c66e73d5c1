"""Run a campaign in this process, task after task: for tests and benchmarks. The real one runs on a pilot."""

from __future__ import annotations

import logging
from collections import deque

from entk_app.campaign import Campaign
from entk_app.errors import Interrupted
from entk_app.records import Summary
from entk_app.tasks import note_failure, run_task

logger = logging.getLogger(__name__)


def run_campaign(campaign: Campaign) -> Summary:
    """Walk the campaign's chains of stages, from the first or from where an earlier walk was cut off.

    Several chains take turns, a stage each.
    """
    stages = deque(campaign.begin())
    while stages:
        stage = stages.popleft()
        for task in stage.tasks:
            try:
                run_task(task.kind, campaign.layout.root, task.order)
            except Interrupted as reason:
                logger.info("task %s: %s", task.name, reason)
            except Exception as error:
                # As on a pilot: a task that fails has published nothing, and says why.
                logger.exception("task %s failed", task.name)
                note_failure(campaign.layout, task.order, error)
        stages.extend(campaign.follow(stage))
    return campaign.summarise()
