"""`python -m octaskly` is the command `octaskly`."""

import sys

from octaskly.cli import main

if __name__ == "__main__":
    sys.exit(main())
