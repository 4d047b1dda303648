"""`python -m fsseg` is the `fsseg` command."""

from fsseg.cli.app import main

if __name__ == "__main__":
    main()
