"""``python -m gnclib`` is the command ``gnc``."""

import sys

from gnclib.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
