"""`python -m fsseg.cli` is the `fsseg` command."""

from fsseg.cli.app import main

main()
