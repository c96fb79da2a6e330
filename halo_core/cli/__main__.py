"""`python -m halo_core.cli`: the `halo` command where its script is not on the PATH."""

from halo_core.cli import main

if __name__ == "__main__":
    main()
