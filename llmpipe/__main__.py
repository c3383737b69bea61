"""`python -m llmpipe`, where the command is not on the path."""

from llmpipe.cli import app

if __name__ == "__main__":
    app()
