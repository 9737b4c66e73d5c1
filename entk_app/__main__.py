"""``python -m entk_app`` is the same as ``entk-app``."""

from entk_app.cli import command

if __name__ == "__main__":
    command()
