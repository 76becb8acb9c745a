"""`python -m synthvision` is `synthvision`."""

import sys

from synthvision.cli import main

if __name__ == "__main__":
    sys.exit(main())
