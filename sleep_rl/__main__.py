"""`python -m sleep_rl` is `sleep-rl`."""

import sys

from sleep_rl.cli.main import main

sys.exit(main())
