"""`python -m counterfoil` is the command line."""

import sys

from counterfoil.cli import main

if __name__ == "__main__":
    sys.exit(main())
