"""``python -m entk_app`` is the same as ``entk-app``."""

import sys

from entk_app.cli import main

if __name__ == "__main__":
    sys.exit(main())
