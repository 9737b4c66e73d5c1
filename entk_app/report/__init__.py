"""``entk-app report``: the paper's tables and figures of a campaign as one page, with each figure's files beside it."""

from entk_app.report.write import ReportFiles, write_report

__all__ = ["ReportFiles", "write_report"]
