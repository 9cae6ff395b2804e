"""`python -m sparring`: the command line."""

import sys

from sparring.pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
