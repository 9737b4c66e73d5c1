"""``python app.py --resource local.localhost`` runs a campaign: the same as ``entk-app run``."""

import sys

from entk_app.cli import main_run

if __name__ == "__main__":
    sys.exit(main_run())
