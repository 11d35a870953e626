"""`python -m sleep_rl` is `sleep-rl`."""

import sys

from sleep_rl.cli import main

sys.exit(main())
