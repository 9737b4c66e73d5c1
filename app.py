"""``python app.py --resource local.localhost`` runs a campaign: the same as ``entk-app run``."""

from entk_app.cli import main_run
from entk_app.processes import leave

if __name__ == "__main__":
    leave(main_run())
