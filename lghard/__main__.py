"""`python -m lghard`, where the script `lghard` is not on PATH."""

import sys

from lghard.cli import main

if __name__ == "__main__":
    sys.exit(main())
