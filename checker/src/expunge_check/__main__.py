"""`python -m expunge_check`."""

from .cli import main

raise SystemExit(main())
