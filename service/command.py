"""Entry point of `uvos`: one sentence where only the Python client is installed."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from service.cli import main as run
    except ModuleNotFoundError as error:
        sys.exit(f"error: `uvos` needs the package {error.name}: install the service with pip install 'uvos[service]'")
    run()
