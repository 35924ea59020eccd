"""`python -m hap.cli` is `hapctl`."""

from hap.cli.main import main

main()
